"""How fast networks answer here, in each format that they can be exported to.

    python benchmarks/inference.py --output benchmarks/results/NAME.json

Every published network, and torchvision's SqueezeNet 1.1 and MobileNetV3-small with 10 classes,
all on images of 32x32: in eager PyTorch, in eager PyTorch with batch norms folded, as float32
ONNX and as int8 ONNX by onnxruntime. Each case is a process of its own, on the same cores; they
take turns in one run, so that a drift of the machine's speed meets all of them. The first turn
of each warms up and does not count. How many times as fast a format is as eager PyTorch is taken
turn by turn.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx.experimental.optimization import fuse
from torchvision.models import mobilenet_v3_small, squeezenet1_1

import hps_lightning
from hps_lightning.bluebox.board.folding import fold
from hps_lightning.bluebox.onnx_export import calibration_images, export_int8, export_onnx
from hps_lightning.data import DATASETS
from hps_lightning.errors import UserError
from hps_lightning.files import write_json
from hps_lightning.machine import hardware, versions
from hps_lightning.pretrained import published_names

EAGER = "PyTorch"
BATCH_SIZE = 64
CASE = Path(__file__).with_name("inference_case.py")


def published(name: str) -> tuple[nn.Module, nn.Module, dict[str, Any], str]:
    """A published network, its folded copy, what the ONNX export needs to know, and its data set."""
    network, dataset = name.rsplit("-", 1)
    net = hps_lightning.load(network, dataset)
    pixels = {"shape": [3, 32, 32], "mean": list(net.mean), "std": list(net.std)}
    return net.network, fold(net.network), {"input": pixels}, dataset


def torchvisions(build: Any) -> tuple[nn.Module, nn.Module, dict[str, Any], str]:
    """Likewise a network of torchvision, with fresh weights: they do not change how long it takes."""
    torch.manual_seed(0)
    network = build(num_classes=10).eval()
    info = DATASETS["cifar10"]
    pixels = {"shape": [3, 32, 32], "mean": list(info.mean), "std": list(info.std)}
    return network, fuse(network), {"input": pixels}, "cifar10"


def write_formats(name: str, folder: Path) -> dict[str, tuple[str, Path]]:
    """Writes a network in all formats.

    Returns:
        For each format the library that runs it, and the file.
    """
    others = {"squeezenet1_1 (torchvision)": squeezenet1_1, "mobilenet_v3_small (torchvision)": mobilenet_v3_small}
    network, folded, manifest, dataset = torchvisions(others[name]) if name in others else published(name)
    files = {
        EAGER: ("torch", folder / "eager.pt"),
        "PyTorch folded": ("torch", folder / "folded.pt"),
        "ONNX float32": ("onnx", folder / "float32.onnx"),
        "ONNX int8": ("onnx", folder / "int8.onnx"),
    }
    folder.mkdir()
    for format_, module in ((EAGER, network), ("PyTorch folded", folded)):
        torch.save(module, files[format_][1])
    files["ONNX float32"][1].write_bytes(export_onnx(network, manifest))
    files["ONNX int8"][1].write_bytes(export_int8(network, manifest, calibration_images(dataset)))
    return files


class Case:
    """A process that runs one network in one format; see inference_case.py."""

    def __init__(self, library: str, file: Path, threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, str(CASE), library, str(file), str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __enter__(self) -> "Case":
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.communicate()

    def measure(self, batch_size: int, calls: int) -> dict[str, Any]:
        """Seconds of each call, and peak memory."""
        self.process.stdin.write(f"{batch_size} {calls}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a case ended with status {self.process.wait()}")
        return json.loads(line)


def measure(
    files: dict[str, dict[str, tuple[str, Path]]], threads: int, rounds: int, calls: int, batches: int
) -> list[dict[str, Any]]:
    """Lets all networks in all formats take turns.

    Returns:
        One row for each, with ``p50_ms``, ``p95_ms`` and ``p99_ms`` of one image,
        ``times_as_fast`` as eager PyTorch (median, least and greatest of the turns),
        ``images_per_second`` in batches, and ``peak_bytes`` for one image and for batches.
    """
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        cases = {
            (name, format_): stack.enter_context(Case(library, file, threads))
            for name, formats in files.items()
            for format_, (library, file) in formats.items()
        }
        single = {key: [] for key in cases}
        batched = {key: [] for key in cases}
        for results, batch_size, count in ((single, 1, calls), (batched, BATCH_SIZE, batches)):
            for turn in range(rounds + 1):
                for key, case in cases.items():
                    result = case.measure(batch_size, count)
                    if turn:
                        results[key].append(result)
        for name, format_ in cases:
            turns = [median(turn["seconds"]) for turn in single[name, format_]]
            eager = [median(turn["seconds"]) for turn in single[name, EAGER]]
            ratios = [theirs / ours for ours, theirs in zip(turns, eager, strict=True)]
            seconds = [second for turn in single[name, format_] for second in turn["seconds"]]
            p50, p95, p99 = (1e3 * float(value) for value in np.percentile(seconds, [50, 95, 99]))
            batch_seconds = median(second for turn in batched[name, format_] for second in turn["seconds"])
            rows.append(
                {
                    "network": name,
                    "format": format_,
                    "threads": threads,
                    "file_bytes": files[name][format_][1].stat().st_size,
                    "p50_ms": p50,
                    "p95_ms": p95,
                    "p99_ms": p99,
                    "times_as_fast": {"median": median(ratios), "least": min(ratios), "greatest": max(ratios)},
                    "images_per_second": BATCH_SIZE / batch_seconds,
                    "peak_bytes": single[name, format_][-1]["peak_bytes"],
                    "peak_bytes_batched": batched[name, format_][-1]["peak_bytes"],
                }
            )
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    """Prints the rows for people."""
    print(
        f"{'network':34}{'format':16}{'threads':>8}{'file kB':>9}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}"
        f"{'times as fast':>24}{f'images/s at {BATCH_SIZE}':>18}{'peak MB':>9}"
    )
    for row in rows:
        ratio = row["times_as_fast"]
        times = f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['greatest']:.2f})"
        peak = "unknown" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}"
        print(
            f"{row['network']:34}{row['format']:16}{row['threads']:8}{row['file_bytes'] / 1e3:9.1f}"
            f"{row['p50_ms']:9.3f}{row['p95_ms']:9.3f}{row['p99_ms']:9.3f}"
            f"{times:>24}{row['images_per_second']:18.0f}{peak:>9}"
        )


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*published_names(), "squeezenet1_1 (torchvision)", "mobilenet_v3_small (torchvision)"]
    parser.add_argument("--networks", nargs="+", default=names, choices=names, metavar="NAME", help="default: all")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="default: 1 2")
    parser.add_argument("--rounds", type=int, default=20, help="counted turns of each case (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=50, help="single images in a turn (default: %(default)s)")
    parser.add_argument("--batches", type=int, default=5, help="batches in a turn (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            files = {name: write_formats(name, Path(folder, str(i))) for i, name in enumerate(arguments.networks)}
            for threads in arguments.threads:
                rows += measure(files, threads, arguments.rounds, arguments.calls, arguments.batches)
    except UserError as error:
        print(f"inference: error: {error}", file=sys.stderr)
        return 2
    print_table(rows)
    if arguments.output:
        facts: dict[str, Any] = {"arguments": {key: str(value) for key, value in vars(arguments).items()}}
        facts |= {"batch_size": BATCH_SIZE, "rows": rows}
        facts |= {"hardware": hardware(torch.device("cpu")), "versions": versions() | onnx_versions()}
        write_json(arguments.output, facts)
    return 0


def onnx_versions() -> dict[str, str]:
    """Of the packages that write and run ONNX."""
    import onnx
    import onnxruntime

    return {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}


if __name__ == "__main__":
    sys.exit(main())
