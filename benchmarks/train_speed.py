"""How fast a training runs here, beside the way in which public CIFAR repositories train.

    python benchmarks/train_speed.py --model hps_06_05x --output benchmarks/results/NAME.json

Two processes train the same network on the same images: the engine of `hps fit` (images in memory,
batchwise augmentation, channels-last, bfloat16 where the processor has it; no logs and no checkpoints) and a reference
(torchvision's data set, PIL transforms, DataLoader with workers, float32, NCHW, eager). They
take turns in one run, a segment of steps each, so that a drift of the machine's speed meets
both; the ratio is taken pair by pair. The first segment of each warms up and does not count.
"""

import argparse
import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torchvision
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms

from hps_lightning import zoo
from hps_lightning.cli.lightning import quieten
from hps_lightning.data import DATASETS, ImageDataModule
from hps_lightning.data.readers import load_images
from hps_lightning.errors import UserError
from hps_lightning.files import write_json
from hps_lightning.machine import hardware, peak_resident_bytes, versions
from hps_lightning.modules import CLASSIFIERS
from hps_lightning.optim.build import PAPER_OPTIMIZER
from hps_lightning.precision import fast_precision

BATCH_SIZE = 128
PARTS = ("data", "forward", "backward", "optimizer", "other")


class Clock:
    """Adds up seconds by the part of a step that they were spent on."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._since = perf_counter()

    def lap(self, part: str) -> None:
        """Books the time since the last call on ``part``."""
        now = perf_counter()
        self.seconds[part] += now - self._since
        self._since = now


class Segments(Callback):
    """Runs a Lightning training a segment of steps at a time, as the other end of a pipe asks."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.left = 0

    def _wait(self, trainer: Trainer) -> None:
        steps = self.pipe.recv()
        if steps is None:
            trainer.should_stop = True
        self.left = steps or 0
        self.images, self.clock = 0, Clock()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Waits for the first segment."""
        self._wait(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The batch is there."""
        self.clock.lap("data")

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """The forward pass is over."""
        self.clock.lap("forward")

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The gradients are there."""
        self.clock.lap("backward")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is over; after the segment's last, reports and waits for the next."""
        self.clock.lap("optimizer")
        self.images += len(batch[0])
        self.left -= 1
        if self.left <= 0:
            self.pipe.send((self.images, self.clock.seconds))
            self._wait(trainer)


def engine(pipe: Any, variant: zoo.Variant, dataset: str, threads: int) -> None:
    """Trains as `hps fit` does, segment by segment; ends with the peak memory in bytes."""
    quieten()
    torch.set_num_threads(threads)
    seed_everything(0, verbose=False)
    data = ImageDataModule(dataset=dataset, protocol="full", batch_size=BATCH_SIZE)
    module = CLASSIFIERS[variant.family](num_classes=data.num_classes, optimizer=PAPER_OPTIMIZER, **variant.arguments)
    Trainer(
        accelerator="cpu",
        max_epochs=10_000,
        precision=fast_precision("cpu"),
        callbacks=[Segments(pipe)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, data)
    pipe.send(peak_resident_bytes())


class _Torchvision(torchvision.datasets.CIFAR10):
    """torchvision's data set, fetch for fetch, over images that were read already."""

    def __init__(self, images: np.ndarray, targets: list[int], transform: Any) -> None:
        self.data, self.targets = images, targets
        self.transform, self.target_transform = transform, None


def _batches(loader: DataLoader) -> Iterator[Any]:
    while True:
        yield from loader


def reference(pipe: Any, variant: zoo.Variant, dataset: str, threads: int, workers: int) -> None:
    """Trains as public CIFAR repositories do, segment by segment; ends with the peak memory in bytes."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    info = DATASETS[dataset]
    loaded = load_images(dataset, "train")
    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(info.mean, info.std),
        ]
    )
    images = _Torchvision(loaded.images.permute(0, 2, 3, 1).contiguous().numpy(), loaded.labels.tolist(), transform)
    loader = DataLoader(images, BATCH_SIZE, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    network: nn.Module = variant.build(len(info.classes))
    optimizer = torch.optim.SGD(network.parameters(), **PAPER_OPTIMIZER["init_args"])
    batches = _batches(loader)
    network.train()
    while (steps := pipe.recv()) is not None:
        clock, trained, correct = Clock(), 0, 0
        for _ in range(steps):
            inputs, targets = next(batches)
            clock.lap("data")
            outputs = network(inputs)
            loss = F.cross_entropy(outputs, targets)
            clock.lap("forward")
            optimizer.zero_grad()
            loss.backward()
            clock.lap("backward")
            optimizer.step()
            clock.lap("optimizer")
            # What such loops show in their progress line.
            loss.item()
            correct += outputs.argmax(1).eq(targets).sum().item()
            trained += len(inputs)
            clock.lap("other")
        pipe.send((trained, clock.seconds))
    pipe.send(peak_resident_bytes())


def _start(side: Any, *arguments: Any) -> tuple[Any, Any]:
    """A process that trains segment by segment, and our end of its pipe."""
    # Fork would copy the parent's thread pools in an unusable state.
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=side, args=(there, *arguments), name=side.__name__)
    process.start()
    return process, here


def reference_rates(model: str) -> list[float]:
    """Images a second of the reference alone on CIFAR-10: three segments of 60 steps, after one that warms up."""
    process, pipe = _start(reference, zoo.find_variant(model), "cifar10", torch.get_num_threads(), 2)
    rates = []
    for _ in range(1 + 3):
        pipe.send(60)
        images, seconds = pipe.recv()
        rates.append(images / sum(seconds.values()))
    pipe.send(None)
    pipe.recv()
    process.join()
    return rates[1:]


def measure(model: str, dataset: str, segments: int, steps: int, threads: int, workers: int) -> dict[str, Any]:
    """Lets both train in turn.

    Returns:
        For each side ``images_per_second`` (median, least, greatest), ``seconds_per_epoch`` of
        the full training set, ``split`` (share of each part of a step) and
        ``process_peak_bytes`` (without the reference's workers); and ``ratio``, pair by pair.
    """
    variant = zoo.find_variant(model)
    sides = {
        "engine": _start(engine, variant, dataset, threads),
        "reference": _start(reference, variant, dataset, threads, workers),
    }
    results: dict[str, list[tuple[int, dict[str, float]]]] = {name: [] for name in sides}
    for segment in range(segments + 1):
        for name, (_, pipe) in sides.items():
            pipe.send(steps)
            images, seconds = pipe.recv()
            print(f"segment {segment} {name:10} {images / sum(seconds.values()):8.0f} images/s", flush=True)
            if segment:
                results[name].append((images, seconds))
    summary: dict[str, Any] = {}
    size = DATASETS[dataset].train_size
    for name, (process, pipe) in sides.items():
        pipe.send(None)
        peak = pipe.recv()
        process.join()
        rates = [images / sum(seconds.values()) for images, seconds in results[name]]
        total = {part: sum(seconds[part] for _, seconds in results[name]) for part in PARTS}
        summary[name] = {
            "images_per_second": {"median": median(rates), "least": min(rates), "greatest": max(rates)},
            "seconds_per_epoch": size / median(rates),
            "split": {part: seconds / sum(total.values()) for part, seconds in total.items()},
            "process_peak_bytes": peak,
        }
    ratios = [
        (ours[0] / sum(ours[1].values())) / (theirs[0] / sum(theirs[1].values()))
        for ours, theirs in zip(results["engine"], results["reference"], strict=True)
    ]
    summary["ratio"] = {"median": median(ratios), "least": min(ratios), "greatest": max(ratios)}
    return summary


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="hps_06_05x", help="a network of the zoo (default: %(default)s)")
    parser.add_argument("--dataset", default="cifar10", choices=["cifar10", "cifar100", "digits"])
    parser.add_argument("--segments", type=int, default=5, help="counted segments of each side (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="training steps in a segment (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="of the reference's DataLoader (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    try:
        summary = measure(
            arguments.model,
            arguments.dataset,
            arguments.segments,
            arguments.steps,
            arguments.threads,
            arguments.workers,
        )
    except UserError as error:
        print(f"train_speed: error: {error}", file=sys.stderr)
        return 2
    for name in ("engine", "reference"):
        side = summary[name]
        rate, split = side["images_per_second"], ", ".join(f"{k} {v:.0%}" for k, v in side["split"].items())
        print(
            f"{name:10} {rate['median']:6.0f} images/s ({rate['least']:.0f} to {rate['greatest']:.0f}), "
            f"{side['seconds_per_epoch']:.1f} s an epoch, peak {side['process_peak_bytes'] / 1e6:.0f} MB; {split}"
        )
    ratio = summary["ratio"]
    print(f"engine / reference: {ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['greatest']:.2f})")
    if arguments.output:
        facts = {"arguments": {key: str(value) for key, value in vars(arguments).items()}, **summary}
        facts["precision"] = fast_precision("cpu")
        machine = {**hardware(torch.device("cpu")), "threads": arguments.threads}
        facts |= {"hardware": machine, "versions": versions()}
        write_json(arguments.output, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
