import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hps_lightning.bluebox.onnx_export import OnnxNetwork
from hps_lightning.cli import export as exporting
from tests.cli.conftest import TINY

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network that was trained for two batches of digits."""
    from hps_lightning.cli import main

    folder = tmp_path_factory.mktemp("trained")
    network = ["--model=hps", "--model.stages=[1,1,1,1]", *TINY]
    assert main(["fit", *network, "--trainer.max_epochs=1", f"--trainer.default_root_dir={folder}"]) == 0
    return next(folder.rglob("best.ckpt"))


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_all_formats_run_elsewhere_and_are_measured(hps, checkpoint, tmp_path):
    status, out, err = hps("export", "--ckpt_path", checkpoint, "--output", "bundle")
    assert status == 0, err
    assert "ONNX int8" in out
    (tmp_path / "bundle").rename(tmp_path / "on the board")
    command = [sys.executable, tmp_path / "on the board" / "selftest.py"]
    tested = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=300)
    assert tested.returncode == 0, tested.stderr
    assert "network-int8.onnx: probabilities at most " in tested.stdout
    # What whoever opens the file with ONNX Runtime himself must know.
    text = (tmp_path / "on the board" / "README.md").read_text()
    assert 'add_session_config_entry("session.x64quantprecision", "1")' in text
    for file in ("network.onnx", "network-int8.onnx"):
        assert f"- `{file}` takes `images` (float32, N x 3 x 32 x 32, RGB, normalised) and gives `logits`.\n" in text
    manifest = json.loads((tmp_path / "on the board" / "manifest.json").read_text())
    assert [row["file"] for row in manifest["formats"]] == ["weights.pt", "network.onnx", "network-int8.onnx"]
    torch_row, onnx_row, _ = manifest["formats"]
    assert torch_row["images"] == 359
    assert onnx_row["correct"] == torch_row["correct"]
    assert onnx_row["probability_difference"] < 1e-4
    assert manifest["accuracy"] == {
        "metric": "test/accuracy",
        "value": torch_row["correct"] / 359,
        "protocol": "holdout",
        "measured_on": "the test images",
    }
    assert manifest["network"]["folded"] is True


def test_pytorch_alone_needs_no_images(hps, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "load_images", None)
    monkeypatch.setattr(exporting, "calibration_images", None)
    status, _, err = hps("export", "--ckpt_path", checkpoint, "--output", "bundle", "--formats", "pytorch", "--no-fold")
    assert status == 0, err
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["formats"] == []
    assert manifest["accuracy"]["metric"] == "val/accuracy"
    assert manifest["network"]["folded"] is False
    assert not list(tmp_path.rglob("*.onnx"))


def test_images_are_looked_for_where_the_training_found_them(hps, checkpoint, tmp_path, monkeypatch):
    content = torch.load(checkpoint, weights_only=True)
    content["hps_lightning"]["data"]["root"] = str(tmp_path)
    torch.save(content, tmp_path / "trained_there.ckpt")
    roots = []

    def look(dataset, split, root):
        roots.append(root)
        raise exporting.UserError("There are none.")

    compare, folded = exporting.compare_formats, []

    def spy(*arguments, **options):
        folded.append(options["folded"])
        return compare(*arguments, **options)

    monkeypatch.setattr(exporting, "compare_formats", spy)
    monkeypatch.setattr(exporting, "load_images", look)
    for options in ([], ["--data.root=elsewhere", "--no-fold"]):
        call = ["export", "--ckpt_path=trained_there.ckpt", "--output=bundle", "--formats=onnx", "--replace", *options]
        status, _, err = hps(*call)
        assert status == 0, err
    assert roots == [str(tmp_path), "elsewhere"]
    # PyTorch is measured as the bundle has it.
    assert folded == [True, False]


def test_without_images_onnx_is_written_unmeasured_and_int8_refused(hps, checkpoint, tmp_path, monkeypatch):
    def none_here(*_, **__):
        raise exporting.UserError("There are no digits here.")

    monkeypatch.setattr(exporting, "load_images", none_here)
    monkeypatch.setattr(exporting, "calibration_images", none_here)
    call = ("export", "--ckpt_path", checkpoint, "--output", "bundle", "--preprocessing")
    status, _, err = hps(*call)
    assert status == 2
    assert "There are no digits here. Without training images there is no int8: --formats pytorch onnx." in err
    assert list(tmp_path.iterdir()) == []
    status, out, err = hps(*call, "--formats", "onnx")
    assert status == 0, err
    assert "not measured: There are no digits here." in out
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert [row["images"] for row in manifest["formats"]] == [None, None]
    assert OnnxNetwork(tmp_path / "bundle" / "network.onnx").takes_pixels
    text = (tmp_path / "bundle" / "README.md").read_text()
    assert "- `network.onnx` takes `images` (uint8, N x 32 x 32 x 3, RGB) and gives `probabilities`.\n" in text


def test_a_folder_that_holds_something_is_replaced_only_when_told_to(hps, checkpoint, tmp_path, monkeypatch):
    call = ("export", "--ckpt_path", checkpoint, "--output", "bundle", "--formats", "pytorch")
    assert hps(*call)[0] == 0
    (tmp_path / "bundle" / "network.onnx").write_text("of an earlier export")
    before = files(tmp_path / "bundle")
    status, _, err = hps(*call)
    assert status == 2
    assert "bundle is not empty" in err
    assert "--replace" in err
    assert files(tmp_path / "bundle") == before
    assert hps(*call, "--replace")[0] == 0
    assert "network.onnx" not in files(tmp_path / "bundle")
    (tmp_path / "bundle" / "thesis.tex").write_text("years of work")
    # Before the work, which would have been lost.
    monkeypatch.setattr("hps_lightning.cli.export.export_bundle", None)
    status, _, err = hps(*call, "--replace")
    assert status == 2
    assert "thesis.tex" in err
    assert (tmp_path / "bundle" / "thesis.tex").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_files_called_as_those_of_an_export_are_none(hps, checkpoint, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("years of work")
    call = ("export", "--ckpt_path", checkpoint, "--output", "mine", "--formats", "pytorch", "--replace")
    status, _, err = hps(*call)
    assert status == 2
    assert "mine holds README.md, which is no part of an export" in err
    assert files(tmp_path / "mine") == {"README.md": b"years of work"}


@pytest.mark.parametrize("replace", [[], ["--replace"]])
def test_an_output_that_is_a_file_is_said_to_be_one(hps, checkpoint, tmp_path, replace):
    (tmp_path / "bundle.zip").write_text("here already")
    call = ("export", "--ckpt_path", checkpoint, "--output", "bundle.zip", "--formats", "pytorch", *replace)
    status, _, err = hps(*call)
    assert status == 2
    assert "bundle.zip is a file; an export is a folder. Choose another name." in err


def test_an_output_that_cannot_be_written_is_named(hps, checkpoint, tmp_path):
    (tmp_path / "file").write_text("here already")
    # Not even root makes folders in /proc.
    for output in (tmp_path / "file" / "bundle", Path("/proc/bundle")):
        status, _, err = hps("export", "--ckpt_path", checkpoint, "--output", output, "--formats", "pytorch")
        assert status == 2
        assert f"{output} cannot be " in err
    assert files(tmp_path) == {"file": b"here already"}


@pytest.mark.parametrize("output", ["~nosuchuser/bundle", "loop/bundle", ".", ".."])
@pytest.mark.parametrize("replace", [[], ["--replace"]])
def test_an_output_that_can_be_none_is_refused_before_the_work(hps, tmp_path, output, replace):
    (tmp_path / "loop").symlink_to("loop")
    # There is no such checkpoint either, which is not looked for any more.
    status, _, err = hps("export", "--ckpt_path", "x.ckpt", "--output", output, *replace)
    assert status == 2
    assert "cannot be written: " in err


def onnx(path):
    from hps_lightning.bluebox import describe
    from hps_lightning.bluebox.onnx_export import export_onnx
    from tests.bluebox.made import record

    classifier = exporting_classifier()
    path.write_bytes(export_onnx(classifier.network, describe(classifier.network, record(classifier))))


def exporting_classifier():
    from hps_lightning.modules import HPSClassifier

    return HPSClassifier(num_classes=3, stages=[1, 1, 1, 1], width=0.1)


def text(path):
    path.write_text("hello")


def foreign(path):
    torch.save({"state_dict": {}, "epoch": 3}, path)


@pytest.mark.parametrize("make", [onnx, text, foreign])
def test_a_file_that_is_no_checkpoint_is_refused(hps, tmp_path, make):
    make(tmp_path / "x.ckpt")
    status, _, err = hps("export", "--ckpt_path", "x.ckpt", "--output", "bundle")
    assert status == 2
    assert "x.ckpt" in err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]


def test_weights_of_another_network_are_refused(hps, checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["network.classifier.bias"] = torch.zeros(7)
    torch.save(content, tmp_path / "x.ckpt")
    status, _, err = hps("export", "--ckpt_path", "x.ckpt", "--output", "bundle")
    assert status == 2
    assert "the weights do not fit the network" in err


@pytest.mark.parametrize(("key", "value"), [("classifier.bias", float("nan")), ("stem.conv.weight", float("inf"))])
def test_a_training_that_has_diverged_is_refused(hps, checkpoint, tmp_path, key, value):
    content = torch.load(checkpoint, weights_only=True)
    weights = content["state_dict"][f"network.{key}"]
    weights[(0,) * weights.ndim] = value
    torch.save(content, tmp_path / "x.ckpt")
    status, _, err = hps("export", "--ckpt_path", "x.ckpt", "--output", "bundle")
    assert status == 2
    assert f"{key} hold NaN or infinite values: this training has diverged" in err


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": ["val/accuracy"]},
        {"metrics": None},
        {"metrics": "val/accuracy"},
        {"metrics": {"val/accuracy": float("nan")}},
        {"image_size": [1, 32, 32], "mean": [0.5], "std": [0.5]},
        {"image_size": [3, 10**6, 10**6]},
        {"dataset": ["digits"]},
        {"data": ["digits"]},
    ],
    ids=str,
)
def test_a_record_of_data_that_cannot_be_is_refused(hps, checkpoint, tmp_path, changes):
    content = torch.load(checkpoint, weights_only=True)
    content["hps_lightning"].update(changes)
    torch.save(content, tmp_path / "x.ckpt")
    status, _, err = hps("export", "--ckpt_path", "x.ckpt", "--output", "bundle", "--formats", "pytorch")
    assert status == 2
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]


def test_every_option_has_a_help_text(hps):
    status, out, _ = hps("export", "--help")
    assert status == 0
    for option in ("--ckpt_path", "--output", "--replace", "--formats", "--preprocessing", "--fold", "--data.root"):
        assert option in out
