"""Where a training's run lies."""

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

NUMBERED = (TensorBoardLogger, CSVLogger)
"""The loggers that give each training a folder with a number of its own."""


def has_numbered_folder(trainer: Trainer) -> bool:
    """Whether the first of a trainer's loggers gives each training a folder of its own."""
    return bool(trainer.loggers) and isinstance(trainer.loggers[0], NUMBERED)


def run_directory(trainer: Trainer) -> str:
    """The folder of a training's run, for all files of it; to be called by every process, since they agree on it.

    It is that of the first logger where this numbers its folders, and else the trainer's ``default_root_dir``, which
    `hps fit` makes one with a number: Lightning's ``log_dir`` would be a place that all trainings share.
    """
    if has_numbered_folder(trainer):
        return trainer.log_dir
    return trainer.strategy.broadcast(trainer.default_root_dir)
