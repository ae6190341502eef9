"""`hps` in processes that are forked from one with the libraries loaded, which saves each of them seconds.

Each is a process of its own all the same, with its own arguments, directory, environment, output and exit status.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import torch

from hps_lightning.cli import main


def run_hps(argv, folder, log, timeout=300):
    """Runs `hps` to its end.

    Args:
        argv: its arguments.
        folder: the working directory.
        log: a file that takes its output.
        timeout: seconds that it has.

    Returns:
        The exit status; negative, the signal that ended it.

    Raises:
        TimeoutError: it took longer; it is killed, with all that it has started. The message has its output.
    """
    context = multiprocessing.get_context("forkserver")
    # As in `explore.trial`, whose server this may be.
    context.set_forkserver_preload(["hps_lightning.cli.lightning", "hps_lightning.bluebox.onnx_export"])
    # Forked processes have the environment of the server, from when that was started.
    arguments = (list(argv), str(folder), str(log), dict(os.environ))
    process = context.Process(target=_run, args=arguments)
    process.start()
    try:
        process.join(timeout)
        if process.exitcode is None:
            raise TimeoutError(f"hps {' '.join(argv)} took longer than {timeout} s:\n{Path(log).read_text()}")
        return process.exitcode
    finally:
        # After Ctrl+C too.
        if process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join()


def _run(argv, folder, log, environment):
    # A group of its own, so that all of it can be killed.
    os.setpgrp()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(environment)
    if "OMP_NUM_THREADS" in environment:
        # OpenMP has read that of the server.
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    os.chdir(folder)
    sys.argv = [str(Path(sys.executable).with_name("hps")), *argv]
    sys.exit(main(argv))
