"""The folder of a training's run: one that can be written, and that no other training has."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from hps_lightning.directory_lock import locked
from hps_lightning.errors import UserError
from hps_lightning.files import check_writable

# Those that give each training a folder with a number of its own.
_NUMBERED = (TensorBoardLogger, CSVLogger)


@contextlib.contextmanager
def own_run_folder(trainer: Trainer) -> Iterator[None]:
    """Makes a run's folder and keeps it for this process; if nothing was written there, it is removed again.

    Trainings that begin at the same moment, as those of an array of jobs, get one each. Lightning by itself makes the
    folder late, so that all of them would take the same number.

    Args:
        trainer: whose loggers tell the folder. A remote one is neither made nor kept, nor is one that a logger has
            trainings share.

    Raises:
        UserError: it cannot be made or written, or another process trains there.
    """
    if not trainer.is_global_zero or trainer.fast_dev_run:
        yield
        return
    with contextlib.ExitStack() as held:
        if trainer.loggers and isinstance(trainer.loggers[0], _NUMBERED) and _is_local(trainer.loggers[0].root_dir):
            held.enter_context(_numbered_folder(trainer.loggers))
        folders = [logger.log_dir or logger.save_dir for logger in trainer.loggers]
        for folder in filter(None, folders or [trainer.default_root_dir]):
            if _is_local(folder):
                with _cannot_be_written(folder):
                    check_writable(Path(folder))
        yield


@contextlib.contextmanager
def _numbered_folder(loggers: Sequence[Logger]) -> Iterator[None]:
    """Makes and keeps the folder of the first of some loggers."""
    free = [logger for logger in loggers if isinstance(logger, _NUMBERED) and logger._version is None]
    with contextlib.ExitStack() as held:
        folder = _look(loggers)
        with _cannot_be_written(folder):
            while True:
                missing = [path for path in (folder, *folder.parents) if not path.exists()]
                try:
                    folder.mkdir(parents=True, exist_ok=loggers[0] not in free)
                    break
                except FileExistsError:
                    # Another training was faster. They look for a free number once, when they are asked first.
                    for logger in free:
                        logger._version = None
                    taken, folder = folder, _look(loggers)
                    if folder == taken:
                        raise
            for path in reversed(missing):
                held.callback(_remove_if_empty, path)
            held.enter_context(locked(folder))
        yield


def _look(loggers: Sequence[Logger]) -> Path:
    """The first logger's folder; the others take their numbers too, before that folder makes theirs look taken."""
    first, *_ = [Path(logger.log_dir) for logger in loggers if isinstance(logger, _NUMBERED)]
    return first


def _is_local(folder: str | Path) -> bool:
    return "://" not in str(folder)


@contextlib.contextmanager
def _cannot_be_written(folder: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"The run's folder {folder} cannot be made or written: {error.strerror or error}. Make room, or choose "
            "another place for all runs: --trainer.default_root_dir DIRECTORY."
        ) from error


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
