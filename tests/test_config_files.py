"""Tests of where configs are found, and of what is none."""

import pytest

from hps_lightning.config_files import find_config, read_config, replaced_whole_by
from hps_lightning.errors import UserError


def test_config_is_found_here_then_in_configs_then_among_the_installed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    installed = find_config("hps.yaml")
    assert installed.parent.name == "configs"
    assert installed.is_absolute()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "hps.yaml").write_text("model: x")
    assert find_config("hps.yaml").read_text() == "model: x"
    (tmp_path / "hps.yaml").write_text("model: y")
    assert find_config("hps").read_text() == "model: y"


def test_unknown_config_names_what_there_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"'hsp\.yaml'.*Did you mean hps\.yaml.*quickstart\.yaml"):
        find_config("hsp.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is empty"),
        ("- 1\n", r"it holds \[1\]"),
        ("config: other.yaml\n", "--config A --config B"),
        ("data: {a b: 1}\n", "a key must be a text without spaces, got 'a b'"),
        ("1: 2\n", "a key must be a text without spaces, got 1"),
        ("data: [{a..b: 1}]\n", r"got 'a\.\.b'"),
    ],
)
def test_what_is_no_config_is_one_error_that_names_the_file(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as raised:
        read_config(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_a_config_replaces_the_entries_whose_classes_it_names():
    sgd = {"class_path": "SGD"}
    assert replaced_whole_by({"optimizer": sgd, "lr_scheduler": sgd, "model": sgd}) == ["optimizer", "lr_scheduler"]
    assert replaced_whole_by({"optimizer": {"init_args": {"lr": 0.1}}, "lr_scheduler": None}) == []
