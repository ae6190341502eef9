"""The callback that measures what a training and its network cost, in the paper's terms and beyond."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from rich.table import Table
from torch import nn

from hps_lightning import complexity
from hps_lightning.bluebox.weights import bare_copy
from hps_lightning.callbacks.run_directory import run_directory
from hps_lightning.errors import UserError
from hps_lightning.files import write_text
from hps_lightning.machine import hardware, peak_resident_bytes, versions
from hps_lightning.modules.classifier import ImageClassifier

BENCHMARK_FORMAT = 1
METRIC = "val/accuracy"


@dataclass
class EpochCost:
    """What one epoch took.

    Attributes:
        epoch: counted from 0.
        train_seconds: of training alone, wall clock.
        val_seconds: of validation alone; None where nothing validated.
        images: that were trained, on all devices.
        warm_up: whether it was the first in its process, which also pays for starting up.
    """

    epoch: int = 0
    train_seconds: float = 0.0
    val_seconds: float | None = None
    images: int = 0
    warm_up: bool = False

    @property
    def epoch_seconds(self) -> float:
        """Training and validation together: the paper's model speed."""
        return self.train_seconds + (self.val_seconds or 0.0)

    @property
    def images_per_second(self) -> float:
        """Images trained in a second of training."""
        return self.images / self.train_seconds if self.train_seconds else 0.0

    def record(self) -> dict[str, Any]:
        """Everything above, in plain types."""
        return {**asdict(self), "epoch_seconds": self.epoch_seconds, "images_per_second": self.images_per_second}


class Benchmark(Callback):
    """Measures the network's size and work, and each epoch's time, and reports them when a training ends.

    Logs ``time/train_seconds``, ``time/val_seconds``, ``time/epoch_seconds`` and
    ``time/images_per_second`` for every epoch. At the end the first process prints a table
    and writes everything as JSON into the run's log directory. A training's time excludes
    validation, checkpoints and the sanity check; summaries are medians that leave out each
    process's first epoch where there are others. Epochs before a resume count, and so does the
    part of one; steps that a kill undid count once, as they are trained again. A fast dev run
    writes nothing.

    Args:
        filename: of the JSON file.
    """

    def __init__(self, filename: str = "benchmark.json") -> None:
        if not filename or Path(filename).name != filename:
            raise UserError(f"benchmark.filename is the name of a file in the run's folder, got {filename!r:.80}.")
        self.filename = filename
        self._reset()

    def _reset(self) -> None:
        self.epochs: dict[int, EpochCost] = {}
        self.best: dict[str, float] | None = None
        self._current = EpochCost()
        # "train", "val", or None for what counts as neither; and since when.
        self._activity: str | None = None
        self._since = 0.0
        self._batch_size = 0
        self._trained = False
        self._resumes = 0

    def state_dict(self) -> dict[str, Any]:
        """The epochs so far and the one under way, in plain types."""
        self._settle(perf_counter())
        # What follows is the checkpoint's time; the next batch starts the clock again.
        self._activity = None
        return {
            "epochs": [asdict(epoch) for epoch in self.epochs.values()],
            "current": asdict(self._current),
            "best": self.best,
            "batch_size": self._batch_size,
            "resumes": self._resumes,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up what :meth:`state_dict` returned."""
        self.epochs = {epoch["epoch"]: EpochCost(**epoch) for epoch in state_dict["epochs"]}
        self._current = EpochCost(**state_dict["current"])
        self.best = state_dict["best"]
        # Earlier versions have kept neither.
        self._batch_size = state_dict.get("batch_size", 0)
        self._resumes = state_dict.get("resumes", 0) + 1

    def setup(self, trainer: Trainer, pl_module: ImageClassifier, stage: str) -> None:
        """Settles where the file goes; every rank has to, since they agree on the log directory."""
        if stage == "fit":
            self._reset()
            self._path = Path(run_directory(trainer) or trainer.default_root_dir, self.filename)

    def on_fit_start(self, trainer: Trainer, pl_module: ImageClassifier) -> None:
        """Starts the GPU's memory statistics afresh."""
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(trainer.strategy.root_device)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: ImageClassifier) -> None:
        """Starts an epoch; one that is resumed half-way goes on without this."""
        self._current = EpochCost(trainer.current_epoch)
        self._switch(trainer, "train")

    def on_train_batch_start(self, trainer: Trainer, pl_module: ImageClassifier, batch: Any, batch_idx: int) -> None:
        """Goes on with training after a validation in the middle of an epoch, or a resume."""
        if self._current.epoch != trainer.current_epoch:
            # Resumed from an epoch's last step: Lightning neither ends that epoch nor starts the next one.
            if self._current.images:
                self.epochs[self._current.epoch] = self._current
            self._current = EpochCost(trainer.current_epoch)
        if not self._trained:
            self._trained = self._current.warm_up = True
        if self._activity != "train":
            self._switch(trainer, "train")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: ImageClassifier, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts images. After the last batch the clock rests, so that what starts a validation is not training."""
        size = len(batch[0])
        self._batch_size = max(self._batch_size, size)
        self._current.images += size * trainer.world_size
        if trainer.is_last_batch:
            self._switch(trainer, None)

    def on_validation_start(self, trainer: Trainer, pl_module: ImageClassifier) -> None:
        """Starts the clock of validation, which Lightning runs inside the training's epoch."""
        if _validates_training(trainer):
            self._switch(trainer, "val")

    def on_validation_end(self, trainer: Trainer, pl_module: ImageClassifier) -> None:
        """Stops the clock of validation, and keeps the metrics of the best epoch."""
        if not _validates_training(trainer):
            return
        self._switch(trainer, None)
        metrics = _metrics(trainer, ("val/",))
        if METRIC in metrics and (self.best is None or metrics[METRIC] > self.best[METRIC]):
            self.best = {"epoch": trainer.current_epoch, **metrics}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: ImageClassifier) -> None:
        """Closes the epoch and logs its times."""
        self._switch(trainer, None)
        cost, self._current = self._current, EpochCost()
        if not cost.images:
            # Without a step there is nothing to measure.
            return
        self.epochs[cost.epoch] = cost
        times = {
            f"time/{name}": getattr(cost, name) for name in ("train_seconds", "epoch_seconds", "images_per_second")
        }
        if cost.val_seconds is not None:
            times["time/val_seconds"] = cost.val_seconds
        # The mean over the processes, which wait for each other in every step.
        pl_module.log_dict(times, sync_dist=True)

    def on_fit_end(self, trainer: Trainer, pl_module: ImageClassifier) -> None:
        """Prints the table and writes the file."""
        # On every rank, since reading metrics may communicate.
        record = pl_module.record()
        # Not the trainer's, which keeps an earlier epoch's validation where the last one had none.
        final = {name: value for name, value in record["metrics"].items() if name.startswith(("train/", "val/"))}
        if not trainer.is_global_zero or trainer.fast_dev_run or not self.epochs:
            return
        if not self._trained and _epochs_in(self._path) >= len(self.epochs):
            # Resumed from where it had ended: what is there says more than could be said now.
            return
        report = self._report(trainer, pl_module, record, final)
        Console().print(_table(report))
        try:
            _write(self._path, report)
        except OSError as error:
            rank_zero_warn(f"The benchmark could not be written to {self._path}: {error}")

    def _switch(self, trainer: Trainer, activity: str | None) -> None:
        _synchronise(trainer.strategy.root_device)
        self._settle(perf_counter())
        self._activity = activity

    def _settle(self, now: float) -> None:
        """Adds the time since the last call to what it was spent on."""
        if self._activity == "train":
            self._current.train_seconds += now - self._since
        elif self._activity == "val":
            self._current.val_seconds = (self._current.val_seconds or 0.0) + now - self._since
        self._since = now

    def _report(
        self, trainer: Trainer, pl_module: ImageClassifier, record: dict[str, Any], final: dict[str, float]
    ) -> dict[str, Any]:
        device = trainer.strategy.root_device
        # Before the network is copied, which takes memory too.
        memory = {"process_peak_bytes": peak_resident_bytes(), "gpu_peak_bytes": None}
        if device.type == "cuda":
            memory["gpu_peak_bytes"] = torch.cuda.max_memory_allocated(device)
        return {
            "format": BENCHMARK_FORMAT,
            "model": {"class": record["model"]["class_path"], "arguments": record["model"]["init_args"]},
            "dataset": record.get("dataset"),
            "protocol": record.get("protocol"),
            "distillation": record.get("distillation"),
            "batch_size": self._batch_size * trainer.world_size,
            "devices": trainer.world_size,
            "precision": str(trainer.precision),
            "network": _network_cost(pl_module, record),
            "time": summarise(self.epochs.values()),
            "memory": memory,
            "metrics": {"final": final, "best": self.best},
            "epochs": [cost.record() for _, cost in sorted(self.epochs.items())],
            "resumes": self._resumes,
            "hardware": hardware(device),
            "versions": versions(),
        }


def summarise(epochs: Iterable[EpochCost]) -> dict[str, Any]:
    """Medians over the epochs of a training, without its warm-up where there is anything else.

    Returns:
        ``epochs`` (how many there are), ``epochs_counted`` (how many the medians are of),
        ``train_seconds``, ``val_seconds`` (None where nothing validated), ``epoch_seconds``,
        ``images_per_second``, and ``total_seconds`` (the sum over all epochs).
    """
    epochs = list(epochs)
    counted = [epoch for epoch in epochs if not epoch.warm_up] or epochs
    validations = [epoch.val_seconds for epoch in counted if epoch.val_seconds is not None]
    return {
        "epochs": len(epochs),
        "epochs_counted": len(counted),
        "train_seconds": median(epoch.train_seconds for epoch in counted),
        "val_seconds": median(validations) if validations else None,
        "epoch_seconds": median(epoch.epoch_seconds for epoch in counted),
        "images_per_second": median(epoch.images_per_second for epoch in counted),
        "total_seconds": sum(epoch.epoch_seconds for epoch in epochs),
    }


def _validates_training(trainer: Trainer) -> bool:
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _metrics(trainer: Trainer, prefixes: tuple[str, ...]) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(prefixes)}


def _network_cost(pl_module: ImageClassifier, record: dict[str, Any]) -> dict[str, Any]:
    # Measured on a copy: what a GPU's weights are saved as differs by a few bytes.
    network = _without_synchronisation(bare_copy(pl_module.network))
    image_size = tuple(record.get("image_size", complexity.IMAGE_SIZE))
    return {
        "parameters": complexity.count_parameters(network),
        "macs": complexity.count_macs(network, image_size),
        "image_size": list(image_size),
        "state_dict_bytes": complexity.state_dict_bytes(network),
        "module_bytes": complexity.module_bytes(network),
        "module_and_momentum_bytes": complexity.module_and_momentum_bytes(network),
    }


def _without_synchronisation(network: nn.Module) -> nn.Module:
    """The network with the batch norms that it was built with, whose code is part of the module's file."""
    for parent in list(network.modules()):
        for name, module in parent.named_children():
            if isinstance(module, nn.SyncBatchNorm):
                norm = nn.BatchNorm2d(module.num_features, module.eps, module.momentum)
                norm.load_state_dict(module.state_dict())
                setattr(parent, name, norm)
    return network


def _epochs_in(path: Path) -> int:
    """The number of epochs that a report tells of; 0 where there is none that can be read."""
    try:
        return len(json.loads(path.read_text(encoding="utf-8"))["epochs"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _write(path: Path, report: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(_plain(report), indent=2, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """``value`` as JSON has it, which knows no NaN and no infinity: they become None."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _table(report: dict[str, Any]) -> Table:
    network, seconds, memory, best = report["network"], report["time"], report["memory"], report["metrics"]["best"]
    of = f"median of {seconds['epochs_counted']}" if seconds["epochs_counted"] > 1 else "one epoch"
    rows = [
        ("parameters", f"{network['parameters']:,}"),
        ("multiply-accumulates", f"{network['macs'] / 1e6:,.2f} M"),
        ("state dict", _megabytes(network["state_dict_bytes"])),
        ("checkpoint: module (paper, Tables 1, 2, 4)", _megabytes(network["module_bytes"])),
        ("checkpoint: with momentum (paper, Table 3)", _megabytes(network["module_and_momentum_bytes"])),
        (f"training, seconds an epoch ({of})", _seconds(seconds["train_seconds"])),
        (f"validation, seconds an epoch ({of})", _seconds(seconds["val_seconds"])),
        (f"model speed: both ({of})", _seconds(seconds["epoch_seconds"])),
        ("training images a second", f"{seconds['images_per_second']:,.0f}"),
        ("peak memory of the process", _megabytes(memory["process_peak_bytes"])),
    ]
    if memory["gpu_peak_bytes"] is not None:
        rows.append(("peak memory on the GPU", _megabytes(memory["gpu_peak_bytes"])))
    if best is not None:
        rows.append(("best validation accuracy", f"{best[METRIC]:.2%} in epoch {best['epoch'] + 1}"))
    table = Table("benchmark", f"{report['model']['class']}, {report['dataset']}")
    for row in rows:
        table.add_row(*row)
    return table


def _megabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e6:,.3f} MB"


def _seconds(seconds: float | None) -> str:
    return "none" if seconds is None else f"{seconds:.2f} s"
