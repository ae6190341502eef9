import contextlib
import os
import subprocess
import sys

import pytest

from hps_lightning.directory_lock import locked
from hps_lightning.errors import UserError

pytest.importorskip("fcntl")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("hps_lightning.directory_lock.PATIENCE", 0)


def test_a_folder_is_locked_until_the_block_ends(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(UserError, match=rf"^{tmp_path} is being trained by another"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_killed_process_keeps_no_folder(tmp_path):
    code = f"""
import pathlib, sys
from hps_lightning.directory_lock import locked
with locked(pathlib.Path({str(tmp_path)!r})):
    print("locked", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(UserError), locked(tmp_path):
            pass
        process.kill()
    with locked(tmp_path):
        pass


def test_a_lock_that_is_soon_free_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("hps_lightning.directory_lock.PATIENCE", 60)
    held = contextlib.ExitStack()
    held.enter_context(locked(tmp_path))
    waited = []
    monkeypatch.setattr("time.sleep", lambda seconds: (waited.append(seconds), held.close()))
    with locked(tmp_path):
        assert len(waited) == 1


def test_a_lock_file_that_its_holder_removes_meanwhile_locks_nothing(tmp_path, monkeypatch):
    opened = []
    original = os.open

    def open_and_remove(path, *arguments):
        descriptor = original(path, *arguments)
        if not opened:
            os.unlink(path)
        opened.append(path)
        return descriptor

    monkeypatch.setattr("os.open", open_and_remove)
    with locked(tmp_path):
        assert len(opened) == 2
        with pytest.raises(UserError), locked(tmp_path):
            pass


def test_a_file_system_without_locks_is_no_reason_to_stop(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("hps_lightning.directory_lock.fcntl.flock", flock)
    with locked(tmp_path):
        pass
