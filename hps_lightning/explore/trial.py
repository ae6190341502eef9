"""The worker's side of a trial: its folder, and the process that trains in it."""

import contextlib
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from filelock import FileLock

from hps_lightning.errors import DivergedError, UserError

_RUN = "version_0"
_LOCK = "running.lock"
_CHECKPOINTS = ("last.ckpt", "best.ckpt")
_BENCHMARK = "benchmark.json"
_POLL_S = 0.5
_PATIENCE_S = 20.0

Answer = Callable[[str, dict[str, Any]], bool]
"""What a worker answers to a message of a trial's process; see ``training.Correspondent``."""


class TrialFailedError(Exception):
    """A trial's process ended without the training being done."""


class TrialFolder:
    """Where a trial leaves its files: a run's folder as of `hps fit`, and the output.

    Args:
        study: the folder of the study.
        number: of the trial.
    """

    def __init__(self, study: Path, number: int) -> None:
        self.name = f"trial_{number:04d}"
        self.path = study / self.name
        self.run = self.path / _RUN
        self.log = self.path / "fit.log"

    def logger(self) -> dict[str, Any]:
        """Lightning's logger, as a specification, that lays the run out so."""
        arguments = {"save_dir": str(self.path.parent), "name": self.name, "version": _RUN}
        return {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": arguments}

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Held while a worker is at the trial; the system frees it when the worker dies.

        Some network file systems have no locks; there the storage's signs of life tell alone.

        Raises:
            UserError: the folder cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path} cannot be made: {error.strerror}.") from error
        with contextlib.ExitStack() as held:
            # NotImplementedError: so filelock says before 3.24 that there are none.
            with contextlib.suppress(OSError, NotImplementedError):
                held.enter_context(FileLock(self.path / _LOCK))
            yield

    def abandoned(self) -> bool:
        """Whether a worker of this machine was at the trial and has died."""
        if not (self.path / _LOCK).is_file():
            return False
        try:
            with FileLock(self.path / _LOCK, timeout=0):
                return True
        except (OSError, NotImplementedError):
            # It is held (Timeout, an OSError), or there are no locks, as in `lock`.
            return False

    def checkpoints(self) -> list[Path]:
        """Those that its training may go on from, the newest first."""
        return [path for name in _CHECKPOINTS if (path := self.run / "checkpoints" / name).is_file()]

    def take_over(self, earlier: Iterable["TrialFolder"]) -> bool:
        """Copies what a trial had reached when its worker died; whether there is anything.

        A copy, since a worker that was only cut off may still be writing there.

        Args:
            earlier: the folders of the times that it was begun before, the newest first.

        Raises:
            TrialFailedError: the copy cannot be made.
        """
        other = next((folder for folder in earlier if folder.checkpoints()), None)
        if other is None or self.run.exists():
            return bool(self.checkpoints())
        aside = self.path / f".{_RUN}.part"
        try:
            shutil.rmtree(aside, ignore_errors=True)
            # Without what is being written: it takes its name, or goes, while it is copied.
            shutil.copytree(other.run, aside, ignore=shutil.ignore_patterns(".*"))
            os.replace(aside, self.run)
        except OSError as error:
            raise TrialFailedError(f"{other.run} cannot be copied to {self.run}: {error}") from error
        return True

    def finished_error(self, epochs: int | None) -> float | None:
        """The last epoch's error of a training that got to its end; None of one that did not.

        Args:
            epochs: of the whole training; None where it is not known.
        """
        try:
            report = json.loads((self.run / _BENCHMARK).read_text(encoding="utf-8"))
            if epochs is None or len(report["epochs"]) < epochs:
                return None
            return 1 - report["metrics"]["final"]["val/accuracy"]
        except (OSError, ValueError, KeyError, TypeError):
            return None


def run_training(
    argv: list[str],
    answer: Answer,
    log: Path | None = None,
    measured: Collection[str] | None = (),
    own: Sequence[str] = (),
) -> str:
    """Runs `hps fit` in a process of its own, and answers its questions.

    A process of its own keeps one trial's memory and crashes from the next. All are forked from
    one that has the libraries loaded, which saves each of them seconds.

    Args:
        argv: the arguments of `hps fit`.
        answer: told of the network and of each epoch; whether to go on.
        log: takes its output.
        measured: see ``training.Correspondent``.
        own: see ``run_cli``.

    Returns:
        "done", or "declined" where ``answer`` did not want the network.

    Raises:
        DivergedError: the training's loss became NaN or infinite.
        UserError: the arguments cannot be used, or no process can be started.
        TrialFailedError: the training failed, or its process was killed.
        BaseException: what ``answer`` raises, and Ctrl+C; the process is ended first.
    """
    try:
        context = _context()
        here, there = context.Pipe()
        arguments = (there, argv, measured, None if log is None else str(log), dict(os.environ), own)
        process = context.Process(target=_train, args=arguments)
        process.start()
    except OSError as error:
        # Else it would be taken for an outage of the storage.
        raise UserError(
            f"No process can be started for the training: {error}. Its socket lies below {tempfile.gettempdir()}; "
            "the variable TMPDIR names another folder."
        ) from error
    there.close()
    try:
        result = _converse(here, process, answer)
        process.join(_PATIENCE_S)
        return result
    finally:
        # A process that waits for an answer ends too.
        here.close()
        _end(process)


def _train(*arguments: Any) -> None:
    # The worker itself gets by without Lightning.
    from hps_lightning.explore.training import train

    train(*arguments)


def _converse(connection: Connection, process: BaseProcess, answer: Answer) -> str:
    while True:
        with _death_told(process):
            name, content = _next_message(connection, process)
        if name in ("done", "declined"):
            return name
        if name == "diverged":
            raise DivergedError(content)
        if name == "refused":
            raise UserError(content)
        if name == "failed":
            raise TrialFailedError(content)
        # Outside: whoever reads the worker's output may have gone, which is no fault of the trial's.
        wanted = answer(name, content)
        with _death_told(process):
            connection.send(wanted)


def _next_message(connection: Connection, process: BaseProcess) -> tuple[str, Any]:
    while not connection.poll(_POLL_S):
        if not process.is_alive() and not connection.poll(0):
            raise EOFError
    return connection.recv()


@contextlib.contextmanager
def _death_told(process: BaseProcess) -> Iterator[None]:
    """Says what became of a process that hears and says nothing any more."""
    try:
        yield
    except (EOFError, ConnectionError):
        process.join(_PATIENCE_S)
        code = process.exitcode
        reason = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with status {code}"
        raise TrialFailedError(f"Its process {reason}, without a word; perhaps memory ran out.") from None


def _end(process: BaseProcess) -> None:
    process.join(0.1)
    if process.is_alive():
        # Lightning ends at the next batch.
        process.terminate()
        process.join(_PATIENCE_S)
    if process.is_alive():
        process.kill()
        process.join()


def _context() -> Any:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hps_lightning.explore.training", "hps_lightning.bluebox.onnx_export"])
    return context
