"""The board's PyTorch runs the bare network files on exported weights, and finds the same logits."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hps_lightning import networks
from hps_lightning.bluebox import describe, export_weights
from hps_lightning.modules import CLASSIFIERS

from .board_environment import run
from .made import trained

pytestmark = pytest.mark.board

CASES = {
    "hps_relu": ("hps", {"stages": [1, 1, 1, 1], "width": 0.5}),
    "hps_elu": ("hps", {"stages": [1, 2, 2, 1], "width": 0.5, "activation": "elu", "dropout": 0.1}),
    "hps_elu_100_classes": (
        "hps",
        {"stages": [1, 1, 1, 1], "width": 0.575, "activation": "elu", "inplace": False, "num_classes": 100},
    ),
    "hps_half_resolution": ("hps", {"stages": [1, 1, 1, 1], "width": 0.5, "resolution": 0.5}),
    "hps_odd_resolution": ("hps", {"stages": [1, 1, 1, 1], "width": 0.5, "resolution": 0.7}),
    "hps_more_resolution": ("hps", {"stages": [1, 1, 1, 1], "width": 0.5, "resolution": 1.5}),
    "shallow": ("shallow_squeezenext", {}),
    "squeezenext": ("squeezenext", {}),
    "modified_squeezenext": ("modified_squeezenext", {"stages": [1, 1, 1, 1]}),
    "squeezenet_1_0": ("squeezenet", {"version": "1_0"}),
    "squeezenet_1_1": ("squeezenet", {"version": "1_1", "activation": "elu"}),
    "squeezed_cnn": ("squeezed_cnn", {}),
    "mobilenet": ("mobilenet", {"width": 0.5}),
    "mobilenet_half_resolution": ("mobilenet", {"width": 0.5, "resolution": 0.5, "activation": "elu"}),
}

# As a user's script on the board would do it, in Python 3.5's syntax.
BOARD_SCRIPT = """
import hashlib
import importlib.util
import json
import os
import sys

import numpy as np
import torch

assert sys.version_info[:2] == (3, 7), sys.version
assert torch.__version__ == "1.1.0", torch.__version__
torch.set_num_threads(1)
for folder in sys.argv[1:]:
    with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
        manifest = json.load(file)
    weights = os.path.join(folder, manifest["weights"]["file"])
    with open(weights, "rb") as file:
        content = file.read()
    assert len(content) == manifest["weights"]["bytes"]
    assert hashlib.sha256(content).hexdigest() == manifest["weights"]["sha256"]
    source = os.path.join(folder, manifest["network"]["file"])
    spec = importlib.util.spec_from_file_location("bare_network", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = getattr(module, manifest["network"]["class"])(**manifest["network"]["arguments"])
    network.load_state_dict(torch.load(weights))
    network.eval()
    with torch.no_grad():
        logits = network(torch.from_numpy(np.load(os.path.join(folder, "images.npy"))))
    np.save(os.path.join(folder, "logits.npy"), logits.numpy())
"""


def export_case(name: str, folder: Path) -> np.ndarray:
    """Exports a network with its bare file and images; returns the logits that it has here."""
    family, arguments = CASES[name]
    torch.manual_seed(len(name))
    classifier = CLASSIFIERS[family](**arguments)
    trained(classifier.network)
    record = {
        **classifier.record(),
        "dataset": "made",
        "classes": [f"class {index}" for index in range(classifier.num_classes)],
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "image_size": [3, 32, 32],
        "protocol": "holdout",
    }
    manifest = describe(classifier.network, record)
    export_weights(classifier.network.state_dict(), folder, manifest)
    shutil.copy(Path(networks.__file__).with_name(manifest["network"]["file"]), folder)
    images = torch.randn(4, 3, 32, 32)
    np.save(folder / "images.npy", images.numpy())
    with torch.no_grad():
        return classifier.eval()(images).numpy()


def test_the_boards_pytorch_finds_the_same_logits(board_python, tmp_path):
    expected = {name: export_case(name, tmp_path / name) for name in CASES}
    script = tmp_path / "script.py"
    script.write_text(BOARD_SCRIPT)
    result = run(board_python, script, *(tmp_path / name for name in CASES), cwd=tmp_path, timeout=600)
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    for name, logits in expected.items():
        assert logits.std(axis=0).max() > 0.01, f"{name}: logits that hardly differ would agree by themselves"
        # Rounding is a part of the largest value that a sum goes through.
        tolerance = 1e-5 * max(1, np.abs(logits).max())
        np.testing.assert_allclose(
            np.load(tmp_path / name / "logits.npy"), logits, rtol=0, atol=tolerance, err_msg=name
        )


def test_the_boards_pytorch_does_not_read_the_zip_format(board_python, tmp_path):
    torch.save({"weight": torch.ones(1)}, tmp_path / "weights.pt")
    result = run(board_python, "-c", "import torch; torch.load('weights.pt')", cwd=tmp_path, timeout=120)
    assert result.returncode != 0
    assert "Error" in result.stderr
