"""Where `hps` starts: quick commands at once, trainings through Lightning's CLI."""

import errno
import importlib
import os
import sys

from hps_lightning import __version__
from hps_lightning.errors import UserError
from hps_lightning.files import DISK_ERRORS
from hps_lightning.names import no_name

_USAGE = """usage: hps COMMAND [options]

  hps fit       trains a network                hps fit --config hps.yaml
                or several, with other seeds    hps fit --config hps.yaml --seeds 3
  hps validate  measures one on the images that validate
  hps test      measures one on the test images hps test --ckpt_path best
  hps predict   classifies image files          hps predict --ckpt_path best --images photo.png
  hps export    writes a folder for the board   hps export --ckpt_path best --output bundle
  hps replay    shows its block at work here    hps replay bundle --webcam
  hps explore   looks for better networks       hps explore --config explore.yaml
  hps models    lists the networks by name
  hps plot      draws trainings' curves         hps plot runs/hps_06_05x-cifar10/version_0
  hps report    sets the paper beside our runs  hps report --output report

`hps COMMAND --help` lists a command's options; `hps fit --model.help HPSClassifier` a network's.
"""

# By name, so that none waits for what another one imports.
_QUICK = ("export", "explore", "models", "plot", "replay", "report")
_COMMANDS = ("fit", "validate", "test", "predict", *_QUICK)


# 128 and the number of SIGPIPE, as shells have it.
_READER_GONE = 141


def main(argv: list[str] | None = None) -> int:
    """Runs `hps` with the given arguments (those of the process if None).

    Returns:
        The exit status: 0, 2 for a mistake in what the user gave, a disk that takes nothing or another process of the
        training that died, 130 after Ctrl+C, 141 where the reader of a training's output has gone.
    """
    try:
        status = _status(list(sys.argv[1:] if argv is None else argv))
    except SystemExit:
        # As after argparse's help.
        _flush()
        raise
    trouble = _flush()
    if trouble is None or status:
        return status
    print(f"hps: error: the output cannot be written: {trouble.strerror or trouble}.", file=sys.stderr)
    return 2


def _flush() -> OSError | None:
    """Writes what is still to be written; returns why that is impossible, if anyone is there to read it."""
    try:
        # At the interpreter's end, which would do it else, it could only be complained of.
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # The reader of a broken pipe has gone, as `head` does.
        return None if isinstance(error, BrokenPipeError) else error
    return None


def _status(argv: list[str]) -> int:
    try:
        return _run(argv)
    except UserError as error:
        if os.environ.get("HPS_DEBUG"):
            raise
        print(f"hps: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hps: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return _reader_gone(argv[0])
    except SystemExit as ended:
        # So rich ends a process whose output nobody reads, with a status that says nothing.
        if not isinstance(ended.__context__, BrokenPipeError):
            raise
        return _reader_gone(argv[0])
    except OSError as error:
        # A name that the system takes for none may stand wherever a path does.
        if error.errno not in {*DISK_ERRORS, errno.ENAMETOOLONG} or os.environ.get("HPS_DEBUG"):
            raise
        print(f"hps: error: {error}", file=sys.stderr)
        return 2


def _reader_gone(command: str) -> int:
    # The reader of a list has seen enough; a training has not ended.
    if command not in ("fit", "explore"):
        return 0
    print(f"hps: error: whoever read the output has gone; `hps {command}` has stopped.", file=sys.stderr)
    return _READER_GONE


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_USAGE, end="")
        return 0
    command, *rest = argv
    if command == "--version":
        print(f"hps_lightning {__version__}")
        return 0
    if command not in _COMMANDS:
        raise UserError(no_name("command", command, _COMMANDS))
    if command in _QUICK:
        module = importlib.import_module(f"hps_lightning.cli.{command}")
        return getattr(module, f"run_{command}")(rest)
    if command == "fit" and any(token.split("=")[0] == "--seeds" for token in rest):
        from hps_lightning.cli.seeds import run_fit_seeds

        return run_fit_seeds(rest)
    if command == "test":
        from hps_lightning.cli.seeds import run_test_seeds, tested_group

        group = tested_group(rest)
        if group is not None:
            return run_test_seeds(group, rest)
    from hps_lightning.cli.lightning import run_lightning

    return run_lightning(command, rest)
