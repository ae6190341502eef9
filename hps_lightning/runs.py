"""Where trainings leave their files: ``runs/NAME/version_N``, with ``checkpoints/`` inside.

Those of several seeds lie together, as ``runs/NAME/seeds_K/seed_S`` (see ``seed_group``).
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hps_lightning import zoo
from hps_lightning.errors import UserError
from hps_lightning.seed_group import GROUP_FILE

RUNS = "runs"
"""The folder of all runs, below the working directory."""

NEWEST = ("last", "best")
"""What `--ckpt_path` takes besides a path: a checkpoint of the newest run."""

_RUNS = ("*/version_*", "*/seeds_*/seed_*")


@dataclass(frozen=True)
class Run:
    """The folder of one training, as TensorBoard's logger lays it out.

    Attributes:
        save_dir: the folder of all runs.
        name: of the network and its data.
        version: "version_N", or "seeds_K/seed_S".
    """

    save_dir: Path
    name: str
    version: str

    @property
    def directory(self) -> Path:
        """The run's folder."""
        return self.save_dir / self.name / self.version


def expanded(folder: str) -> str:
    """A folder's name with the user's home and the environment's variables in their places.

    A shell does so, but not in a config; and of Lightning's parts some do it, and some do not.
    """
    return os.path.expanduser(os.path.expandvars(folder))


def run_of(checkpoint: Path) -> Run | None:
    """The run that a checkpoint lies in, or None where it lies elsewhere."""
    folder = checkpoint.absolute().parent
    directory = folder.parent
    if folder.name != "checkpoints":
        return None
    if re.fullmatch(r"version_\d+", directory.name):
        network = directory.parent
    elif re.fullmatch(r"seeds_\d+/seed_\d+", "/".join(directory.parts[-2:])):
        network = directory.parent.parent
    else:
        return None
    save_dir = network.parent
    if save_dir.is_relative_to(Path.cwd()):
        # As Lightning was given it when the training began.
        save_dir = save_dir.relative_to(Path.cwd())
    return Run(save_dir, network.name, directory.relative_to(network).as_posix())


def resolve_checkpoint(value: str, runs: Path) -> Path:
    """The checkpoint that ``--ckpt_path`` names: a path, or "last" or "best" of the newest run.

    The newest run is the one that has written a checkpoint last. Its "last" need not exist, where only the best one
    could be written; see ``cli.damaged_checkpoints``.

    Args:
        value: as typed.
        runs: the folder of all runs.

    Raises:
        UserError: "last" or "best" is asked for and there is none; or a folder of several seeds is named.
    """
    if value not in NEWEST:
        if (Path(value) / GROUP_FILE).is_file():
            raise UserError(
                f"{value} holds several trainings, which only `hps test` takes together; name the checkpoint of one, "
                f"such as {next(Path(value).glob('seed_*/checkpoints/last.ckpt'), Path(value, 'seed_0'))}."
            )
        return Path(value)
    checkpoints = [
        path for pattern in _RUNS for name in NEWEST for path in runs.glob(f"{pattern}/checkpoints/{name}.ckpt")
    ]
    newest = max(checkpoints, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise UserError(f"There is no run with a checkpoint below {runs}; give a path: --ckpt_path FILE.")
    path = newest.with_name(f"{value}.ckpt")
    if value == "best" and not path.is_file():
        raise UserError(
            f"The newest run, {newest.parent.parent}, has no {path.name}: under the protocol 'full' nothing "
            "validates, or no epoch has validated yet, so that none is best. Use --ckpt_path last."
        )
    return path


def run_name(class_name: str, family: str | None, init_args: dict[str, Any], dataset: str) -> str:
    """The name of a training's folder: the zoo's name of the network where it has one, and the data set.

    Args:
        class_name: the LightningModule's class.
        family: its family, a key of ``zoo.FAMILIES``.
        init_args: its arguments.
        dataset: name of the data set.
    """
    return f"{zoo.find_name(family, init_args) or family or class_name}-{dataset}"
