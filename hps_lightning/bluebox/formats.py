"""One network in several formats, compared: size, accuracy and the time that one image takes."""

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import nn

from hps_lightning.bluebox.folded import folded_network
from hps_lightning.bluebox.onnx_export import OnnxNetwork, normalised
from hps_lightning.bluebox.weights import bare_copy, board_weights, legacy_file
from hps_lightning.data.readers import Images

PYTORCH = "PyTorch float32"

_BATCH = 250
_ROUNDS = 10
_CALLS = 20


def compare_formats(
    network: nn.Module,
    manifest: Mapping[str, Any],
    models: Mapping[str, bytes],
    test: Images | None = None,
    threads: int = 1,
    folded: bool = False,
) -> list[dict[str, Any]]:
    """Measures a network in PyTorch and in each of some ONNX models.

    The formats take turns, so that a drift of the machine's speed meets them all. In PyTorch,
    and in models without preprocessing, the time is that of the network alone.

    Args:
        network: wrapped or bare; it is not changed.
        manifest: what :func:`~hps_lightning.bluebox.describe` returns.
        models: ONNX models of the network by the name of their format, with preprocessing or
            without; see :func:`~hps_lightning.bluebox.onnx_export.export_onnx`.
        test: the images that accuracy is measured on, of the network's size; None for none.
        threads: that work on one image.
        folded: whether PyTorch runs the network as a board does for which batch norms are folded
            into convolutions; the file is the same.

    Returns:
        Plain rows, PyTorch's first: ``format``, ``bytes`` (of the file), ``input`` and ``output``
        (what it takes and gives, in words), ``correct``, ``images``
        and ``probability_difference`` (the largest from PyTorch's; all three None without
        ``test``), ``latency_ms`` (median of one image) and ``threads``.

    Raises:
        UserError: a model is none that onnxruntime runs; or see
            :func:`~hps_lightning.bluebox.folded.folded_network`.
    """
    rows: list[dict[str, Any]] = [
        {"format": PYTORCH, "bytes": len(legacy_file(board_weights(network.state_dict(), network)))}
    ]
    rows += [{"format": name, "bytes": len(model)} for name, model in models.items()]
    with _on_cpu(network, manifest, threads, folded) as evaluate:
        runs: list[tuple[Callable[[np.ndarray], np.ndarray], bool]] = [(evaluate, False)]
        rows[0].update(input=_input(False, manifest), output="logits")
        for row, model in zip(rows[1:], models.values(), strict=True):
            onnx_network = OnnxNetwork(model, threads)
            runs.append((onnx_network, onnx_network.takes_pixels))
            row.update(input=_input(onnx_network.takes_pixels, manifest), output=onnx_network.output)
        answers = [None if test is None else _probabilities(*each, manifest, test) for each in runs]
        for row, probabilities in zip(rows, answers, strict=True):
            row.update({"correct": None, "images": None, "probability_difference": None})
            if test is not None:
                row["correct"] = int((probabilities.argmax(1) == test.labels).sum())
                row["images"] = len(test.labels)
                row["probability_difference"] = float((probabilities - answers[0]).abs().max())
        for row, latency in zip(rows, _latencies(runs, manifest), strict=True):
            row["latency_ms"] = latency
            row["threads"] = threads
    return rows


def formats_table(rows: list[dict[str, Any]]) -> Table:
    """What :func:`compare_formats` returns, to be read; speeds and sizes beside the first row's."""
    first = rows[0]
    table = Table("format", "file", "of it", "accuracy", "one image", "times as fast")
    for row in rows:
        table.add_row(
            row["format"],
            f"{row['bytes'] / 1e3:,.1f} kB",
            f"{row['bytes'] / first['bytes']:.0%}",
            "not measured" if row["images"] is None else f"{row['correct'] / row['images']:.2%}",
            f"{row['latency_ms']:.3f} ms",
            f"{first['latency_ms'] / row['latency_ms']:.1f}",
        )
    return table


@contextmanager
def _on_cpu(
    network: nn.Module, manifest: Mapping[str, Any], threads: int, folded: bool
) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """A copy of the network, in evaluation mode, as a function of arrays."""
    copied = bare_copy(network).to(torch.float32).eval()
    if folded:
        copied = folded_network(copied, manifest)
    threads_before = torch.get_num_threads()

    @torch.inference_mode()
    def run(images: np.ndarray) -> np.ndarray:
        with torch.autocast("cpu", enabled=False):
            return copied(torch.from_numpy(images)).numpy()

    torch.set_num_threads(threads)
    try:
        yield run
    finally:
        torch.set_num_threads(threads_before)


def _input(takes_pixels: bool, manifest: Mapping[str, Any]) -> str:
    channels, height, width = manifest["input"]["shape"]
    if takes_pixels:
        return f"uint8, N x {height} x {width} x {channels}, RGB"
    return f"float32, N x {channels} x {height} x {width}, RGB, normalised"


def _prepared(pixels: np.ndarray, takes_pixels: bool, manifest: Mapping[str, Any]) -> np.ndarray:
    return pixels if takes_pixels else normalised(pixels, manifest)


def _probabilities(
    run: Callable[[np.ndarray], np.ndarray], takes_pixels: bool, manifest: Mapping[str, Any], test: Images
) -> torch.Tensor:
    """N x classes, of all test images."""
    answers = []
    for images in test.images.split(_BATCH):
        pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        answers.append(torch.from_numpy(run(_prepared(pixels, takes_pixels, manifest))))
    # What takes pixels gives probabilities, all others logits.
    return torch.cat(answers) if takes_pixels else torch.cat(answers).softmax(1)


def _latencies(runs: list[tuple[Callable[[np.ndarray], np.ndarray], bool]], manifest: Mapping[str, Any]) -> list[float]:
    """Median milliseconds of one image, for each."""
    channels, *sides = manifest["input"]["shape"]
    pixels = np.random.default_rng(0).integers(0, 256, (1, *sides, channels), np.uint8)
    images = [_prepared(pixels, takes_pixels, manifest) for _, takes_pixels in runs]
    times: list[list[float]] = [[] for _ in runs]
    # The first round warms up.
    for turn in range(_ROUNDS + 1):
        for (run, _), image, seconds in zip(runs, images, times, strict=True):
            for _ in range(_CALLS):
                since = perf_counter()
                run(image)
                if turn:
                    seconds.append(perf_counter() - since)
    return [1e3 * statistics.median(seconds) for seconds in times]
