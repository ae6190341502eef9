"""`hps fit` where the disk is full or cannot be written, from the start, for a while or to the end."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hps_lightning.checkpoint import read_checkpoint
from hps_lightning.modules import ImageClassifier
from tests.cli.conftest import TINY
from tests.disks import largest_file

FIT = ["fit", "--model=hps_06_05x", *TINY, "--trainer.max_epochs=3"]


@pytest.mark.parametrize("root", ["file/runs", "/proc/runs"])
def test_a_run_that_cannot_be_written_is_one_error_before_anything_is_trained(hps, tmp_path, root):
    (tmp_path / "file").touch()
    status, out, err = hps(*FIT, "--trainer.default_root_dir", root)
    assert status == 2
    assert err.startswith("hps: error: The run's folder ")
    assert root in err
    assert len(err.splitlines()) == 1
    assert "epoch" not in out
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def from_second_epoch(monkeypatch):
    """Calls a function when the second epoch begins."""

    def set_up(change):
        original = ImageClassifier.on_train_epoch_start

        def start(self):
            if self.current_epoch == 1:
                change()
            return original(self)

        monkeypatch.setattr(ImageClassifier, "on_train_epoch_start", start)

    return set_up


@pytest.mark.filterwarnings("ignore:.*bluebox.* cannot be written")
@pytest.mark.train
def test_a_full_disk_leaves_the_checkpoints_before_and_ends_with_one_error(hps, tmp_path, from_second_epoch):
    limit = largest_file(50_000)
    from_second_epoch(limit.__enter__)
    try:
        status, out, err = hps(*FIT)
    finally:
        limit.__exit__(None, None, None)
    assert status == 2
    assert "Traceback" not in err
    assert "epoch 3/3" in out, "the training went on"
    assert err.count("last.ckpt of epoch 2 cannot be written: File too large (it needs") == 1
    assert "hps: error: The training's checkpoints cannot be written to runs/" in err
    checkpoints = next(tmp_path.rglob("checkpoints"))
    assert read_checkpoint(checkpoints / "last.ckpt")["epoch"] == 0
    assert read_checkpoint(checkpoints / "best.ckpt")["epoch"] == 0
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.train
def test_what_cannot_be_written_lies_elsewhere_and_is_moved_back(hps, tmp_path, monkeypatch, from_second_epoch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    checkpoints = tmp_path / "runs" / "hps-digits" / "version_0" / "checkpoints"

    def block():
        checkpoints.rename(tmp_path / "before")
        checkpoints.touch()

    from_second_epoch(block)
    status, out, err = hps(*FIT)
    assert status == 2
    assert "Traceback" not in err
    moves = [line.split() for line in err.splitlines() if line.strip().startswith("mv ")]
    assert {Path(target).name for _, _, target in moves} >= {"last.ckpt"}
    assert "last checkpoint  hps-unwritten-" in out
    checkpoints.unlink()
    (tmp_path / "before").rename(checkpoints)
    for _, source, target in moves:
        shutil.move(source, target)
    assert read_checkpoint(checkpoints / "last.ckpt")["epoch"] == 2
    status, _, err = hps("fit", "--ckpt_path=last", "--trainer.max_epochs=4")
    assert status == 0, err
    assert read_checkpoint(checkpoints / "last.ckpt")["epoch"] == 3


# In a mount of its own, which ends with the shell.
_SMALL_DISK = 'mount -t tmpfs -o size="$1" none disk && cd disk || exit 99; shift; "$@"; s=$?; cp -a . ../left; exit $s'


@pytest.mark.train
def test_a_real_disk_that_is_too_small(tmp_path):
    for name in ("disk", "left", "temporary"):
        (tmp_path / name).mkdir()
    try:
        command = ["unshare", "-rm", "sh", "-c", _SMALL_DISK, "sh"]
        tried = subprocess.run([*command, "64k", "true"], cwd=tmp_path, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare to mount a small disk with")
    if tried.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {tried.stderr.strip()}")
    hps = Path(sys.executable).with_name("hps")
    # Room for the logs, and for one checkpoint of the two.
    done = subprocess.run(
        [*command, "640k", "env", f"TMPDIR={tmp_path / 'temporary'}", hps, *FIT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "cannot be written: No space left on device (it needs" in done.stderr
    assert "epoch 3/3" in done.stdout
    left = {path.name for path in (tmp_path / "left").rglob("*.ckpt")}
    saved = {path.name for path in (tmp_path / "temporary").rglob("*.ckpt")}
    assert saved
    assert left | saved >= {"best.ckpt", "last.ckpt"}
    for path in tmp_path.rglob("*.ckpt"):
        read_checkpoint(path)
    assert not list(tmp_path.rglob("*.part"))
