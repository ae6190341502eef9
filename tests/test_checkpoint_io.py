"""What becomes of checkpoints when the process is killed or the disk takes nothing."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from hps_lightning import checkpoint_io
from hps_lightning.checkpoint import read_checkpoint
from hps_lightning.checkpoint_io import SafeCheckpointIO, safe_checkpoints, use_safe_checkpoints
from hps_lightning.errors import UserError
from hps_lightning.modules import RECORD_KEY, HPSClassifier
from tests.callbacks.tiny import LIGHTNING_WARNINGS, TinyData, tiny, tiny_trainer
from tests.disks import NEEDS_FULL_DEVICE, full_disk, largest_file

pytestmark = list(LIGHTNING_WARNINGS)


def made(epoch=0, **more):
    torch.manual_seed(epoch)
    module = HPSClassifier(num_classes=3, stages=[1, 1, 1, 1], width=0.1)
    content = {"epoch": epoch, "global_step": 10 * epoch, "state_dict": module.state_dict()}
    return {**content, RECORD_KEY: module.record(), **more}


def epoch_of(path):
    return read_checkpoint(path)["epoch"]


def test_a_checkpoint_is_written_whole_and_read_back(tmp_path):
    path = tmp_path / "deep" / "last.ckpt"
    writer = SafeCheckpointIO()
    writer.save_checkpoint(made(3), path)
    assert writer.load_checkpoint(path)["epoch"] == 3
    assert list(path.parent.iterdir()) == [path]
    writer.remove_checkpoint(path)
    assert not list(path.parent.iterdir())
    assert writer.complaint() is None


class Payload:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


def test_nothing_is_executed_even_where_the_user_asks_for_it(tmp_path):
    path, trace = tmp_path / "evil.ckpt", tmp_path / "trace"
    torch.save(made(payload=Payload(trace)), path)
    with pytest.raises(UserError, match="refused"):
        SafeCheckpointIO().load_checkpoint(path, weights_only=False)
    assert not trace.exists()


# Children are killed at several points of a write; then others write on and on, for the caller to kill.
_KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from hps_lightning.checkpoint_io import SafeCheckpointIO

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

def half(path, content, write=Path.write_bytes):
    write(path, content[: len(content) // 2])
    die()

folder = Path(sys.argv[1])
content = torch.load(folder / "new.ckpt", weights_only=True)
points = {"nothing": (Path, "write_bytes", die), "half": (Path, "write_bytes", half)}
points |= {"unflushed": (os, "fsync", die), "unnamed": (os, "replace", die)}
for name, change in points.items():
    child = os.fork()
    if not child:
        setattr(*change)
        SafeCheckpointIO().save_checkpoint(content, folder / name / "last.ckpt")
        os._exit(0)
    print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
for number in range(1, 21):
    child = os.fork()
    if not child:
        content["epoch"] = 1000 * number
        while True:
            SafeCheckpointIO().save_checkpoint(content, folder / "anytime" / "last.ckpt")
            if content["epoch"] == 1000 * number:
                print(os.getpid(), flush=True)
            content["epoch"] += 1
    os.waitpid(child, 0)
    sys.stdin.readline()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_kill_at_any_time_leaves_a_whole_checkpoint(tmp_path, tally):
    points = ("nothing", "half", "unflushed", "unnamed")
    SafeCheckpointIO().save_checkpoint(made(5), tmp_path / "new.ckpt")
    for name in (*points, "anytime"):
        SafeCheckpointIO().save_checkpoint(made(4), tmp_path / name / "last.ckpt")
    command = [sys.executable, "-W", "ignore", "-c", _KILLED, tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        for name in points:
            assert process.stdout.readline().split() == [name, str(-signal.SIGKILL)]
            path = tmp_path / name / "last.ckpt"
            assert epoch_of(path) == 4
            assert len(list(path.parent.iterdir())) == 2, "what was being written is still there"
            # The next training.
            SafeCheckpointIO().save_checkpoint(made(6), path)
            assert epoch_of(path) == 6
            assert list(path.parent.iterdir()) == [path]
            tally("kills survived")
        path = tmp_path / "anytime" / "last.ckpt"
        instants = random.Random(0)
        for number in range(1, 21):
            child = int(process.stdout.readline())
            time.sleep(instants.uniform(0, 0.05))
            os.kill(child, signal.SIGKILL)
            assert epoch_of(path) // 1000 == number
            process.stdin.write("\n")
            process.stdin.flush()
            tally("kills survived")


@NEEDS_FULL_DEVICE
def test_a_full_disk_keeps_the_former_and_the_new_one_is_written_as_soon_as_there_is_room(tmp_path, capsys):
    last, best = tmp_path / "last.ckpt", tmp_path / "best.ckpt"
    writer = SafeCheckpointIO()
    writer.save_checkpoint(made(0), last)
    with full_disk(tmp_path, "last.ckpt", "best.ckpt"):
        for epoch in (1, 2):
            writer.save_checkpoint(made(epoch), last)
        writer.save_checkpoint(made(2), best)
        assert epoch_of(last) == 0
        assert [path for path in tmp_path.iterdir() if not path.is_symlink()] == [last]
    said = capsys.readouterr().err
    assert said.count("last.ckpt of epoch 2 cannot be written: No space left on device (it needs") == 1
    assert said.count("best.ckpt of epoch 3 cannot be written") == 1
    assert len(said.splitlines()) == 2, "each is said once"
    writer.save_checkpoint(made(3), last)
    assert (epoch_of(last), epoch_of(best)) == (3, 2)
    assert "best.ckpt could be written again; it is of epoch 3" in capsys.readouterr().err
    assert writer.complaint() is None


@NEEDS_FULL_DEVICE
def test_nothing_is_removed_before_what_takes_its_place_is_written(tmp_path, capsys):
    first, second = tmp_path / "epoch=0.ckpt", tmp_path / "epoch=1.ckpt"
    writer = SafeCheckpointIO()
    writer.save_checkpoint(made(0), first)
    with full_disk(tmp_path, second.name):
        writer.save_checkpoint(made(1), second)
        writer.remove_checkpoint(first)
        assert epoch_of(first) == 0
    writer.save_checkpoint(made(1), second)
    assert [path.name for path in tmp_path.iterdir()] == [second.name]


@NEEDS_FULL_DEVICE
def test_what_cannot_be_written_at_the_end_is_saved_elsewhere(tmp_path, capsys, monkeypatch):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    (tmp_path / "in the way").touch()
    folders = [tmp_path / "in the way", elsewhere]
    monkeypatch.setattr(checkpoint_io, "_other_folders", lambda: folders)
    writer = SafeCheckpointIO()
    writer.save_checkpoint(made(0), run / "last.ckpt")
    with full_disk(run, "last.ckpt"):
        writer.save_checkpoint(made(7), run / "last.ckpt")
        writer.teardown()
    saved = writer.rescued[run / "last.ckpt"]
    assert saved.is_relative_to(elsewhere)
    assert epoch_of(saved) == 7
    assert epoch_of(run / "last.ckpt") == 0
    assert writer.whereabouts(str(run / "last.ckpt")) == str(saved)
    assert writer.whereabouts("another.ckpt") == "another.ckpt"
    assert f"mv {saved} {run / 'last.ckpt'}" in writer.complaint()
    assert "No space left" in writer.complaint()

    folders.pop()
    writer = SafeCheckpointIO()
    with full_disk(run, "best.ckpt"):
        writer.save_checkpoint(made(7), run / "best.ckpt")
        writer.teardown()
    assert writer.whereabouts(str(run / "best.ckpt")) is None
    assert "TMPDIR" in writer.complaint()


def test_a_folder_that_was_removed_is_made_again(tmp_path, capsys):
    path = tmp_path / "run" / "last.ckpt"
    writer = SafeCheckpointIO()
    writer.save_checkpoint(made(0), path)
    path.unlink()
    path.parent.rmdir()
    writer.save_checkpoint(made(1), path)
    assert epoch_of(path) == 1
    assert not capsys.readouterr().err


class Disk(Callback):
    """Takes no file of more than ``size`` bytes in the epochs ``full``."""

    def __init__(self, size, full):
        self.size, self.full, self._limit = size, full, None

    def on_train_epoch_start(self, trainer, pl_module):
        self.release()
        if trainer.current_epoch in self.full:
            self._limit = largest_file(self.size)
            self._limit.__enter__()

    def release(self):
        if self._limit is not None:
            self._limit.__exit__(None, None, None)
            self._limit = None


@pytest.mark.train
@pytest.mark.parametrize("full", [(1,), (1, 2)], ids=["for a while", "to the end"])
def test_a_training_survives_a_disk_that_fills_up(tmp_path, capsys, monkeypatch, full):
    monkeypatch.setattr(checkpoint_io, "_other_folders", lambda: [])
    best = ModelCheckpoint(tmp_path, "best", monitor="val/accuracy", mode="max", enable_version_counter=False)
    last = ModelCheckpoint(tmp_path, "last", enable_version_counter=False, save_on_train_epoch_end=True)
    disk = Disk(10_000, full)
    trainer = tiny_trainer(tmp_path, disk, best, last, enable_checkpointing=True, logger=False)
    use_safe_checkpoints(trainer)
    try:
        # The second epoch is the best one, and cannot be written when it ends.
        trainer.fit(tiny([0.1, 0.9, 0.2]), TinyData())
    finally:
        disk.release()
    files = {path.name: epoch_of(path) for path in tmp_path.glob("*.ckpt")}
    assert files == ({"best.ckpt": 1, "last.ckpt": 2} if len(full) == 1 else {"best.ckpt": 0, "last.ckpt": 0})
    assert not list(tmp_path.glob(".*.part"))
    assert capsys.readouterr().err.count("cannot be written: File too large") == 2
    assert (safe_checkpoints(trainer).complaint() is None) == (len(full) == 1)


def test_another_one_that_the_user_brings_is_left_alone(tmp_path):
    for given in (AsyncCheckpointIO(), type("Other", (TorchCheckpointIO,), {})()):
        trainer = tiny_trainer(tmp_path, logger=False, plugins=[given])
        use_safe_checkpoints(trainer)
        assert trainer.strategy.checkpoint_io is given
        assert safe_checkpoints(trainer) is None
