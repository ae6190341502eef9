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


@contextlib.contextmanager
def staged_directory(
    directory: str | os.PathLike, names: Collection[str], content: str = "an export"
) -> Iterator[Path]:
    """A fresh folder beside ``directory`` that takes its place, whole, when the block ends without an exception.

    Args:
        directory: what to make or replace.
        names: what an earlier ``directory`` may hold, and so may be replaced.
        content: what these are, in words.

    Raises:
        UserError: ``directory`` cannot be written, or it holds something else.
    """
    directory = Path(directory).expanduser().resolve()
    _refuse_others(directory, names, content)
    previous = directory.with_name(f"{directory.name}.previous")
    _refuse_others(previous, names, content)
    aside = directory.with_name(f".{directory.name}.{uuid.uuid4().hex}")
    try:
        aside.mkdir(parents=True)
        yield aside
        _replace(directory, aside, previous)
    except OSError as error:
        raise UserError(f"{directory} cannot be written: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _refuse_others(directory: Path, names: Collection[str], content: str) -> None:
    try:
        others = [path.name for path in directory.iterdir() if path.name not in (*names, *_INCIDENTAL)]
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{directory} cannot be written: {error}") from error
    if others:
        raise UserError(f"{directory} holds {min(others)}, which is no part of {content}; choose another directory.")


def _replace(directory: Path, aside: Path, previous: Path) -> None:
    if not directory.exists():
        # Only a process killed between the two renames below leaves `previous` alone; it has served now.
        aside.rename(directory)
    else:
        shutil.rmtree(previous, ignore_errors=True)
        directory.rename(previous)
        try:
            aside.rename(directory)
        except BaseException:
            previous.rename(directory)
            raise
    shutil.rmtree(previous, ignore_errors=True)
