"""A folder that one process has for itself, until it ends, however it ends."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from hps_lightning.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_FILE = ".lock"
"""What is locked in a folder: network file systems lock files for all hosts, but folders for each of them alone."""

PATIENCE = 10.0
"""Seconds to wait for a lock. A killed process leaves it to those that loaded its images, which notice after five."""

_PERIOD = 0.2


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
        OSError: nothing can be written there.
    """
    if fcntl is None:
        yield None
        return
    descriptor = _take(directory)
    try:
        yield descriptor
    finally:
        with contextlib.suppress(OSError):
            (directory / LOCK_FILE).unlink()
        os.close(descriptor)


def _take(directory: Path) -> int:
    end = time.monotonic() + PATIENCE
    while True:
        descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            if time.monotonic() > end:
                raise UserError(f"{directory} is being trained by another process; wait for its end.") from error
            time.sleep(_PERIOD)
        except OSError:
            # Some network file systems have no locks; a training is worth more than one.
            return descriptor
        else:
            # Whoever had it may have removed the file since it was opened here; others would lock a new one.
            if os.fstat(descriptor).st_nlink:
                return descriptor
            os.close(descriptor)
