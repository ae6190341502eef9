"""What a training needs to go on exactly, beyond what Lightning keeps of it."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.loop import _Loop
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch import Tensor
from torchmetrics import Metric

from hps_lightning.event_log import tensorboards

RESUME_KEY = "hps_lightning_resume"
"""Where a checkpoint holds it."""

_LOGS = "events.out.tfevents.*"


class Resume(Callback):
    """Makes a training that goes on from a checkpoint the same as one that was never interrupted.

    Lightning restores weights, optimizer, schedule, counters and callbacks. This adds:

    - the metrics that callbacks look at, such as the last validation's;
    - what an epoch has added up so far in torchmetrics, where it goes on in its middle;
    - the state of the generators of torch, numpy and Python;
    - TensorBoard's files: what was logged after the checkpoint is cut off, since the training
      logs it again, and what was to be logged next is logged.

    A training that has nothing left to train changes no file.
    """

    def __init__(self) -> None:
        self._state: dict[str, Any] | None = None
        self._trained = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets what an earlier training left."""
        self._state, self._trained = None, False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the state to a checkpoint; on every rank, since metrics are summed over them."""
        if trainer.state.fn != "fit":
            return
        ends_epoch = _ends_epoch(trainer)
        # A copy, since these are what the metrics themselves go on with.
        metrics = {name: value.detach().clone() for name, value in trainer.callback_metrics.items()}
        checkpoint[RESUME_KEY] = {
            "metrics": metrics,
            "sums": {} if ends_epoch else _sums(pl_module),
            "random": random_state(),
            "unlogged": _unlogged(trainer, ends_epoch),
            "logs": [_log_sizes(logger) for logger in tensorboards(trainer)],
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes the state out of a checkpoint; earlier versions have left none."""
        if trainer.state.fn == "fit":
            self._state = checkpoint.get(RESUME_KEY)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores the metrics that callbacks look at."""
        if self._state is None:
            return
        # It would forget them; and this training has validated before.
        trainer.num_sanity_val_steps = 0
        trainer.callback_metrics.update(_moved(self._state["metrics"], pl_module.device))
        stopping = [callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping)]
        if any(_has_stopped(callback, trainer.callback_metrics) for callback in stopping):
            trainer.should_stop = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores the rest, now that it is certain that the training goes on."""
        self._trained = True
        _begin_next_epoch(trainer.fit_loop)
        if self._state is None:
            return
        if trainer.is_global_zero:
            # The sums are over all ranks.
            _restore_sums(pl_module, self._state["sums"])
            for logger, sizes in zip(tensorboards(trainer), self._state["logs"], strict=False):
                _cut_logs(logger, sizes, trainer.global_step)
            self._log_unlogged(trainer)
        set_random_state(self._state["random"])

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs what was left to log where a training was killed between its last checkpoint and its end."""
        if self._state is None or self._trained:
            return
        set_random_state(self._state["random"])
        if trainer.is_global_zero and not all(_has_logged(logger, self._state) for logger in tensorboards(trainer)):
            self._log_unlogged(trainer)

    def _log_unlogged(self, trainer: Trainer) -> None:
        unlogged = self._state["unlogged"]
        for logger in tensorboards(trainer):
            if unlogged["metrics"]:
                logger.log_metrics(unlogged["metrics"], unlogged["step"])
            logger.save()


def _begin_next_epoch(loop: _FitLoop) -> None:
    """Lets a training that goes on where an epoch ended begin with the next one.

    Lightning does so, but not where ``max_steps`` is given: it would end the epoch once more, without a step, and
    count it twice.
    """
    if loop.restarted_on_epoch_end:
        loop.epoch_progress.increment_completed()
        loop.reset_restart_stage()
        # Its own setter takes no False there.
        _Loop.restarting.fset(loop, False)


def random_state() -> dict[str, Any]:
    """The state of all generators, in types that can be loaded without executing anything."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Takes up what :func:`random_state` returned."""
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def _ends_epoch(trainer: Trainer) -> bool:
    """Whether an epoch's steps and validation are all done."""
    epochs = trainer.fit_loop.epoch_progress.current
    return epochs.processed > epochs.completed


def _has_stopped(callback: EarlyStopping, metrics: Mapping[str, Tensor]) -> bool:
    """Whether it had ended the training, and would again: whoever goes on may have another threshold."""
    thresholds = {
        EarlyStoppingReason.STOPPING_THRESHOLD: (1, callback.stopping_threshold),
        EarlyStoppingReason.DIVERGENCE_THRESHOLD: (-1, callback.divergence_threshold),
    }
    if callback.stopping_reason in thresholds:
        sign, threshold = thresholds[callback.stopping_reason]
        if threshold is None or callback.monitor not in metrics:
            return False
        return bool(callback.monitor_op(sign * metrics[callback.monitor], sign * threshold))
    return callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED


def _sums(pl_module: LightningModule) -> dict[str, dict[str, Any]]:
    """What the module's metrics have added up, over all ranks, by their names."""
    sums: dict[str, dict[str, Any]] = {}
    for name, metric in pl_module.named_modules():
        if isinstance(metric, Metric) and metric.update_called:
            with metric.sync_context():
                sums[name] = _moved(metric.metric_state, "cpu")
    return sums


def _restore_sums(pl_module: LightningModule, sums: dict[str, dict[str, Any]]) -> None:
    for name, state in sums.items():
        metric = pl_module.get_submodule(name)
        for key, value in _moved(state, metric.device).items():
            setattr(metric, key, value)


def _moved(values: dict[str, Any], device: torch.device | str) -> dict[str, Any]:
    """A copy of a dictionary of tensors, or lists of them, on a device."""

    def moved(value: Any) -> Any:
        return value.detach().to(device, copy=True) if isinstance(value, Tensor) else [moved(item) for item in value]

    return {name: moved(value) for name, value in values.items()}


def _unlogged(trainer: Trainer, ends_epoch: bool) -> dict[str, Any]:
    """What Lightning will log as soon as the checkpoint is written: ``metrics``, as numbers, and their ``step``."""
    connector, loop = trainer._logger_connector, trainer.fit_loop.epoch_loop
    if not trainer.training or not (ends_epoch or (connector.should_update_logs and not loop._should_accumulate())):
        return {"metrics": {}, "step": 0}
    metrics = {name: float(value) for name, value in connector.metrics["log"].items()}
    if metrics or ends_epoch:
        metrics.setdefault("epoch", trainer.current_epoch)
    # An epoch's metrics belong to its last step, which is over by then.
    return {"metrics": metrics, "step": loop._batches_that_stepped - ends_epoch}


def _log_files(logger: TensorBoardLogger) -> list[Path]:
    # There are none where the logs lie on no local disk.
    return sorted(Path(logger.log_dir).glob(_LOGS))


def _log_sizes(logger: TensorBoardLogger) -> dict[str, int]:
    """The log files of a run by name, in bytes, with all that was logged so far."""
    logger.save()
    return {path.name: path.stat().st_size for path in _log_files(logger)}


def _cut_logs(logger: TensorBoardLogger, sizes: dict[str, int], step: int) -> None:
    """Cuts off what was logged after a checkpoint was written.

    Args:
        logger: of the training that goes on.
        sizes: what :func:`_log_sizes` returned then.
        step: of the checkpoint.
    """
    files = _log_files(logger)
    if not any(path.name in sizes for path in files):
        # Another run's checkpoint was put here.
        return
    writer = logger.experiment.file_writer.event_writer
    # Ours, or tensorboard's own.
    current = Path(writer.path if hasattr(writer, "path") else writer._file_name).name
    for path in files:
        if path.name == current:
            continue
        if path.name not in sizes:
            path.unlink()
        elif path.stat().st_size > sizes[path.name]:
            with open(path, "rb+") as file:
                file.truncate(sizes[path.name])
    # A TensorBoard that is watching forgets what it has read of these.
    writer.add_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))


def _has_logged(logger: TensorBoardLogger, state: dict[str, Any]) -> bool:
    """Whether what was to be logged next is in the logs."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    names, step = state["unlogged"]["metrics"], state["unlogged"]["step"]
    log = EventAccumulator(logger.log_dir, size_guidance={"scalars": 0, "images": 1, "tensors": 1}).Reload()
    tags = log.Tags()["scalars"]
    return all(name in tags and any(event.step == step for event in log.Scalars(name)) for name in names)
