"""Writing files so that nobody ever sees half of one."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replaced_whole(path: Path) -> Iterator[Path]:
    """Gives a path beside ``path`` to write to; what lies there takes its place when the block ends.

    It reaches the disk first. Where the block raises, ``path`` stays as it was.

    Raises:
        OSError: the file cannot be written.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield aside
        with open(aside, "rb") as file:
            # Else a power cut can leave the new name with an empty file behind it.
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
