import hashlib
import json
import shutil

import pytest
import torch

from hps_lightning.bluebox import board_weights, describe, export_weights, load_manifest
from hps_lightning.errors import UserError
from hps_lightning.modules import CLASSIFIERS

from .made import export, record


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
                "skip_unread": False,
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


WRONG = {
    "dataset": [["cifar10"], None],
    "protocol": [None, 5],
    "classes": [5, [], [1, 2, 3], "abc"],
    "image_size": [32, [3, 32], [3, 32, 32.0], [3, 0, 0], [3, 10**6, 10**6], [True, 32, 32], None],
    "mean": ["abc", 0.5, [0.5], [0.5, 0.5, None], [0.5, 0.5, True]],
    "std": [
        "abc",
        [0.5],
        [0.5, 0.5, "0.5"],
        [0.5, 0.5, 0],
        [0.5, 0.5, -1],
        [0.5, 0.5, 1e-50],
        [0.5, 0.5, 1e39],
        [0.5, 0.5, 10**400],
    ],
    "metrics": [["val/accuracy"], None, "val/accuracy"],
    "epoch": ["7", float("nan")],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_data_as_none_can_be_is_refused(classifier, key, value):
    with pytest.raises(UserError, match=f"but its {key} is "):
        describe(classifier.network, record(classifier, **{key: value}))


@pytest.mark.parametrize("mean", [float("nan"), float("inf"), 1e300, 3e38])
def test_a_mean_that_float32_does_not_hold_is_refused(classifier, mean):
    with pytest.raises(UserError, match="but its mean is "):
        describe(classifier.network, record(classifier, mean=[mean, 0.5, 0.5]))


@pytest.mark.parametrize("value", [float("nan"), "0.5", None, True])
def test_an_accuracy_that_is_none_is_refused(classifier, value):
    described = record(classifier, metrics={"val/accuracy": value})
    with pytest.raises(UserError, match=r"val/accuracy is .*, which is no accuracy"):
        describe(classifier.network, described, "val/accuracy")
    assert describe(classifier.network, described)["accuracy"] is None


def test_a_record_without_data_is_refused(classifier):
    with pytest.raises(UserError, match="nothing tells dataset, classes, mean, std, image_size, protocol"):
        describe(classifier.network, classifier.record())


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
