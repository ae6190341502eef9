"""What is printed at the end: what was reached, where it lies, and what to type next."""

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.text import Text
from torch import Tensor

from hps_lightning.callbacks.best_validation import BestValidation
from hps_lightning.callbacks.checkpoints import best_checkpoint, checkpoint_command, last_checkpoint
from hps_lightning.errors import TrainingStopped
from hps_lightning.event_log import tensorboards

Rows = list[tuple[str, str]]


class Report(Callback):
    """Prints, at the end of a training, a validation or a test, what came out of it and what to type next.

    After a training, also one that Ctrl+C or SIGTERM ended: what was reached, where the checkpoints lie,
    and the commands that go on from there. After a validation or a test: the accuracy with the
    number of right images, and what the training itself had reported, if the module's
    ``checkpoint_record`` (see ``ImageClassifier.record``) holds it.
    """

    def __init__(self) -> None:
        self._best = BestValidation()
        self._started: float | None = None
        self._right: Tensor | None = None
        self._total = 0

    def state_dict(self) -> dict[str, Any]:
        """The best validation so far, for a training that is resumed."""
        return {"best": self._best.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up :meth:`state_dict`."""
        self._best.load_state_dict(state_dict["best"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Moves this behind the other callbacks, so that it can say what they have written."""
        if stage == "fit":
            self._best = BestValidation()
            self._started = time.monotonic()
        # A new list: Lightning is going through the old one.
        trainer.callbacks = [*(callback for callback in trainer.callbacks if callback is not self), self]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remembers the best validation."""
        if trainer.state.fn == "fit":
            self._best.update(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints what the training reached."""
        if trainer.is_global_zero:
            title = f"Training finished: {trainer.current_epoch} of {_epochs(trainer.max_epochs)}"
            _print(title + self._duration(), self._training_rows(trainer, test=True))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Says how to go on with a training that a signal ended."""
        if trainer.state.fn != "fit" or not isinstance(exception, KeyboardInterrupt) or not trainer.is_global_zero:
            return
        by = f" by {exception.signal.name}" if isinstance(exception, TrainingStopped) else ""
        title = f"Training interrupted{by} in epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"
        _print(title + self._duration(), self._training_rows(trainer, test=False) + _resume_rows(trainer))

    def _duration(self) -> str:
        return "" if self._started is None else f", {_seconds(time.monotonic() - self._started)}"

    def _training_rows(self, trainer: Trainer, test: bool) -> Rows:
        metrics = trainer.callback_metrics
        rows: Rows = []
        if "train/loss" in metrics:
            rows.append(("training", _scores(metrics, "train")))
        if self._best.accuracy is not None and "val/accuracy" in metrics:
            rows.append(("last validation", _scores(metrics, "val")))
            rows.append(("best validation", f"accuracy {_percent(self._best.accuracy)} in epoch {self._best.epoch}"))
        best, last = best_checkpoint(trainer), last_checkpoint(trainer)
        checkpoints = {"best checkpoint": best, "last checkpoint": last}
        rows += [(name, _display(path)) for name, path in checkpoints.items() if path]
        rows += [("weights", _display(path)) for path in _weights(trainer)]
        logs = (shlex.quote(_display(folder)) for folder in _log_folders(trainer))
        rows += [("TensorBoard", f"tensorboard --logdir {folder}") for folder in logs]
        if test and (best or last):
            rows.append(("test it", checkpoint_command("test", _display(best or last), type(trainer.lightning_module))))
        return rows

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts to count."""
        self._right, self._total = torch.zeros((), dtype=torch.int64, device=pl_module.device), 0

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Mapping[str, Tensor],
        batch: Sequence[Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts the images and the right ones."""
        labels = outputs["labels"]
        self._right += (outputs["logits"].argmax(1) == labels).sum()
        self._total += len(labels)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints what the test measured."""
        self._print_evaluation(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts to count, unless this is part of a training."""
        if trainer.state.fn == "validate":
            self.on_test_epoch_start(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Mapping[str, Tensor],
        batch: Sequence[Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts the images and the right ones, unless this is part of a training."""
        if trainer.state.fn == "validate":
            self.on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints what the validation measured, unless it is part of a training."""
        if trainer.state.fn == "validate":
            self._print_evaluation(trainer, pl_module)

    def _print_evaluation(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # On all ranks, since they sum.
        total = torch.tensor(self._total, device=self._right.device)
        right, total = (int(trainer.strategy.reduce(count, reduce_op="sum")) for count in (self._right, total))
        if not trainer.is_global_zero or not total:
            return
        stage = "test" if trainer.state.fn == "test" else "val"
        metrics = trainer.callback_metrics
        rows = [("accuracy", f"{_percent(right / total)} ({right:,} of {total:,} images)")]
        if f"{stage}/top5" in metrics:
            rows.append((f"top-{min(5, pl_module.num_classes)}", _percent(float(metrics[f"{stage}/top5"]))))
        if f"{stage}/loss" in metrics:
            rows.append(("loss", f"{float(metrics[f'{stage}/loss']):.4f}"))
        data = trainer.datamodule
        if hasattr(data, "info"):
            rows.append(("data", f"{data.info.title}, {_images(stage, getattr(data, 'protocol', None))}"))
        if hasattr(data, "protocol"):
            rows.append(("protocol", data.protocol))
        teacher = _teacher(getattr(pl_module, "checkpoint_record", None) or {})
        if teacher is not None:
            rows.append(("teacher", teacher))
        if trainer.ckpt_path:
            rows.append(("checkpoint", _display(str(trainer.ckpt_path))))
        rows += _reported_rows(trainer, pl_module, stage, right, total)
        _print("Test" if stage == "test" else "Validation", rows)


def _teacher(record: Mapping[str, Any]) -> str | None:
    # Whoever made the checkpoint may have put anything there.
    found: Any = record
    for key in ("distillation", "teacher", "name"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return None if found is None else str(found)


def _reported_rows(trainer: Trainer, pl_module: LightningModule, stage: str, right: int, total: int) -> Rows:
    record = getattr(pl_module, "checkpoint_record", None) or {}
    reported = (record.get("metrics") or {}).get("val/accuracy")
    if reported is None:
        return []
    text = f"{_percent(reported)} on the {_images('val', record.get('protocol'))}"
    if not _same_images(trainer, record, stage):
        return [("in training", f"{text}: other images, so that the two need not agree")]
    then = reported * total
    # The record is a float32, so that the product is a little beside the whole number.
    if abs(then - right) < 0.1:
        return [("in training", f"{text}: agrees")]
    return [("in training", f"{text}: does not agree, {then:,.0f} right then and {right:,} now")]


def _same_images(trainer: Trainer, record: Mapping[str, Any], stage: str) -> bool:
    """Whether the training that ``record`` tells of validated on the images that were just evaluated."""
    data, protocol = trainer.datamodule, record.get("protocol")
    limit = trainer.limit_test_batches if stage == "test" else trainer.limit_val_batches
    # 1.0 is everything; 1 is a single batch.
    if limit != 1 or not isinstance(limit, float):
        return False
    if getattr(getattr(data, "info", None), "name", None) != record.get("dataset"):
        return False
    if stage == "test":
        return protocol == "paper"
    if getattr(data, "protocol", None) != protocol:
        return False
    settings = record.get("data") or {}
    return protocol != "holdout" or all(
        name in settings and settings[name] == getattr(data, name, None) for name in ("val_fraction", "split_seed")
    )


def _images(stage: str, protocol: str | None) -> str:
    if stage == "test" or protocol == "paper":
        return "test images"
    return "hold-out images" if protocol == "holdout" else "validation images"


def _weights(trainer: Trainer) -> list[str]:
    paths = (getattr(callback, "weights_path", None) for callback in trainer.callbacks)
    return [os.fspath(path) for path in paths if path]


def _log_folders(trainer: Trainer) -> list[str]:
    # The folder of all versions, so that trainings can be compared.
    return [os.path.normpath(logger.root_dir) for logger in tensorboards(trainer)]


def _resume_rows(trainer: Trainer) -> Rows:
    path = last_checkpoint(trainer) or best_checkpoint(trainer) or trainer.ckpt_path
    if path is None:
        return [("resume it", "nothing was saved yet; start it again")]
    return [("resume it", checkpoint_command("fit", _display(str(path)), type(trainer.lightning_module)))]


def _display(path: str) -> str:
    """``path`` relative to the working directory where it lies inside it."""
    if "://" in path:
        return path
    absolute, here = Path(path).absolute(), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def _scores(metrics: Mapping[str, Tensor], stage: str) -> str:
    return f"accuracy {_percent(float(metrics[f'{stage}/accuracy']))}, loss {float(metrics[f'{stage}/loss']):.4f}"


def _percent(accuracy: float) -> str:
    return f"{100 * accuracy:.2f} %"


def _epochs(count: int | None) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"


def _seconds(duration: float) -> str:
    if duration < 60:
        return f"{duration:.1f} s"
    minutes, seconds = divmod(round(duration), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _print(title: str, rows: Rows) -> None:
    console = Console()
    width = max((len(name) for name, _ in rows), default=0)
    console.print()
    # Soft wrapping leaves long paths in one piece, so that they can be copied.
    console.print(Text(title, style="bold"), soft_wrap=True)
    for name, value in rows:
        console.print(Text.assemble("  ", (name.ljust(width), "bold"), "  ", value), soft_wrap=True)
