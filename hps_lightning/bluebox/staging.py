"""Folders that take their place whole or not at all."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path

from hps_lightning.errors import UserError

# What a file manager, or Python, may leave in any folder that it reads.
_INCIDENTAL = (".DS_Store", "__pycache__")


def write_file(path: Path, content: bytes) -> None:
    """Writes a file that has reached the disk when this returns."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def destination(directory: str | os.PathLike) -> Path:
    """The folder that a path names for :func:`staged_directory`, with ``~`` and links followed.

    Raises:
        UserError: it names none, such as ``~`` of an unknown user or links that go in a circle; or it
            is the current folder or holds it, and whoever works there would be left in one that is gone.
    """
    try:
        path = Path(directory).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{directory} cannot be written: {error}") from error
    # Where the current folder is gone already, nobody is left in it.
    with contextlib.suppress(OSError):
        here = Path.cwd()
        if path in (here, *here.parents):
            raise UserError(f"{path} cannot be written: it is the current folder, or holds it; choose another one.")
    return path


@contextlib.contextmanager
def staged_directory(
    directory: str | os.PathLike, names: Collection[str], content: str = "an export"
) -> Iterator[Path]:
    """A fresh folder beside ``directory`` that takes its place, whole, when the block ends without an exception.

    Nothing is deleted but the earlier ``directory``. Should the process be killed in the instant in
    which one takes the other's place, the earlier one is found in ``.<directory>.<letters>.previous``.

    Args:
        directory: what to make or replace.
        names: what an earlier ``directory`` may hold, and so may be replaced.
        content: what these are, in words.

    Raises:
        UserError: ``directory`` cannot be written (see :func:`destination`), or it holds something else.
    """
    directory = destination(directory)
    refuse_others(directory, names, content)
    aside = directory.with_name(f".{directory.name}.{uuid.uuid4().hex}")
    try:
        aside.mkdir(parents=True)
        yield aside
        _replace(directory, aside)
    except OSError as error:
        raise UserError(f"{directory} cannot be written: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def refuse_others(directory: Path, names: Collection[str], content: str) -> None:
    """Refuses a folder that holds anything but files of ``names`` and what is left in any folder.

    Raises:
        UserError: it does, or it cannot be read.
    """
    try:
        others = [path.name for path in directory.iterdir() if path.name not in (*names, *_INCIDENTAL)]
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{directory} cannot be written: {error}") from error
    if others:
        raise UserError(f"{directory} holds {min(others)}, which is no part of {content}; choose another directory.")


def _replace(directory: Path, aside: Path) -> None:
    if not directory.exists():
        aside.rename(directory)
        return
    # A name of its own: whatever else lies there is not ours to delete.
    previous = aside.with_name(f"{aside.name}.previous")
    directory.rename(previous)
    try:
        aside.rename(directory)
    except BaseException:
        previous.rename(directory)
        raise
    shutil.rmtree(previous, ignore_errors=True)
