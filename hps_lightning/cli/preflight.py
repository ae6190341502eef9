"""What a command would stumble over later, found before it has left anything on the disk."""

import inspect
import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import jsonargparse
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import DeviceStatsMonitor, GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.plugins import MixedPrecision

from hps_lightning.callbacks import BestCheckpoint, Distillation
from hps_lightning.checkpoint_scan import unplain
from hps_lightning.data import DATASETS, ImageDataModule
from hps_lightning.errors import UserError
from hps_lightning.modules import ImageClassifier, check_trainable, class_path
from hps_lightning.optim import (
    PAPER_OPTIMIZER,
    TrainingLength,
    build_optimizer,
    build_schedule,
    optimizer_class,
    schedule_class,
    spans_training,
)

_LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
    "num_sanity_val_steps": -1,
}
"""The least value of what Lightning's Trainer takes unseen, and stumbles over later."""

_MOST_DEVICES = 1024

# The callbacks of these packages log nothing that another could watch.
_KNOWN_CALLBACKS = ("lightning", "hps_lightning")


def check_trainer_arguments(trainer: jsonargparse.Namespace) -> None:
    """Refuses arguments of the Trainer that it would take unseen, or that leave no checkpoints.

    Args:
        trainer: the arguments, before it is built.

    Raises:
        UserError: one of them cannot be used.
    """
    for name, least in _LEAST.items():
        value = trainer[name]
        if isinstance(value, int | float) and not value >= least:
            raise UserError(f"trainer.{name} must be at least {least}, got {value!r}.")
    devices = str(trainer.devices)
    if devices.isdecimal() and int(devices[:20]) > _MOST_DEVICES:
        raise UserError(f"trainer.devices must be at most {_MOST_DEVICES}, got {devices:.80}.")
    for name, why in (("enable_checkpointing", "writes checkpoints"), ("barebones", "writes checkpoints and logs")):
        if trainer[name] is (name == "barebones"):
            raise UserError(f"trainer.{name} {str(trainer[name]).lower()}: a training here {why}; leave it out.")


def check_network_arguments(model: jsonargparse.Namespace) -> None:
    """Refuses a module that would not hear of the classes, the optimizer or the schedule; the parser lets it be.

    Args:
        model: its class and arguments.

    Raises:
        UserError: it takes one of them not.
    """
    missing = [name for name in ("num_classes", "optimizer", "lr_scheduler") if name not in model.init_args]
    if missing:
        raise UserError(
            f"{model.class_path} takes no {' and no '.join(missing)}, so that --data.dataset, --optimizer or "
            "--lr_scheduler would change nothing; let its __init__ take num_classes, optimizer and lr_scheduler, and "
            "give them to that of hps_lightning.modules.ImageClassifier."
        )


def check_kept_arguments(model: ImageClassifier, arguments: jsonargparse.Namespace) -> None:
    """Refuses a module whose checkpoints nobody could read.

    Args:
        model: as built.
        arguments: from which.

    Raises:
        UserError: it does not keep them, or they are no plain values.
    """
    missing = sorted(name for name in vars(arguments) if name not in model.hparams)
    if missing:
        raise UserError(
            f"{class_path(type(model))} does not keep {', '.join(missing)}, so that it could not be built anew from "
            "its checkpoints; let its __init__ end with self.save_hyperparameters()."
        )
    reason = unplain(dict(model.hparams))
    if reason is not None:
        raise UserError(
            f"{class_path(type(model))} has {reason} among its arguments, and its checkpoints hold plain values alone: "
            "numbers, texts, lists and mappings."
        )


def check_recipe(trainer: Trainer, model: ImageClassifier, data: ImageDataModule, sync_batchnorm: bool) -> None:
    """Refuses what the training itself would stumble over.

    Args:
        trainer: as built.
        model: what it is to train.
        data: on what.
        sync_batchnorm: the argument of the Trainer, which does not tell it.

    Raises:
        UserError: something that the user gave cannot be used.
    """
    check_trainable(trainer)
    if sync_batchnorm and trainer.strategy.root_device.type != "cuda":
        raise UserError(
            "trainer.sync_batchnorm true: PyTorch shares batch norms' statistics between GPUs alone, and this "
            f"training runs on {trainer.strategy.root_device.type}; leave it out."
        )
    data.check_trainer(trainer)
    data.check_batch_size(data.info.size("train"))
    optimizer = build_optimizer(model.network, model.optimizer_spec)
    # However many steps an epoch will have.
    validates = data.validates and trainer.limit_val_batches != 0
    length = TrainingLength(trainer.max_epochs, 100, validates, trainer.max_steps)
    schedule = build_schedule(optimizer, model.lr_scheduler_spec, length) or {}
    _check_accumulation(trainer, model, schedule)
    # As Lightning finds it out.
    scales = isinstance(trainer.precision_plugin, MixedPrecision) and getattr(
        optimizer, "_step_supports_amp_scaling", False
    )
    if scales and trainer.gradient_clip_val:
        raise UserError(
            f"optimizer.fused true and trainer.gradient_clip_val {trainer.gradient_clip_val} do not go "
            f"together under trainer.precision {trainer.precision}, where a fused optimizer scales the "
            "gradients itself; leave optimizer.fused out."
        )
    if scales and _scales_gradients(trainer) and optimizer.defaults.get("momentum"):
        raise UserError(
            f"optimizer.fused true and trainer.precision {trainer.precision} do not go together with a momentum, which "
            "would have no value after the first steps, whose scaled gradients overflow; leave optimizer.fused out."
        )
    _check_monitors(trainer, model, schedule, validates)
    for callback in trainer.callbacks:
        if isinstance(callback, Distillation):
            callback.prepare(model, data)
        elif isinstance(callback, StochasticWeightAveraging) and _scales_gradients(trainer):
            raise UserError(
                f"StochasticWeightAveraging and trainer.precision {trainer.precision} do not go together: the last "
                "epoch has no gradients that could be scaled. Take bf16-mixed, or EMAWeightAveraging."
            )
        elif isinstance(callback, StochasticWeightAveraging) and not any(
            isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules()
        ):
            # Lightning averages after the last epoch, and adds one for batch norms alone.
            raise UserError(
                "StochasticWeightAveraging leaves its averages in no checkpoint of a network without batch norm. Take "
                "EMAWeightAveraging."
            )
        elif isinstance(callback, DeviceStatsMonitor) and find_spec("psutil") is None:
            cpu_stats = callback._cpu_stats
            if cpu_stats or (cpu_stats is None and trainer.strategy.root_device.type == "cpu"):
                raise UserError(
                    "DeviceStatsMonitor measures a processor with the package psutil, which is not installed: "
                    "pip install psutil, or leave the callback out."
                )


def _scales_gradients(trainer: Trainer) -> bool:
    return isinstance(trainer.precision_plugin, MixedPrecision) and trainer.precision_plugin.scaler is not None


def _check_accumulation(trainer: Trainer, model: ImageClassifier, schedule: dict[str, Any]) -> None:
    if schedule.get("interval") != "step":
        return
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):
        name = model.lr_scheduler_spec["class_path"].rsplit(".", 1)[-1]
        raise UserError(
            f"GradientAccumulationScheduler changes how many steps an epoch has, over which {name} is laid out. "
            "Take trainer.accumulate_grad_batches, which is the same in all epochs, or a schedule that follows "
            "epochs: MultiStepLR, StepLR, ExponentialLR or ReduceLROnPlateau."
        )


def _check_monitors(trainer: Trainer, model: ImageClassifier, schedule: dict[str, Any], validates: bool) -> None:
    callbacks: list[Any] = trainer.callbacks
    if not all(type(callback).__module__.split(".")[0] in _KNOWN_CALLBACKS for callback in callbacks):
        # Another callback may log what another watches.
        return
    monitors = [("lr_scheduler", schedule.get("monitor"), getattr(schedule.get("scheduler"), "mode", None))]
    for callback in callbacks:
        best = isinstance(callback, BestCheckpoint)
        # Without validation, none is best.
        if validates or not best:
            name = "best_checkpoint" if best else type(callback).__name__
            monitors.append((name, getattr(callback, "monitor", None), getattr(callback, "mode", None)))
    logged = model.logged(validates)
    for name, monitor, mode in monitors:
        if monitor is not None and monitor not in logged:
            raise UserError(
                f"{name}: monitor {monitor!r} is nothing that this training logs; it logs {', '.join(logged)}."
            )
        better = "min" if str(monitor).endswith("/loss") else "max"
        if monitor is not None and mode in ("min", "max") and mode != better:
            raise UserError(
                f"{name}: a {monitor} is better where it is {'smaller' if better == 'min' else 'greater'}, but mode "
                f"is {mode}; set mode to {better}."
            )


def check_classes(record: dict[str, Any], dataset: str) -> None:
    """Refuses a data set with another number of classes than a checkpoint's network.

    Args:
        record: that of the checkpoint.
        dataset: a name of ``hps_lightning.data.DATASETS``.

    Raises:
        UserError: the numbers differ.
    """
    known, needed = record["model"]["init_args"].get("num_classes"), len(DATASETS[dataset].classes)
    if known != needed:
        raise UserError(
            f"data.dataset {dataset} has {needed} classes, but the checkpoint's network tells {known} apart. "
            "`hps fit --init_weights` starts a network for other classes from its weights."
        )


def check_length(record: dict[str, Any], model: ImageClassifier, max_epochs: int) -> None:
    """Refuses to continue a training over another length than its schedule was laid out for.

    Args:
        record: that of the checkpoint.
        model: the module that goes on.
        max_epochs: as the user now has it.

    Raises:
        UserError: the schedule spans the whole training, and the lengths differ.
    """
    planned = record.get("max_epochs")
    spec = model.lr_scheduler_spec
    if planned == max_epochs or not spec or not spans_training(spec):
        return
    raise UserError(
        f"The training was laid out for {planned} epochs and its {spec['class_path'].rsplit('.', 1)[-1]} ends there, "
        f"so that it cannot go on to {max_epochs}. Start another from its weights: --init_weights instead of "
        "--ckpt_path."
    )


def check_optimization(record: dict[str, Any], model: ImageClassifier) -> None:
    """Refuses another optimizer or schedule than the training that is continued has.

    Its state comes from the checkpoint, rates and momenta too, so that others would be ignored, or not fit it.

    Args:
        record: that of the checkpoint.
        model: the module that goes on.

    Raises:
        UserError: the class or an argument is another.
    """
    known = record["model"]["init_args"]
    for name, find, own, none in (
        ("optimizer", optimizer_class, model.optimizer_spec or PAPER_OPTIMIZER, PAPER_OPTIMIZER),
        ("lr_scheduler", schedule_class, model.lr_scheduler_spec, None),
    ):
        # Whoever made the checkpoint may have put anything there.
        begun = known[name] if isinstance(known.get(name), Mapping) else none
        change = _change(name, find, begun, own)
        if change is not None:
            raise UserError(
                f"{change}: a training goes on with the optimizer and the schedule that it began with. To train in "
                "another way from its weights, use --init_weights instead of --ckpt_path."
            )


def _change(name: str, find: Callable[[str], type], begun: Any, own: Any) -> str | None:
    """What differs between two specifications of a class, as an option and the checkpoint's value."""
    classes = [None if spec is None else find(spec.get("class_path")) for spec in (begun, own)]
    if classes[0] is not classes[1]:
        was, now = ("null" if found is None else found.__name__ for found in classes)
        return f"--{name} {now} in place of the checkpoint's {was}"
    if own is None:
        return None
    parameters = inspect.signature(classes[1]).parameters
    was, now = (_plain(dict(spec.get("init_args") or {})) for spec in (begun, own))
    for key in sorted(was.keys() | now.keys()):
        # A version of torch may have an argument more than the one before it.
        default = _plain(parameters[key].default) if key in parameters else None
        values = was.get(key, default), now.get(key, default)
        if values[0] != values[1]:
            return f"--{name}.{key} {json.dumps(values[1])} in place of the checkpoint's {json.dumps(values[0])}"
    return None


def _plain(value: Any) -> Any:
    """As JSON has it, which knows no tuples."""
    return json.loads(json.dumps(value, default=str))
