"""Writing files so that nobody ever sees half of one."""

import contextlib
import errno
import json
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_DISK_ERRORS = ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EIO", "ESTALE")
DISK_ERRORS = frozenset(getattr(errno, name) for name in _DISK_ERRORS if hasattr(errno, name))
"""What the system answers when a disk is full, read-only, forbidden or gone: nothing that a program could help."""

_PART = re.compile(r"\..+\.[0-9a-f]{32}\.part")
_ATTEMPTS = 3


@contextlib.contextmanager
def replaced_whole(path: Path) -> Iterator[Path]:
    """Gives a path beside ``path`` to write to; what lies there takes its place when the block ends.

    It reaches the disk first. Where the block raises, ``path`` stays as it was. A process that is killed in
    between leaves the file beside ``path``, which :func:`remove_leftovers` finds.

    Raises:
        OSError: the file cannot be written.
    """
    aside, descriptor = _made_aside(path)
    try:
        yield aside
        # Windows flushes no file that is open for reading alone.
        with open(aside, "rb+") as file:
            # Else a power cut can leave the new name with an empty file behind it.
            os.fsync(file.fileno())
        os.replace(aside, path)
        _flush_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        if descriptor is not None:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes a text in UTF-8, whole or not at all; see :func:`replaced_whole`.

    Raises:
        OSError: the file cannot be written.
    """
    with replaced_whole(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Writes plain values as JSON, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    write_text(path, json.dumps(content, indent=1) + "\n")


def suffixed(path: Path, suffix: str) -> Path:
    """A path with ``suffix`` added, whatever dots its name has: ``with_suffix`` would take 0.5x and 0.75x for one."""
    return path.with_name(path.name + suffix)


def remove_leftovers(folder: Path) -> list[Path]:
    """Removes what killed processes have left of :func:`replaced_whole` in a folder; returns what it removed.

    What a living process is writing is locked by it, on this machine and on others that share the folder, and
    stays. On Windows, and where a file system has no locks, everything stays.
    """
    removed: list[Path] = []
    if fcntl is None or not folder.is_dir():
        return removed
    for path in folder.iterdir():
        if not _PART.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                removed.append(path)
            finally:
                os.close(descriptor)
    return removed


def check_writable(folder: Path) -> None:
    """Tries whether a folder can be made and written, and leaves nothing behind.

    Raises:
        OSError: it cannot.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try_to_write(folder)
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def try_to_write(folder: Path) -> None:
    """Writes a file into a folder that there is, and leaves nothing behind.

    Trying is the only check that also finds full and read-only disks.

    Raises:
        OSError: it cannot be written.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(4096))


def _made_aside(path: Path) -> tuple[Path, int | None]:
    """A new file beside ``path``, and a descriptor that keeps it locked while it is open (None on Windows)."""
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    if fcntl is None:
        # There, no open file can be renamed.
        return aside, None
    for _ in range(_ATTEMPTS):
        descriptor = os.open(aside, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Somebody tidies up, and found it before it was locked.
            os.close(descriptor)
            continue
        except OSError:
            # Some network file systems have no locks; then nobody tidies up either.
            return aside, descriptor
        if os.fstat(descriptor).st_nlink:
            return aside, descriptor
        os.close(descriptor)
    return aside, None


def _flush_folder(folder: Path) -> None:
    # Without it, a power cut can undo the renaming. Not every system can: then it is as durable as it gets.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
