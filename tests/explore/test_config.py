import pytest
import yaml

from hps_lightning.errors import UserError
from hps_lightning.explore.config import read_exploration

BASE = {"base": {"config": "quickstart.yaml"}, "space": {"model.width": [0.1, 0.2]}}


def read(tmp_path, *options, **changes):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**BASE, **changes}, sort_keys=False))
    return read_exploration(str(path), options)


@pytest.mark.parametrize("name", ["explore.yaml", "explore_digits"])
def test_installed_configs_can_be_read(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    exploration = read_exploration(name)
    assert exploration.study == name.removesuffix(".yaml")
    assert exploration.pruning.name == "dominated"


def test_what_is_left_out_has_defaults(tmp_path):
    exploration = read(tmp_path)
    assert exploration.study == "mine"
    assert exploration.objectives == ["error"]
    assert exploration.pruning.name == "median"
    assert read(tmp_path, objectives=["error", "macs"]).pruning.name == "dominated"
    assert read(tmp_path, objectives=["macs"], limits={"error": 0.1}).pruning.name == "none"


def test_base_is_the_content_of_its_configs_then_options(tmp_path):
    (tmp_path / "more.yaml").write_text("trainer: {max_epochs: 3}\n")
    base = {
        "config": ["quickstart.yaml", str(tmp_path / "more.yaml")],
        "options": {"model.width": 0.1, "model.stages": [1, 1], "model.activation": "elu", "lr_scheduler": None},
    }
    tokens = read(tmp_path, "--seed_everything=7", base=base).base
    assert tokens[:2] == ["--optimizer=null", "--lr_scheduler=null"]
    assert '"lr": 0.1' in tokens[2]
    assert tokens[3] == '--config={"trainer": {"max_epochs": 3}}'
    assert tokens[4:] == [
        "--model.width=0.1",
        "--model.stages=[1, 1]",
        "--model.activation=elu",
        "--lr_scheduler=null",
        "--seed_everything=7",
    ]


def test_limits_may_be_written_in_powers_of_ten(tmp_path):
    exploration = read(tmp_path, limits={"size_bytes": "1e5", "latency_ms": 2})
    assert exploration.limits == {"size_bytes": 1e5, "latency_ms": 2.0}
    assert exploration.quantities == ["error", "size_bytes", "latency_ms"]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"spaces": {}}, ["'spaces'", "space"]),
        ({"space": {}}, ["nothing in it"]),
        ({"objectives": ["accuracy"]}, ["'accuracy'", "error"]),
        ({"objectives": []}, ["objectives"]),
        ({"objectives": ["error", "error"]}, ["twice"]),
        ({"limits": {"size": 3}}, ["'size'", "size_bytes"]),
        ({"limits": {"size_bytes": "small"}}, ["size_bytes", "small"]),
        ({"limits": {"size_bytes": 0}}, ["size_bytes", "0"]),
        ({"limits": [3]}, ["limits", "[3]"]),
        ({"trials": 0}, ["trials", "0"]),
        ({"trials": 1.5}, ["trials", "1.5"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"sampler": "grid"}, ["'grid'", "tpe"]),
        ({"pruner": "mean"}, ["'mean'", "median"]),
        ({"pruner": {"name": "dominated", "patience": 3}}, ["patience"]),
        ({"pruner": {"name": "dominated", "margin": 3}}, ["margin", "3"]),
        ({"pruner": "median", "objectives": ["error", "macs"]}, ["median", "dominated"]),
        ({"base": {}}, ["base", "config"]),
        ({"base": {"config": "nowhere.yaml"}}, ["nowhere.yaml"]),
        ({"base": {"config": "quickstart.yaml", "optoins": {}}}, ["optoins"]),
        ({"study": "a/b"}, ["a/b"]),
    ],
)
def test_a_mistake_is_named(tmp_path, changes, parts):
    with pytest.raises(UserError) as error:
        read(tmp_path, **changes)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: [", "model: {}"])
def test_a_file_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=r"x\.yaml"):
        read_exploration(str(tmp_path / "x.yaml"))
