"""A folder that one process has for itself, until it ends, however it ends."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from hps_lightning.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[int | None]:
    """Keeps other processes from training in a folder.

    Args:
        directory: there already.

    Yields:
        A file descriptor: who inherits it keeps the lock, even if this process is killed. None on Windows,
        which has no such locks.

    Raises:
        UserError: another process trains there.
    """
    descriptor = None if fcntl is None else os.open(directory, os.O_RDONLY)
    try:
        if descriptor is not None:
            _lock(directory, descriptor)
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(directory: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"{directory} is being trained by another process; wait for its end.") from error
    except OSError:
        # Some network file systems lock no folders; a training is worth more than the lock.
        pass
