import hashlib
import json
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
from torch import nn

from hps_lightning.bluebox import (
    bare_network,
    board_weights,
    describe,
    export_weights,
    load_manifest,
    staged_directory,
    weights,
)
from hps_lightning.errors import UserError
from hps_lightning.modules import CLASSIFIERS, HPSClassifier

DATA = {
    "dataset": "made",
    "classes": ["bird", "cat", "dog"],
    "mean": (0.1, 0.2, 0.3),
    "std": (0.4, 0.5, 0.6),
    "image_size": [3, 32, 32],
    "protocol": "holdout",
}


@pytest.fixture
def classifier():
    return HPSClassifier(num_classes=3, stages=[1, 1, 1, 1], width=0.1)


def record(classifier, **changes):
    return {
        **classifier.record(),
        **DATA,
        "epoch": 7,
        "metrics": {"val/accuracy": 0.5, "test/accuracy": 0.4},
        **changes,
    }


def export(classifier, directory, **changes):
    return export_weights(
        classifier.network.state_dict(), directory, describe(classifier.network, record(classifier, **changes))
    )


def read(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_the_file_is_legacy_and_holds_what_the_network_holds(classifier, tmp_path):
    assert export(classifier, tmp_path / "best") == tmp_path / "best"
    file = tmp_path / "best" / "weights.pt"
    assert not zipfile.is_zipfile(file)
    loaded = torch.load(file, weights_only=True)
    expected = classifier.network.state_dict()
    assert list(loaded) == list(expected)
    for name, value in loaded.items():
        assert torch.equal(value, expected[name]), name
    assert {value.dtype for value in loaded.values()} == {torch.float32, torch.int64}


def test_tensors_are_contiguous_in_the_order_of_their_sides(classifier):
    state = classifier.network.state_dict()
    assert any(not value.is_contiguous() for value in state.values()), "training runs channels-last"
    for name, value in board_weights(state).items():
        assert value.stride() == torch.empty(value.shape).stride(), name
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size(), name
        assert value.device.type == "cpu"
        assert value.data_ptr() != state[name].data_ptr() or not value.numel(), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_becomes_float32(classifier, dtype):
    converted = board_weights(classifier.network.to(dtype).state_dict())
    for name, value in converted.items():
        assert value.dtype == (torch.int64 if name.endswith("num_batches_tracked") else torch.float32), name


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "network.", "_orig_mod.", "network._orig_mod.", "module.model."]
)
def test_the_names_are_the_bare_networks(classifier, prefix):
    state = classifier.network.state_dict()
    assert list(board_weights({prefix + name: value for name, value in state.items()})) == list(state)


def test_a_networks_own_part_called_model_keeps_its_name():
    assert list(board_weights({"model.weight": torch.ones(1), "head.weight": torch.ones(1)})) == [
        "model.weight",
        "head.weight",
    ]
    assert board_weights({}) == {}


def test_wrappers_are_seen_through(classifier):
    network = classifier.network
    compiled = torch.compile(network)
    assert bare_network(nn.DataParallel(compiled)) is network
    assert describe(compiled, record(classifier)) == describe(network, record(classifier))


def test_manifest(classifier, tmp_path):
    manifest = describe(classifier.network, record(classifier), "val/accuracy")
    export_weights(classifier.network.state_dict(), tmp_path / "best", manifest)
    content = (tmp_path / "best" / "weights.pt").read_bytes()
    loaded = load_manifest(tmp_path / "best")
    versions = loaded.pop("versions")
    assert versions["torch"] == torch.__version__
    assert loaded == {
        "format": 1,
        "network": {
            "class": "HighPerformanceSqueezeNext",
            "file": "squeezenext.py",
            "arguments": {
                "num_classes": 3,
                "stages": [1, 1, 1, 1],
                "width": 0.1,
                "resolution": 1.0,
                "activation": "relu",
                "dropout": 0.0,
                "inplace": True,
            },
        },
        "input": {
            "shape": [3, 32, 32],
            "layout": "channels x height x width",
            "channel_order": "RGB",
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
            "normalisation": "(value / 255 - mean) / std, channel by channel, of RGB values from 0 to 255",
        },
        "dataset": "made",
        "classes": ["bird", "cat", "dog"],
        "accuracy": {
            "metric": "val/accuracy",
            "value": 0.5,
            "protocol": "holdout",
            "measured_on": "training images that were held out",
        },
        "epoch": 7,
        "weights": {
            "file": "weights.pt",
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        },
    }


@pytest.mark.parametrize(
    ("metric", "protocol", "value", "measured_on"),
    [
        ("val/accuracy", "paper", 0.5, "the test images"),
        ("val/accuracy", "holdout", 0.5, "training images that were held out"),
        ("val/accuracy", "ones own", 0.5, "the validation images"),
        ("test/accuracy", "full", 0.4, "the test images"),
    ],
)
def test_an_accuracy_says_what_it_was_measured_on(classifier, metric, protocol, value, measured_on):
    accuracy = describe(classifier.network, record(classifier, protocol=protocol), metric)["accuracy"]
    assert accuracy == {"metric": metric, "value": value, "protocol": protocol, "measured_on": measured_on}


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_the_arguments_rebuild_the_network_without_drawing_random_numbers(family, tmp_path):
    classifier = CLASSIFIERS[family](num_classes=3)
    state = torch.get_rng_state()
    arguments = describe(classifier.network, record(classifier))["network"]["arguments"]
    assert torch.equal(torch.get_rng_state(), state)
    assert json.loads(json.dumps(arguments)) == arguments
    type(classifier.network)(**arguments).load_state_dict(board_weights(classifier.network.state_dict()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"init_args": {"num_classes": 3, "stages": [1, 1, 1, 1], "width": 0.2}}}, "is another network"),
        ({"model": {"init_args": {}}}, "is another network"),
        ({"model": {"init_args": {"num_classes": 3, "width": -1}}}, "width must be greater than 0"),
        ({"model": {"init_args": {"num_classes": 3, "width": None}}}, "cannot be rebuilt"),
        ({"classes": ["bird", "cat"]}, "3 classes apart, but made has 2"),
    ],
)
def test_a_record_of_another_network_is_refused(classifier, changes, message):
    with pytest.raises(UserError, match=message):
        describe(classifier.network, record(classifier, **changes))


def test_a_record_without_data_is_refused(classifier):
    with pytest.raises(UserError, match="nothing tells dataset, classes, mean, std, image_size, protocol"):
        describe(classifier.network, classifier.record())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(classifier, tmp_path, value):
    classifier.network.classifier.bias.data[1] = value
    with pytest.raises(UserError, match=r"classifier\.bias hold NaN or infinite"):
        export(classifier, tmp_path / "best")
    assert list(tmp_path.iterdir()) == []


def test_an_export_replaces_the_one_before(classifier, tmp_path):
    export(classifier, tmp_path / "best", epoch=1)
    (tmp_path / "best" / ".DS_Store").touch()
    classifier.network.classifier.bias.data.fill_(4)
    export(classifier, tmp_path / "best", epoch=2)
    assert load_manifest(tmp_path / "best")["epoch"] == 2
    loaded = torch.load(tmp_path / "best" / "weights.pt", weights_only=True)
    assert loaded["classifier.bias"].tolist() == [4, 4, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def fail(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("step", ["weights", "manifest", "first rename", "second rename"])
def test_a_failure_at_any_step_leaves_the_old_export(classifier, tmp_path, monkeypatch, step):
    export(classifier, tmp_path / "best", epoch=1)
    before = read(tmp_path / "best")
    classifier.network.classifier.bias.data.fill_(4)
    calls = []

    def fail_at(count, function):
        def wrapper(*arguments):
            calls.append(arguments)
            return fail() if len(calls) == count else function(*arguments)

        return wrapper

    with monkeypatch.context() as patch:
        if step in ("weights", "manifest"):
            patch.setattr(weights, "_write", fail_at(1 if step == "weights" else 2, weights._write))
        else:
            path_type = type(tmp_path)
            patch.setattr(path_type, "rename", fail_at(1 if step == "first rename" else 2, path_type.rename))
        with pytest.raises(UserError, match=r"best cannot be written: .*No space left"):
            export(classifier, tmp_path / "best", epoch=2)
    assert len(calls) >= 1
    assert read(tmp_path / "best") == before
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    export(classifier, tmp_path / "best", epoch=3)
    assert load_manifest(tmp_path / "best")["epoch"] == 3


KILLED = """
import json, os, pathlib, sys, torch
from hps_lightning.bluebox import weights

point, directory = sys.argv[1], pathlib.Path(sys.argv[2])
owner = pathlib.Path if point == "rename" else weights
original = getattr(owner, point)

def die(*arguments):
    original(*arguments)
    os._exit(9)

setattr(owner, point, die)
manifest = {**json.loads((directory / "manifest.json").read_text()), "epoch": 2}
state = torch.load(directory / "weights.pt", weights_only=True)
weights.export_weights({name: value + 1 for name, value in state.items()}, directory, manifest)
"""


@pytest.mark.parametrize(
    ("point", "left"),
    [("_write", {"best": 1}), ("rename", {"best.previous": 1}), ("_replace", {"best": 2})],
    ids=["half written", "between the renames", "in place"],
)
def test_a_kill_at_any_point_leaves_a_whole_export(classifier, tmp_path, point, left):
    export(classifier, tmp_path / "best", epoch=1)
    command = [sys.executable, "-c", KILLED, point, str(tmp_path / "best")]
    assert subprocess.run(command, timeout=120).returncode == 9
    whole = {path.name: load_manifest(path)["epoch"] for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert whole == left
    export(classifier, tmp_path / "best", epoch=3)
    whole = {path.name: load_manifest(path)["epoch"] for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert whole == {"best": 3}


@pytest.mark.parametrize("name", ["best", "best.previous"])
def test_a_directory_with_other_files_is_not_replaced(classifier, tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"holds thesis\.tex, which is no part of an export"):
        export(classifier, tmp_path / "best")
    assert read(tmp_path / name) == {"thesis.tex": b"years of work"}


def test_a_place_that_cannot_be_written_is_named(classifier, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/best cannot be written: "):
        export(classifier, tmp_path / "file" / "best")
    with pytest.raises(UserError, match=r"file cannot be written: "):
        export(classifier, tmp_path / "file")


def test_a_link_to_a_directory_stays_a_link(classifier, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    export(classifier, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert load_manifest(tmp_path / "real")["epoch"] == 7


def test_a_relative_directory(classifier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export(classifier, "made/best")
    assert load_manifest("made/best")["epoch"] == 7


def test_staging_is_cleared_away_whatever_happens_inside(tmp_path):
    def interrupted():
        with staged_directory(tmp_path / "bundle", ()) as folder:
            (folder / "file").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_export_are_found_out(classifier, tmp_path):
    export(classifier, tmp_path / "one")
    classifier.network.classifier.bias.data.fill_(4)
    export(classifier, tmp_path / "two")
    shutil.copy(tmp_path / "two" / "weights.pt", tmp_path / "one")
    with pytest.raises(UserError, match=r"one/weights\.pt is damaged or of another export"):
        load_manifest(tmp_path / "one")


@pytest.mark.parametrize("name", ["weights.pt", "manifest.json"])
def test_a_missing_file_is_named(classifier, tmp_path, name):
    export(classifier, tmp_path / "best")
    (tmp_path / "best" / name).unlink()
    with pytest.raises(UserError, match=rf"best/{name} cannot be read"):
        load_manifest(tmp_path / "best")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "is damaged"),
        (b"\xff", "is damaged"),
        (b"[1]", "no manifest of format 1"),
        (b'{"format": 2}', "no manifest of format 1"),
        (b'{"format": 1}', r"weights\.pt is damaged"),
        (b'{"format": 1, "weights": null}', r"weights\.pt is damaged"),
    ],
)
def test_a_damaged_manifest_is_refused(classifier, tmp_path, text, message):
    export(classifier, tmp_path / "best")
    (tmp_path / "best" / "manifest.json").write_bytes(text)
    with pytest.raises(UserError, match=message):
        load_manifest(tmp_path / "best")
