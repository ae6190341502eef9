"""Where `hps` starts: quick commands at once, trainings through Lightning's CLI."""

import difflib
import os
import sys

from hps_lightning import __version__
from hps_lightning.errors import UserError

_USAGE = """usage: hps COMMAND [options]

  hps fit       trains a network                hps fit --config hps.yaml
  hps validate  measures one on the images that validate
  hps test      measures one on the test images hps test --ckpt_path best
  hps predict   classifies image files          hps predict --ckpt_path best --images photo.png
  hps export    writes a folder for the board   hps export --ckpt_path best --output bundle
  hps models    lists the networks by name

`hps COMMAND --help` lists a command's options; `hps fit --model.help HPSClassifier` a network's.
"""

_COMMANDS = ("fit", "validate", "test", "predict", "export", "models")


def main(argv: list[str] | None = None) -> int:
    """Runs `hps` with the given arguments (those of the process if None).

    Returns:
        The exit status: 0, or 2 for a mistake in what the user gave.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(argv)
    except UserError as error:
        if os.environ.get("HPS_DEBUG"):
            raise
        print(f"hps: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_USAGE, end="")
        return 0
    command, *rest = argv
    if command == "--version":
        print(f"hps_lightning {__version__}")
        return 0
    if command not in _COMMANDS:
        near = difflib.get_close_matches(command, _COMMANDS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"There is no command {command!r}.{hint} Commands: {', '.join(_COMMANDS)}.")
    if command == "models":
        from hps_lightning.cli.models import run_models

        return run_models(rest)
    if command == "export":
        from hps_lightning.cli.export import run_export

        return run_export(rest)
    from hps_lightning.cli.lightning import run_lightning

    return run_lightning(command, rest)
