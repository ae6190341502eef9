"""Disks that take nothing, made without the right to mount any."""

import contextlib
import resource
import uuid
from pathlib import Path

import pytest

from hps_lightning import files

NEEDS_FULL_DEVICE = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


@contextlib.contextmanager
def largest_file(size):
    """Lets no file grow beyond ``size`` bytes: the system writes that far and then answers EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def full_disk(folder, *names):
    """Lets ``replaced_whole`` find the disk full (ENOSPC, from the system itself) for some names in a folder."""
    real = uuid.uuid4

    def number():
        made = real()
        for name in names:
            with contextlib.suppress(OSError):
                (folder / f".{name}.{made.hex}.part").symlink_to("/dev/full")
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.uuid, "uuid4", number)
        try:
            yield
        finally:
            for link in folder.glob(".*.part"):
                if link.is_symlink():
                    link.unlink()
