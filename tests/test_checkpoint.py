import pytest
import torch

from hps_lightning.checkpoint import load_classifier, read_checkpoint, save_weights, write_whole
from hps_lightning.errors import UserError
from hps_lightning.modules import RECORD_KEY, HPSClassifier


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    module = HPSClassifier(num_classes=3, stages=[1, 1, 1, 1], width=0.1)
    content = {
        "epoch": 4,
        "global_step": 20,
        "state_dict": module.state_dict(),
        "optimizer_states": [{"big": torch.zeros(1000)}],
        RECORD_KEY: {**module.record(), "data": {"dataset": "digits", "root": "/home/me/images"}},
    }
    path = tmp_path / "last.ckpt"
    write_whole(content, path)
    return path, module, content


def test_a_network_comes_back_with_its_weights_in_evaluation_mode(checkpoint):
    path, module, _ = checkpoint
    again = load_classifier(path)
    images = torch.randn(2, 3, 32, 32)
    assert not again.training
    assert torch.equal(again(images), module.eval()(images))


def test_weights_alone_keep_the_record_but_no_path_and_no_optimizer(checkpoint, tmp_path):
    path, _, content = checkpoint
    target = tmp_path / "deep" / "weights.ckpt"
    save_weights(path, target)
    slim = read_checkpoint(target)
    assert "optimizer_states" not in slim
    assert slim[RECORD_KEY]["data"] == {"dataset": "digits", "root": None}
    assert slim["epoch"] == 4
    assert target.stat().st_size < path.stat().st_size
    assert all(torch.equal(slim["state_dict"][key], value) for key, value in content["state_dict"].items())
    assert load_classifier(target).num_classes == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop(RECORD_KEY), "not written by `hps fit`"),
        (lambda content: content.pop("state_dict"), "not written by `hps fit`"),
        (lambda content: content[RECORD_KEY].update(format=99), "format 99"),
        (lambda content: content[RECORD_KEY]["model"].update(class_path="os.system"), "os.system"),
        (lambda content: content["state_dict"].popitem(), "do not fit"),
        (lambda content: content.update(state_dict=None), "no mapping of names"),
        (lambda content: content[RECORD_KEY].update(metrics="x"), "of its metrics is no mapping"),
        (lambda content: content[RECORD_KEY].update(metrics={"val/accuracy": "x"}), "a metric .* is no number"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_says_why(checkpoint, tmp_path, change, message):
    _, _, content = checkpoint
    change(content)
    path = tmp_path / "changed.ckpt"
    write_whole(content, path)
    with pytest.raises(UserError, match=message):
        load_classifier(path)


def test_a_truncated_file_is_named(checkpoint, tmp_path):
    path, _, _ = checkpoint
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"cut\.ckpt"):
        read_checkpoint(cut)


def test_a_missing_file_names_those_that_are_there(checkpoint):
    path, _, _ = checkpoint
    with pytest.raises(UserError, match=r"no checkpoint .*best\.ckpt.*There are: .*last\.ckpt"):
        read_checkpoint(path.with_name("best.ckpt"))


def test_a_target_that_cannot_be_written_is_one_error(checkpoint, tmp_path):
    path, _, _ = checkpoint
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        save_weights(path, tmp_path / "file" / "weights.ckpt")
