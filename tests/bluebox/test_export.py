import importlib.util
import re
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

from hps_lightning.bluebox import export as exporting
from hps_lightning.bluebox import export_bundle, load_manifest
from hps_lightning.bluebox.board.bundle import Bundle
from hps_lightning.bluebox.weights import board_weights
from hps_lightning.errors import UserError
from hps_lightning.modules import HPSClassifier, ImageClassifier

from .made import export, make_bundle, read, record


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
            patch.setattr(exporting, "write_file", fail_at(1 if step == "weights" else 2, exporting.write_file))
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
from hps_lightning.bluebox import export, staging

point, directory = sys.argv[1], pathlib.Path(sys.argv[2])
owner = {"rename": pathlib.Path, "write_file": export, "_replace": staging}[point]
original = getattr(owner, point)

def die(*arguments):
    original(*arguments)
    os._exit(9)

setattr(owner, point, die)
manifest = {**json.loads((directory / "manifest.json").read_text()), "epoch": 2}
state = torch.load(directory / "weights.pt", weights_only=True)
export.export_weights({name: value + 1 for name, value in state.items()}, directory, manifest)
"""


@pytest.mark.parametrize(
    ("point", "left"),
    [("write_file", {"best": 1}), ("rename", {"previous": 1}), ("_replace", {"best": 2})],
    ids=["half written", "between the renames", "in place"],
)
def test_a_kill_at_any_point_leaves_a_whole_export(classifier, tmp_path, point, left):
    export(classifier, tmp_path / "best", epoch=1)
    command = [sys.executable, "-c", KILLED, point, str(tmp_path / "best")]
    assert subprocess.run(command, timeout=120).returncode == 9
    assert whole_exports(tmp_path) == left
    export(classifier, tmp_path / "best", epoch=3)
    # What the killed process made is not this one's to delete.
    assert whole_exports(tmp_path) == {**left, "best": 3}


def whole_exports(folder):
    """The epochs of exports by their names, ``previous`` for one that was being replaced."""
    found = [path for path in folder.iterdir() if not path.name.startswith(".") or path.suffix == ".previous"]
    return {path.name if path.name == "best" else path.suffix[1:]: load_manifest(path)["epoch"] for path in found}


def test_a_directory_with_other_files_is_not_replaced(classifier, tmp_path):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"holds thesis\.tex, which is no part of an export"):
        export(classifier, tmp_path / "best")
    assert read(tmp_path / "best") == {"thesis.tex": b"years of work"}


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


@pytest.mark.parametrize("size", [[1, 28, 28], [3, 32, 48]])
def test_a_bundle_takes_square_rgb_alone(classifier, tmp_path, size):
    changes = {"image_size": size, "mean": [0.1] * size[0], "std": [0.4] * size[0]}
    with pytest.raises(UserError, match=f"those of made are {size[0]} x {size[1]} x {size[2]}"):
        make_bundle(classifier, tmp_path / "bundle", **changes)
    export(classifier, tmp_path / "weights", **changes)
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


OWN = """
import torch


class Own(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = torch.nn.Linear(3, num_classes)

    def forward(self, images):
        if images.shape[2] > 32:
            raise RuntimeError("too large")
        return self.head(images.mean((2, 3)))
"""


@pytest.fixture
def own(tmp_path):
    """Makes a classifier of a network out of a file of the user's own."""
    made = set()

    def make(file, code=OWN):
        path = tmp_path / file
        path.write_text(code)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        made.add(path.stem)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        classifier = ImageClassifier(module.Own(3), 3)
        classifier.save_hyperparameters({"num_classes": 3})
        return classifier

    yield make
    for name in made:
        del sys.modules[name]


def test_a_bundle_of_ones_own_network_is_replaced_like_any(own, classifier, tmp_path):
    for file in ("my_net.py", "my_net.py", "other_net.py"):
        make_bundle(own(file), tmp_path / "bundle")
        assert (tmp_path / "bundle" / file).exists()
    assert not (tmp_path / "bundle" / "my_net.py").exists()
    make_bundle(classifier, tmp_path / "bundle")
    assert not (tmp_path / "bundle" / "other_net.py").exists()
    (tmp_path / "bundle" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds thesis\.tex"):
        make_bundle(classifier, tmp_path / "bundle")


MASKED = OWN.replace("self.head = ", "self.register_buffer('seen', torch.ones(3) > 0)\n        self.head = ")
MASKED = MASKED.replace("images.mean((2, 3))", "images.mean((2, 3)) * self.seen.float()")


@pytest.mark.parametrize("code", [OWN.replace("self.head", "self.network"), MASKED], ids=["one part", "a mask"])
def test_a_bundle_of_ones_own_network_answers_where_it_lies(own, tmp_path, code):
    make_bundle(own("my_net.py", code), tmp_path / "bundle")
    checked = subprocess.run([sys.executable, tmp_path / "bundle" / "selftest.py"], capture_output=True, text=True)
    assert checked.stdout.endswith("selftest: passed\n"), checked.stderr


def test_a_network_that_does_not_run_or_whose_file_has_gone_is_one_error(own, tmp_path):
    with pytest.raises(UserError, match="Own cannot be run on images of 3 x 64 x 64: too large"):
        make_bundle(own("my_net.py"), tmp_path / "bundle", image_size=[3, 64, 64])
    gone = own("gone.py")
    (tmp_path / "gone.py").unlink()
    with pytest.raises(UserError, match=r"gone\.py cannot be read"):
        make_bundle(gone, tmp_path / "bundle")


def test_what_ones_own_network_needs_beyond_the_bundle_is_said(own, tmp_path, capsys):
    make_bundle(own("my_net.py"), tmp_path / "bundle")
    assert capsys.readouterr().err == ""
    needy = own("needy.py")
    code = (tmp_path / "needy.py").read_text()
    imports = "import dataclasses, os.path, PIL.Image, torch.nn\nfrom hps_lightning import zoo"
    (tmp_path / "needy.py").write_text(f"{imports}\n{code}")
    make_bundle(needy, tmp_path / "bundle")
    assert "needy.py imports PIL.Image, dataclasses, hps_lightning, which" in capsys.readouterr().err
    (tmp_path / "needy.py").write_text(f"from . import blocks\n{code}")
    with pytest.raises(UserError, match=r"would not run on a board: manifest\.json describes no network: "):
        make_bundle(needy, tmp_path / "other")
    assert "needy.py imports ., which" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    (tmp_path / "needy.py").write_text("def broken(:")
    with pytest.raises(UserError, match=r"needy\.py has been changed and is no Python any more"):
        make_bundle(needy, tmp_path / "bundle")


UNIT = """
from collections import OrderedDict

import torch
from torch import nn


class Own(nn.Module):
    def __init__(self, num_classes, activation="relu"):
        super().__init__()
        act = nn.ReLU() if activation == "relu" else nn.Tanh()
        self.unit = nn.Sequential(
            OrderedDict(conv=nn.Conv2d(3, 8, 3), norm=nn.BatchNorm2d(8), activation=act)
        )
        self.head = nn.Linear(8, num_classes)

    def forward(self, images):
        return self.head(self.unit(images).mean((2, 3)))
"""


def test_a_bundle_that_would_be_another_network_is_refused(own, tmp_path):
    classifier = own("my_net.py", UNIT)
    kind = type(classifier.network)
    # The classifier's own word for it, which is not the network's.
    classifier.network = kind(3, activation="tanh")
    with pytest.raises(UserError, match=r"Own\(num_classes=3\), made by my_net\.py as it is now, differs \(the log"):
        make_bundle(classifier, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    classifier.save_hyperparameters({"num_classes": 3, "activation": "tanh"})
    make_bundle(classifier, tmp_path / "bundle")
    assert Bundle(str(tmp_path / "bundle")).manifest["network"]["arguments"]["activation"] == "tanh"


def test_a_file_that_has_been_edited_since_is_refused(own, tmp_path):
    classifier = own("my_net.py", UNIT)
    (tmp_path / "my_net.py").write_text(UNIT.replace("mean((2, 3))", "amax((2, 3))"))
    with pytest.raises(UserError, match="as it is now"):
        make_bundle(classifier, tmp_path / "bundle")


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("raise SystemExit", "would not run on a board: it ends with status 0, before it has answered"),
        ("while True:\n    pass", "my_net.py does more than define a network when it is imported"),
    ],
)
def test_a_file_that_does_more_than_define_a_network_is_refused(own, tmp_path, monkeypatch, more, reason):
    classifier = own("my_net.py", UNIT)
    (tmp_path / "my_net.py").write_text(f"{UNIT}\n\n{more}\n")
    monkeypatch.setattr(exporting, "_PATIENCE_S", 10)
    with pytest.raises(UserError, match=re.escape(reason)):
        make_bundle(classifier, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_part_that_is_compiled_is_exported_as_it_was_written(tmp_path):
    classifier = HPSClassifier(num_classes=3, stages=[1, 1, 1, 1], width=0.2)
    expected = board_weights(classifier.network.state_dict())
    classifier.network.stage1 = torch.compile(classifier.network.stage1, backend=fail)
    make_bundle(classifier, tmp_path / "bundle")
    written = torch.load(tmp_path / "bundle" / "weights.pt", weights_only=True)
    assert list(written) == list(expected)


def test_a_network_that_cannot_be_copied_is_one_error(own, tmp_path):
    classifier = own("my_net.py")
    classifier.network.lock = threading.Lock()
    with pytest.raises(UserError, match="Own cannot be copied: cannot pickle"):
        make_bundle(classifier, tmp_path / "bundle")


def test_a_network_of_ours_that_its_classifier_makes_otherwise_is_refused_too(tmp_path):
    classifier = HPSClassifier(num_classes=3, stages=[1, 1, 1, 1], width=0.2)
    classifier.network = type(classifier.network)(3, stages=[1, 1, 1, 1], width=0.2, activation="elu")
    with pytest.raises(UserError, match=r"made by squeezenext\.py as it is now, differs \(gives logits that are"):
        make_bundle(classifier, tmp_path / "bundle")


@pytest.mark.parametrize(("old", "new"), [
    # Units that have the names of ours, and are used for something else.
    ("self.unit(images)", "self.unit.activation(self.unit.norm(self.unit.conv(images)))"),
    ("self.unit(images)", "(self.unit(images) * len(self.unit))"),
])  # fmt: skip
def test_folding_that_would_change_the_answers_is_refused(own, tmp_path, old, new):
    classifier = own("my_net.py", UNIT.replace(old, new))
    with pytest.raises(
        UserError, match=r"Own with its batch norms folded .* is another network: .*: hps export --no-f"
    ):
        make_bundle(classifier, tmp_path / "bundle")
    content = record(classifier)
    export_bundle(classifier.network, classifier.network.state_dict(), tmp_path / "bundle", content, folded=False)
    checked = subprocess.run([sys.executable, tmp_path / "bundle" / "selftest.py"], capture_output=True, text=True)
    assert checked.stdout.endswith("selftest: passed\n"), checked.stderr


WEIGHT_NORM = UNIT.replace("conv=nn.Conv2d(3, 8, 3)", "conv=torch.nn.utils.weight_norm(nn.Conv2d(3, 8, 3))")
READS = OWN.replace(
    "self.head = ", "self.drops = [part.item() for part in torch.linspace(0, 1, 3)]\n        self.head = "
)
DATACLASS = UNIT.replace("class Own(", "@dataclasses.dataclass\nclass Plan:\n    width: 'int' = 8\n\n\nclass Own(")
DATACLASS = "from __future__ import annotations\nimport dataclasses\n" + DATACLASS


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("code", [UNIT, WEIGHT_NORM, READS, DATACLASS], ids=["unit", "norm", "reads", "dataclass"])
def test_networks_that_people_write_answer_where_the_bundle_lies(own, tmp_path, code):
    make_bundle(own("my_net.py", code), tmp_path / "bundle")
    checked = subprocess.run([sys.executable, tmp_path / "bundle" / "selftest.py"], capture_output=True, text=True)
    assert checked.stdout.endswith("selftest: passed\n"), checked.stderr


def test_a_network_that_takes_the_batch_away_from_one_image_is_refused(own, tmp_path):
    classifier = own(
        "my_net.py", OWN.replace("self.head(images.mean((2, 3)))", "self.head(images.mean((2, 3)).squeeze())")
    )
    with pytest.raises(UserError, match=r"Own gives \(3,\) for a single image .* needs 1 x classes"):
        make_bundle(classifier, tmp_path / "bundle")


@pytest.mark.parametrize("error", ["AssertionError('no')", "IndexError('no')"])
def test_whatever_a_network_raises_is_one_error(own, tmp_path, error):
    classifier = own("my_net.py", OWN.replace('RuntimeError("too large")', error))
    with pytest.raises(UserError, match="Own cannot be run on images of 3 x 64 x 64: no"):
        make_bundle(classifier, tmp_path / "bundle", image_size=[3, 64, 64])


def test_complex_weights_are_refused(own, tmp_path):
    code = OWN.replace("self.head = ", "self.phase = torch.nn.Parameter(torch.ones(3) * 1j)\n        self.head = ")
    with pytest.raises(UserError, match="The weights phase are complex numbers"):
        make_bundle(own("my_net.py", code), tmp_path / "bundle")


def test_a_network_in_a_file_called_as_one_of_the_bundles_is_refused(own, tmp_path):
    with pytest.raises(UserError, match=r"has a classify\.py of its own, which .* would replace; rename it"):
        make_bundle(own("classify.py"), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_answers_that_are_not_finite_are_refused(classifier, tmp_path):
    # Finite, and of no use under a root.
    next(module for module in classifier.modules() if isinstance(module, nn.BatchNorm2d)).running_var.fill_(-1)
    with pytest.raises(UserError, match="answers NaN or infinite values"):
        make_bundle(classifier, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
