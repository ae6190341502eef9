"""From the plain specification in a config or a checkpoint to an optimizer and its schedule."""

import importlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hps_lightning.errors import UserError
from hps_lightning.names import no_name
from hps_lightning.optim import schedules

OPTIMIZERS: dict[str, str] = {
    "SGD": "torch.optim.SGD",
    "Adam": "torch.optim.Adam",
    "AdamW": "torch.optim.AdamW",
    "Adamax": "torch.optim.Adamax",
    "Adagrad": "torch.optim.Adagrad",
    "Rprop": "torch.optim.Rprop",
    "RMSprop": "torch.optim.RMSprop",
    "AdaBound": "pytorch_optimizer.AdaBound",
    "MuonWithAuxAdam": "hps_lightning.optim.MuonWithAuxAdam",
}
"""Where each optimizer that goes by its bare name is defined."""

SCHEDULES: dict[str, type[schedules.LRSchedule]] = {
    schedule.__name__: schedule
    for schedule in (
        schedules.MultiStepLR,
        schedules.StepLR,
        schedules.ExponentialLR,
        schedules.CosineAnnealingLR,
        schedules.CosineAnnealingWarmRestarts,
        schedules.CyclicLR,
        schedules.OneCycleLR,
        schedules.ReduceLROnPlateau,
    )
}
"""The schedules by name."""

# Named, since others take the argument `fused` and refuse it on a CPU.
_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)

PAPER_OPTIMIZER: dict[str, Any] = {
    "class_path": "torch.optim.SGD",
    "init_args": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
}
"""SGD with Nesterov momentum as the paper's section 7.1 sets it; the momentum is the usual one."""


def optimizer_class(class_path: str) -> type[Optimizer]:
    """The optimizer that a bare name or a class's path in torch, pytorch_optimizer or this package names.

    Raises:
        UserError: there is no such optimizer.
    """
    if not isinstance(class_path, str):
        raise UserError(no_name("optimizer", str(class_path), OPTIMIZERS))
    path = OPTIMIZERS.get(class_path, class_path)
    module, _, name = path.rpartition(".")
    # The name may come out of a stranger's checkpoint: nothing else is imported.
    if (
        path in OPTIMIZERS.values()
        or module.split(".")[0] == "pytorch_optimizer"
        or module == "torch.optim"
        or module.startswith("torch.optim.")
    ):
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ImportError:
            found = None
        if isinstance(found, type) and issubclass(found, Optimizer):
            return found
    raise UserError(no_name("optimizer", class_path, OPTIMIZERS))


def schedule_class(class_path: str) -> type[schedules.LRSchedule]:
    """The schedule that a bare name or the path of one of our classes names.

    Raises:
        UserError: there is no such schedule.
    """
    name = str(class_path).removeprefix(schedules.__name__ + ".")
    if name in SCHEDULES:
        return SCHEDULES[name]
    raise UserError(no_name("learning rate schedule", class_path, SCHEDULES))


def _call(factory: Any, *args: Any, spec: Mapping[str, Any], **ours: Any) -> Any:
    # What is ours stays out of the message, since the user did not type it.
    init_args = dict(spec.get("init_args") or {})
    try:
        return factory(*args, **{**init_args, **ours})
    except Exception as error:  # pytorch_optimizer raises errors of its own.
        raise UserError(f"{factory.__name__} cannot be made with {init_args}: {error}") from error


# Of pytorch_optimizer; they would fail in their first step.
_SECOND_DERIVATIVES = ("AdaHessian", "SophiaH")


def build_optimizer(
    network: nn.Module, spec: Mapping[str, Any] | None, fused: bool = False, decay_norm_and_bias: bool = True
) -> Optimizer:
    """The optimizer of ``network``'s parameters.

    Args:
        network: whose parameters are optimized.
        spec: ``{"class_path": ..., "init_args": {...}}``; the paper's optimizer if None.
        fused: whether all parameters are updated in one operation where the optimizer has one
            and ``spec`` does not choose; it is faster, with the same result.
        decay_norm_and_bias: whether the weight decay acts on all parameters; otherwise only on
            those of two and more dimensions, which are the weights of convolutions and linear layers.

    Raises:
        UserError: the optimizer is unknown, does not take the arguments, or cannot train here.
    """
    spec = spec or PAPER_OPTIMIZER
    found = optimizer_class(spec.get("class_path"))
    given = spec.get("init_args") or {}
    for name, value in given.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{found.__name__}: {name} must be a finite number, got {value!r}.")
    if found is torch.optim.SparseAdam:
        raise UserError("SparseAdam takes sparse gradients alone, which no network here has; use Adam.")
    if found is torch.optim.LBFGS:
        raise UserError("LBFGS takes weights that lie in memory row by row, which no network here has; use Adam.")
    if found.__name__ in _SECOND_DERIVATIVES:
        raise UserError(f"{found.__name__} needs second derivatives, which no training here computes; use Adam.")
    if hasattr(found, "eval"):
        raise UserError(
            f"{found.__name__} evaluates other weights than it trains, between which Lightning's trainer does not "
            "switch; use another one with EMAWeightAveraging."
        )
    chosen = given.get("fused") is not None or given.get("foreach") or given.get("differentiable")
    parameters: list[Any] = list(network.parameters())
    # Adagrad's is for a CPU alone before torch 2.12.
    available = found is not torch.optim.Adagrad or all(one.device.type == "cpu" for one in parameters)
    ours = {"fused": True} if fused and not chosen and found in _FUSED and available else {}
    if not decay_norm_and_bias:
        decayed = [parameter for parameter in parameters if parameter.ndim > 1]
        spared = [parameter for parameter in parameters if parameter.ndim <= 1]
        parameters = [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]
    optimizer = _call(found, parameters, spec=spec, **ours)
    optimizer.register_load_state_dict_post_hook(_keep_kernels)
    return optimizer


def _keep_kernels(optimizer: torch.optim.Optimizer) -> None:
    # A checkpoint's groups bring the choice that suited the device and the trainer that it was made with.
    for group in optimizer.param_groups:
        if "fused" not in group:
            continue
        group["fused"] = optimizer.defaults["fused"]
        for parameter in group["params"] if group["fused"] else ():
            state = optimizer.state.get(parameter, {})
            if isinstance(state.get("step"), Tensor):
                # Loaded by the checkpoint's choice, which leaves it on the CPU, where the fused step does not look.
                state["step"] = state["step"].to(parameter.device)


def make_schedule(spec: Mapping[str, Any]) -> schedules.LRSchedule:
    """The schedule that ``{"class_path": ..., "init_args": {...}}`` specifies.

    Raises:
        UserError: the schedule is unknown or does not take the arguments.
    """
    return _call(schedule_class(spec.get("class_path")), spec=spec)


def spans_training(spec: Mapping[str, Any]) -> bool:
    """Whether the schedule that ``spec`` names is laid out over the whole training."""
    return make_schedule(spec).spans_training


def build_schedule(
    optimizer: Optimizer, spec: Mapping[str, Any] | None, length: schedules.TrainingLength
) -> dict[str, Any] | None:
    """Lightning's ``lr_scheduler_config``, or None for a constant rate.

    Args:
        optimizer: whose rate follows the schedule.
        spec: ``{"class_path": ..., "init_args": {...}}``, or None.
        length: how long the training is.

    Raises:
        UserError: the schedule is unknown, or its arguments do not fit.
    """
    if not spec:
        return None
    schedule = make_schedule(spec)
    try:
        return schedule.build(optimizer, length)
    except (TypeError, ValueError, ArithmeticError, KeyError) as error:
        raise UserError(f"{schedule} does not fit: {error}") from error
