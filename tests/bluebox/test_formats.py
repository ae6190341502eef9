import json

import numpy as np
import pytest
import torch
from rich.console import Console

from hps_lightning.bluebox.formats import PYTORCH, compare_formats, formats_table
from hps_lightning.bluebox.onnx_export import export_int8, export_onnx
from hps_lightning.bluebox.weights import board_weights, legacy_file
from hps_lightning.data.batches import normalise
from hps_lightning.data.readers import Images
from hps_lightning.errors import UserError
from hps_lightning.modules import HPSClassifier

from .made import trained

MANIFEST = {"input": {"shape": [3, 32, 32], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = HPSClassifier(num_classes=3, stages=[1, 1, 1, 1], width=0.1).network
    trained(network)
    return network.eval()


@pytest.fixture(scope="module")
def models(network):
    calibration = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8)
    return {
        "ONNX float32": export_onnx(network, MANIFEST),
        "ONNX int8 with preprocessing": export_int8(network, MANIFEST, calibration, preprocessing=True),
    }


def labelled(network, right):
    """Images of which the network gets ``right`` right."""
    images = torch.randint(0, 256, (300, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = network(normalise(images, MANIFEST["input"]["mean"], MANIFEST["input"]["std"])).argmax(1)
    labels[right:] = (labels[right:] + 1) % 3
    return Images(images, labels)


def test_each_format_has_a_row_with_what_was_measured(network, models):
    threads = torch.get_num_threads()
    test = labelled(network, 217)
    rows = compare_formats(network.train(), MANIFEST, models, test)
    assert network.training
    network.eval()
    assert [row["format"] for row in rows] == [PYTORCH, *models]
    weights = legacy_file(board_weights(network.state_dict()))
    assert [row["bytes"] for row in rows] == [len(weights), *map(len, models.values())]
    assert [row["correct"] for row in rows[:2]] == [217, 217]
    assert 0 < rows[2]["correct"] < 300
    assert {row["images"] for row in rows} == {300}
    exact, close, rounded = (row["probability_difference"] for row in rows)
    assert exact == 0
    assert 0 < close < 1e-5 < rounded < 0.5
    assert all(row["latency_ms"] > 0 and row["threads"] == 1 for row in rows)
    assert torch.get_num_threads() == threads
    assert json.loads(json.dumps(rows)) == rows


@pytest.mark.parametrize("folded", [False, True])
def test_pytorch_is_measured_as_the_board_runs_it(network, models, monkeypatch, folded):
    test, calls = labelled(network, 300), []
    forward = torch.nn.BatchNorm2d.forward
    monkeypatch.setattr(torch.nn.BatchNorm2d, "forward", lambda *args: calls.append(1) or forward(*args))
    first, second, _ = compare_formats(network, MANIFEST, models, test, folded=folded)
    norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    # Folded, it is compared with what it was on four images, and measured without.
    assert (len(calls) == 4 * norms) == folded
    assert len(calls) >= 4 * norms
    assert first["correct"] == second["correct"] == 300
    assert first["bytes"] == len(legacy_file(board_weights(network.state_dict())))


def test_without_images_accuracy_is_left_out_of_rows_and_table(network, models):
    rows = compare_formats(network, MANIFEST, models)
    assert all(row["correct"] is None and row["images"] is None for row in rows)
    console = Console(width=120)
    with console.capture() as capture:
        console.print(formats_table(rows))
    text = capture.get()
    assert text.count("not measured") == 3
    assert all(row["format"] in text for row in rows)
    assert "100%" in text


def test_the_table_compares_with_the_first_row():
    rows = [
        {"format": "one", "bytes": 200_000, "correct": 3, "images": 4, "latency_ms": 2.0, "threads": 1},
        {"format": "two", "bytes": 50_000, "correct": 2, "images": 4, "latency_ms": 0.5, "threads": 1},
    ]
    console = Console(width=120)
    with console.capture() as capture:
        console.print(formats_table(rows))
    line = next(line for line in capture.get().splitlines() if "two" in line)
    assert [cell.strip() for cell in line.strip("│┃").split("│")] == [
        *("two", "50.0 kB", "25%", "50.00%", "0.500 ms", "4.0"),
    ]


def test_what_is_no_model_is_refused(network):
    with pytest.raises(UserError, match="no ONNX model"):
        compare_formats(network, MANIFEST, {"ONNX": b"hello"})
