"""Where a training's run lies."""

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

NUMBERED = (TensorBoardLogger, CSVLogger)
"""The loggers that give each training a folder with a number of its own."""

_OWN = "_hps_own_folder"


def has_numbered_folder(trainer: Trainer) -> bool:
    """Whether the first of a trainer's loggers gives each training a folder of its own."""
    return bool(trainer.loggers) and isinstance(trainer.loggers[0], NUMBERED)


def give_own_folder(trainer: Trainer) -> None:
    """Has all files of a run go to the trainer's ``default_root_dir``; for every process of the training to call."""
    setattr(trainer, _OWN, True)


def has_own_folder(trainer: Trainer) -> bool:
    """Whether :func:`give_own_folder` was called for it."""
    return getattr(trainer, _OWN, False)


def run_directory(trainer: Trainer) -> str | None:
    """The folder of a training's run; to be called by every process, since they agree on it.

    It is Lightning's ``log_dir``, which need not be there; but that of a logger which numbers no folders would be one
    that all trainings share, so that `hps fit` then makes one.
    """
    return trainer.strategy.broadcast(trainer.default_root_dir) if has_own_folder(trainer) else trainer.log_dir
