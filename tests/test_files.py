import signal
import subprocess
import sys

import pytest

from hps_lightning.files import check_writable, remove_leftovers, replaced_whole
from tests.disks import NEEDS_FULL_DEVICE, full_disk


def test_the_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replaced_whole(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
        assert aside.parent == path.parent
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_nothing_changes_where_the_block_raises(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write():
        with replaced_whole(path) as aside:
            aside.write_text("half")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 (nothing to match)
        write()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


# Writes half of the new content and ends there, then everything and ends before the renaming, and so on.
_KILLED = """
import os, signal, sys
from pathlib import Path
from hps_lightning.files import replaced_whole

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

path, point = Path(sys.argv[1]), sys.argv[2]
if point in ("fsync", "replace"):
    setattr(os, point, die)
with replaced_whole(path) as aside:
    aside.write_text("ne" if point == "write" else "new")
    if point == "write":
        die()
if point == "afterwards":
    die()
"""


@pytest.mark.parametrize("point", ["write", "fsync", "replace", "afterwards"])
def test_a_kill_leaves_the_old_or_the_new_file_whole_and_what_it_leaves_is_tidied_up(tmp_path, point, tally):
    path = tmp_path / "a.txt"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", _KILLED, path, point], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == ("new" if point == "afterwards" else "old")
    leftovers = [file for file in tmp_path.iterdir() if file != path]
    assert len(leftovers) == (point != "afterwards")
    assert remove_leftovers(tmp_path) == leftovers
    assert list(tmp_path.iterdir()) == [path]
    tally("kills survived")


def test_what_a_living_process_writes_and_what_is_not_ours_stays(tmp_path):
    others = [tmp_path / name for name in ("a.part", ".a.txt.part", ".a.txt.0123.part")]
    for other in others:
        other.touch()
    with replaced_whole(tmp_path / "a.txt") as aside:
        aside.write_text("new")
        assert remove_leftovers(tmp_path) == []
        assert aside.is_file()
    assert (tmp_path / "a.txt").read_text() == "new"
    assert all(other.is_file() for other in others)
    assert remove_leftovers(tmp_path / "nowhere") == []


@NEEDS_FULL_DEVICE
def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with full_disk(tmp_path, "a.txt"), pytest.raises(OSError, match="No space left"), replaced_whole(path) as aside:
        aside.write_text("new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_tried_without_a_trace(tmp_path):
    check_writable(tmp_path / "deep" / "down")
    check_writable(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):
        check_writable(tmp_path / "file" / "down")
