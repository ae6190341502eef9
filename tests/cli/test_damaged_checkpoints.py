"""Damaged checkpoints are named, and the newest sound one of the run is taken in place of "last" and "best"."""

import io
import os
import zipfile

import pytest
import torch

from hps_lightning.checkpoint import write_whole
from hps_lightning.cli import seeds
from hps_lightning.cli.damaged_checkpoints import open_checkpoint, open_or_replace
from hps_lightning.errors import UserError
from hps_lightning.modules import RECORD_KEY, HPSClassifier
from hps_lightning.seed_group import SeedGroup
from tests.cli.conftest import TINY


def make(path, epoch, accuracy=None, resumable=True):
    module = HPSClassifier(num_classes=3, stages=[1, 1, 1, 1], width=0.1)
    record = {**module.record(), "metrics": {} if accuracy is None else {"val/accuracy": accuracy}}
    content = {"epoch": epoch, "global_step": 10 * (epoch + 1), "state_dict": module.state_dict(), RECORD_KEY: record}
    write_whole({**content, "optimizer_states": []} if resumable else content, path)
    return path


def truncate(content):
    return content[: len(content) // 2]


def lose_the_end(content):
    return content[:-20]


def empty(content):
    return b""


def zeros(content):
    return bytes(len(content))


def overwrite_the_end(content):
    return content[: len(content) // 2] + bytes(len(content) - len(content) // 2)


def flip_a_weight(content):
    # In the largest tensor, where PyTorch does not look at checksums.
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        tensors = [member for member in archive.infolist() if "/data/" in member.filename]
        data = archive.read(max(tensors, key=lambda member: member.file_size))
    changed = bytearray(content)
    changed[content.index(data) + len(data) // 2] ^= 1
    return bytes(changed)


def flip_the_description(content):
    changed = bytearray(content)
    changed[content.index(b"state_dict")] ^= 1
    return bytes(changed)


DAMAGES = [truncate, lose_the_end, empty, zeros, overwrite_the_end, flip_a_weight, flip_the_description]


def damage(path, how=truncate):
    path.write_bytes(how(path.read_bytes()))


@pytest.fixture
def run(tmp_path):
    """The checkpoints of a run: the last of epoch 9, the best of epoch 4, its weights, and one more."""
    folder = tmp_path / "net" / "version_0" / "checkpoints"
    make(folder / "last.ckpt", 8, 0.5)
    make(folder / "best.ckpt", 3, 0.9)
    make(folder / "weights.ckpt", 3, 0.9, resumable=False)
    make(folder / "mine.ckpt", 5, 0.6)
    # Copied later than the others, and no newer for it.
    os.utime(folder / "best.ckpt", (2e9, 2e9))
    return folder


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_last_one_is_named_and_the_newest_sound_one_taken(run, tmp_path, capsys, how, tally):
    assert open_checkpoint("last", tmp_path)[0] == run / "last.ckpt"
    assert not capsys.readouterr().err
    damage(run / "last.ckpt", how)
    path, content = open_checkpoint("last", tmp_path, resumable=True)
    assert (path, content["epoch"]) == (run / "mine.ckpt", 5)
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert f"{run / 'last.ckpt'} is damaged" in said
    assert f"Taking {run / 'mine.ckpt'} instead" in said
    assert "epoch 6" in said
    tally("bad inputs tried")


def test_pytorch_alone_would_have_read_the_changed_weight(run):
    damage(run / "last.ckpt", flip_a_weight)
    torch.load(run / "last.ckpt", weights_only=True)


def test_a_training_goes_on_only_from_what_holds_its_state(run, tmp_path, capsys):
    make(run / "weights.ckpt", 7, resumable=False)
    damage(run / "last.ckpt")
    assert open_checkpoint("last", tmp_path)[0] == run / "weights.ckpt"
    assert open_checkpoint("last", tmp_path, resumable=True)[0] == run / "mine.ckpt"
    for name in ("mine.ckpt", "best.ckpt"):
        damage(run / name)
    with pytest.raises(UserError, match=r"last\.ckpt is damaged.*no other checkpoint from which its training could go"):
        open_checkpoint("last", tmp_path, resumable=True)
    damage(run / "weights.ckpt")
    with pytest.raises(UserError, match=r"last\.ckpt is damaged.*no other checkpoint that is sound"):
        open_checkpoint("last", tmp_path)


def test_the_weights_take_the_place_of_the_damaged_best_one(run, tmp_path, capsys):
    damage(run / "best.ckpt")
    assert open_checkpoint("best", tmp_path)[0] == run / "weights.ckpt"
    assert "the best sound one of its run, of epoch 4" in capsys.readouterr().err
    assert open_checkpoint("best", tmp_path, resumable=True)[0] == run / "mine.ckpt"


def test_a_missing_last_one_is_named_too(run, tmp_path, capsys):
    (run / "last.ckpt").unlink()
    assert open_checkpoint("last", tmp_path)[0] == run / "mine.ckpt"
    assert "last.ckpt is missing" in capsys.readouterr().err
    assert open_or_replace(run / "last.ckpt", resumable=True)[0] == run / "mine.ckpt"


def test_a_path_that_was_typed_is_never_replaced(run, tmp_path):
    damage(run / "last.ckpt")
    with pytest.raises(UserError, match=r"last\.ckpt is damaged.* beside it is of epoch 6: --ckpt_path .*mine\.ckpt"):
        open_checkpoint(str(run / "last.ckpt"), tmp_path)
    for path in run.iterdir():
        damage(path)
    with pytest.raises(UserError, match=r"last\.ckpt is damaged") as caught:
        open_checkpoint(str(run / "last.ckpt"), tmp_path)
    assert "beside" not in str(caught.value)


def test_what_is_whole_but_refused_is_never_replaced(run, tmp_path):
    torch.save({"state_dict": {}, "epoch": 99, "call": torch.nn.ReLU()}, run / "last.ckpt")
    with pytest.raises(UserError, match=r"last\.ckpt is refused"):
        open_checkpoint("last", tmp_path)


def test_the_training_of_a_seed_goes_on_from_the_newest_sound_one(tmp_path, capsys):
    group = SeedGroup(tmp_path / "seeds_0", [], [7])
    last = make(group.last_checkpoint(7), 3)
    best = make(last.with_name("best.ckpt"), 2)
    assert seeds._training(group, 7)[:2] == ["fit", f"--ckpt_path={last}"]
    damage(last)
    assert seeds._training(group, 7)[:2] == ["fit", f"--ckpt_path={best}"]


@pytest.mark.train
def test_every_command_goes_on_with_the_newest_sound_one(hps, tmp_path):
    status, _, err = hps("fit", "--model=hps_06_05x", *TINY, "--trainer.max_epochs=2")
    assert status == 0, err
    last = next(tmp_path.rglob("last.ckpt"))
    whole = torch.load(last, weights_only=True)
    damage(last, flip_a_weight)
    for command in ("test", "validate"):
        status, out, err = hps(command, "--ckpt_path=last")
        assert status == 0, err
        assert "last.ckpt is damaged" in err
        assert "Taking" in err
        assert "version_0/checkpoints/" in out.split("checkpoint", 1)[1]
    bundle = tmp_path / "bundle"
    status, _, err = hps("export", "--ckpt_path=last", "--output", bundle, "--formats", "pytorch")
    assert status == 0, err
    assert "last.ckpt is damaged" in err
    status, _, err = hps("fit", f"--ckpt_path={last}")
    assert status == 2
    assert "best.ckpt" in err
    status, _, err = hps("fit", "--ckpt_path=last")
    assert status == 0, err
    assert "Taking" in err
    again = torch.load(last, weights_only=True)
    assert again["epoch"] == whole["epoch"] == 1
    assert all(torch.equal(again["state_dict"][name], value) for name, value in whole["state_dict"].items())
