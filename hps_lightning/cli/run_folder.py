"""The folder of a training's run: one that can be written, and that no other training has."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from hps_lightning.callbacks.run_directory import NUMBERED, give_own_folder, has_numbered_folder
from hps_lightning.directory_lock import locked
from hps_lightning.errors import UserError
from hps_lightning.files import check_writable
from hps_lightning.runs import expanded


@contextlib.contextmanager
def own_run_folder(trainer: Trainer, otherwise: TensorBoardLogger | None = None) -> Iterator[None]:
    """Makes a run's folder and keeps it for this process; if nothing was written there, it is removed again.

    Trainings that begin at the same moment, as those of an array of jobs, get one each. Lightning by itself makes the
    folder late, so that all of them would take the same number.

    Args:
        trainer: whose loggers tell the folder. A remote one is neither made nor kept, nor is one that a logger has
            trainings share.
        otherwise: tells it where the first of the trainer's loggers gives no folder with a number, or there is none;
            the folder becomes the trainer's ``default_root_dir``. It logs nothing.

    Raises:
        UserError: it cannot be made or written, or another process trains there.
    """
    own = None
    if otherwise is not None and not has_numbered_folder(trainer) and _is_local(otherwise.root_dir):
        own = otherwise
    if own is not None and not trainer.fast_dev_run:
        give_own_folder(trainer)
    if not trainer.is_global_zero or trainer.fast_dev_run:
        yield
        return
    with contextlib.ExitStack() as held:
        numbered = [logger for logger in trainer.loggers if isinstance(logger, NUMBERED)]
        numbered += [own] if own is not None else []
        held.enter_context(_numbered_folders([logger for logger in numbered if _is_local(logger.root_dir)]))
        if own is not None:
            trainer._default_root_dir = str(_folder(own))
        folders = [logger.log_dir or logger.save_dir for logger in trainer.loggers]
        for folder in filter(None, folders or [trainer.default_root_dir]):
            if _is_local(folder):
                with _cannot_be_written(folder):
                    check_writable(Path(folder))
        yield


@contextlib.contextmanager
def _numbered_folders(loggers: Sequence[TensorBoardLogger | CSVLogger]) -> Iterator[None]:
    """Makes and keeps the loggers' folders, under the next number that is free in all of them."""
    free = [logger for logger in loggers if logger._version is None]
    for logger in free:
        # Asked once, before the folder of one makes the number look taken to the next.
        logger.version  # noqa: B018
    with contextlib.ExitStack() as held:
        while True:
            folders = {_folder(logger): logger in free for logger in loggers}
            with contextlib.ExitStack() as made:
                if all(_make(folder, of_its_own, made) for folder, of_its_own in folders.items()):
                    held.enter_context(made.pop_all())
                    break
            for logger in free:
                logger._version += 1
        yield


def _folder(logger: TensorBoardLogger | CSVLogger) -> Path:
    """A run's folder; TensorBoard's logs may lie in one below."""
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(expanded(logger.root_dir), version)


def _make(folder: Path, of_its_own: bool, held: contextlib.ExitStack) -> bool:
    """Makes and locks a folder until ``held`` ends; whether that could be done, unless another training has it."""
    with _cannot_be_written(folder):
        for path in reversed([path for path in folder.parents if not path.exists()]):
            held.callback(_remove_if_empty, path)
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir()
        except FileExistsError:
            if of_its_own:
                return False
        else:
            held.callback(_remove_if_empty, folder)
        held.enter_context(locked(folder))
    return True


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
