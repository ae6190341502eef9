"""Learning rate schedules, by the names of ``torch.optim.lr_scheduler``.

torch's classes count in whatever the caller steps in and must be told how long the training
is. These say the same things in epochs, are plain data until the training starts, and then
make torch's scheduler with the lengths and the stepping interval that it needs.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

from torch.optim import Optimizer, lr_scheduler

from hps_lightning.errors import UserError


@dataclass(frozen=True)
class TrainingLength:
    """How long the training is.

    Attributes:
        epochs: number of epochs.
        steps_per_epoch: optimizer steps in each.
        validates: whether there are validation metrics to watch.
        max_steps: optimizer steps after which the training ends at the latest; -1 for no such limit.
    """

    epochs: int
    steps_per_epoch: int
    validates: bool
    max_steps: int = -1

    @property
    def steps(self) -> int:
        """Optimizer steps in the whole training."""
        steps = self.epochs * self.steps_per_epoch
        return steps if self.max_steps < 0 else min(steps, self.max_steps)

    @property
    def whole_epochs(self) -> int:
        """Epochs in the whole training, with the last one counted whole where ``max_steps`` cuts it short."""
        return -(-self.steps // self.steps_per_epoch)


class LRSchedule(ABC):
    """A schedule that ``--lr_scheduler NAME`` chooses; every length is in epochs."""

    @property
    def spans_training(self) -> bool:
        """Whether it is laid out over the whole training, so that the length must not change."""
        return False

    @abstractmethod
    def build(self, optimizer: Optimizer, length: TrainingLength) -> dict[str, Any]:
        """Lightning's ``lr_scheduler_config`` for ``optimizer``: the scheduler and when it steps.

        Raises:
            UserError: the schedule's arguments do not fit the optimizer or the training.
        """


def _per_epoch(scheduler: lr_scheduler.LRScheduler) -> dict[str, Any]:
    return {"scheduler": scheduler, "interval": "epoch"}


def _per_step(scheduler: lr_scheduler.LRScheduler) -> dict[str, Any]:
    return {"scheduler": scheduler, "interval": "step"}


_LARGEST = 1e9
"""No rate, factor or number of epochs is greater; what torch computes of greater ones may be no number any more."""


def _require_positive(schedule: LRSchedule, **values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise UserError(f"{type(schedule).__name__}: {name} must be greater than 0, got {value!r}.")
        if value > _LARGEST:
            raise UserError(f"{type(schedule).__name__}: {name} must be at most {_LARGEST:g}, got {value!r:.80}.")


def _require_rate(schedule: LRSchedule, **values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= _LARGEST:
            raise UserError(f"{type(schedule).__name__}: {name} must be a rate of at least 0, got {value!r}.")


@dataclass(frozen=True)
class MultiStepLR(LRSchedule):
    """Multiplies the rate at given epochs: the paper's step decay, as the public baseline sets it.

    Args:
        milestones: the epochs after which the rate falls.
        gamma: the factor.
    """

    milestones: list[int] = field(default_factory=lambda: [60, 120, 160])
    gamma: float = 0.2

    def build(self, optimizer: Optimizer, length: TrainingLength) -> dict[str, Any]:
        """As :meth:`LRSchedule.build`."""
        _require_positive(self, gamma=self.gamma)
        if not self.milestones or min(self.milestones) < 1:
            raise UserError(
                f"MultiStepLR: milestones must list at least one epoch, counted from 1, got {self.milestones!r:.80}."
            )
        return _per_epoch(lr_scheduler.MultiStepLR(optimizer, sorted(self.milestones), self.gamma))


@dataclass(frozen=True)
class StepLR(LRSchedule):
    """Multiplies the rate every few epochs.

    Args:
        step_size: epochs between two falls.
        gamma: the factor.
    """

    step_size: int = 30
    gamma: float = 0.1

    def build(self, optimizer: Optimizer, length: TrainingLength) -> dict[str, Any]:
        """As :meth:`LRSchedule.build`."""
        _require_positive(self, step_size=self.step_size, gamma=self.gamma)
        return _per_epoch(lr_scheduler.StepLR(optimizer, self.step_size, self.gamma))


@dataclass(frozen=True)
class ExponentialLR(LRSchedule):
    """Multiplies the rate after every epoch.

    Args:
        gamma: the factor.
    """

    gamma: float = 0.98

    def build(self, optimizer: Optimizer, length: TrainingLength) -> dict[str, Any]:
        """As :meth:`LRSchedule.build`."""
        _require_positive(self, gamma=self.gamma)
        return _per_epoch(lr_scheduler.ExponentialLR(optimizer, self.gamma))


@dataclass(frozen=True)
class CosineAnnealingLR(LRSchedule):
    """Lets the rate fall along half a cosine, step by step.

    Args:
        T_max: epochs of the fall, after which the rate rises again as it fell, as PyTorch's does; the whole training
            if not given.
        eta_min: the rate at its end.
    """

    T_max: int | None = None
    eta_min: float = 0.0

    @property
    def spans_training(self) -> bool:
        """Whether ``T_max`` is left to the training."""
        return self.T_max is None

    def build(self, optimizer: Optimizer, length: TrainingLength) -> dict[str, Any]:
        """As :meth:`LRSchedule.build`."""
        steps = length.steps
        if self.T_max is not None:
            _require_positive(self, T_max=self.T_max)
            steps = self.T_max * length.steps_per_epoch
        _require_rate(self, eta_min=self.eta_min)
        return _per_step(lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps, eta_min=self.eta_min))


@dataclass(frozen=True)
class CosineAnnealingWarmRestarts(LRSchedule):
    """Lets the rate fall along half a cosine and start again, step by step.

    Args:
        T_0: epochs of the first fall.
        T_mult: how many times as long as the one before each further fall is.
        eta_min: the rate at the end of each fall.
    """

    T_0: int = 10
    T_mult: int = 1
    eta_min: float = 0.0

    def build(self, optimizer: Optimizer, length: TrainingLength) -> dict[str, Any]:
        """As :meth:`LRSchedule.build`."""
        _require_positive(self, T_0=self.T_0, T_mult=self.T_mult)
        _require_rate(self, eta_min=self.eta_min)
        return _per_step(
            lr_scheduler.CosineAnnealingWarmRestarts(
                optimizer, T_0=self.T_0 * length.steps_per_epoch, T_mult=self.T_mult, eta_min=self.eta_min
            )
        )


@dataclass(frozen=True)
class CyclicLR(LRSchedule):
    """Moves the rate up and down between two bounds, step by step.

    Args:
        base_lr: the lower bound; a tenth of the upper one if not given.
        max_lr: the upper bound; the optimizer's rate if not given.
        step_size_up: epochs of a rise, which a fall of the same length follows.
        mode: "triangular"; "triangular2" halves what the upper bound exceeds the lower one
            by after each cycle; "exp_range" multiplies that by ``gamma`` after each step.
        gamma: the factor of "exp_range".
    """

    base_lr: float | None = None
    max_lr: float | None = None
    step_size_up: int = 4
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular"
    gamma: float = 1.0

    def build(self, optimizer: Optimizer, length: TrainingLength) -> dict[str, Any]:
        """As :meth:`LRSchedule.build`."""
        highest = optimizer.param_groups[0]["lr"] if self.max_lr is None else self.max_lr
        lowest = highest / 10 if self.base_lr is None else self.base_lr
        _require_positive(self, step_size_up=self.step_size_up, max_lr=highest)
        _require_rate(self, base_lr=lowest)
        if not 0 < self.gamma <= 1:
            raise UserError(f"CyclicLR: gamma must be greater than 0 and at most 1, got {self.gamma!r}.")
        if lowest > highest:
            raise UserError(f"CyclicLR: base_lr {lowest:g} is greater than max_lr {highest:g}.")
        return _per_step(
            lr_scheduler.CyclicLR(
                optimizer,
                base_lr=lowest,
                max_lr=highest,
                step_size_up=self.step_size_up * length.steps_per_epoch,
                mode=self.mode,
                gamma=self.gamma,
                # Several of the optimizers have no momentum to cycle.
                cycle_momentum=False,
            )
        )


@dataclass(frozen=True)
class OneCycleLR(LRSchedule):
    """One rise and one long fall over the whole training, step by step (Smith and Topin, 2018).

    Args:
        max_lr: the highest rate; the optimizer's rate if not given.
        pct_start: the part of the training that the rise takes, 0 to 1.
        div_factor: the highest rate over the first one.
        final_div_factor: the first rate over the last one.
        anneal_strategy: "cos" or "linear".
    """

    max_lr: float | None = None
    pct_start: float = 0.2
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    anneal_strategy: Literal["cos", "linear"] = "cos"

    @property
    def spans_training(self) -> bool:
        """Always."""
        return True

    def build(self, optimizer: Optimizer, length: TrainingLength) -> dict[str, Any]:
        """As :meth:`LRSchedule.build`."""
        if not 0 < self.pct_start < 1:
            raise UserError(f"OneCycleLR: pct_start must lie between 0 and 1, got {self.pct_start!r}.")
        highest = optimizer.param_groups[0]["lr"] if self.max_lr is None else self.max_lr
        _require_positive(self, max_lr=highest, div_factor=self.div_factor, final_div_factor=self.final_div_factor)
        # torch divides by the length of the rise, which it counts from the first step to the last one of it.
        one_step = self.pct_start * length.steps == 1
        return _per_step(
            lr_scheduler.OneCycleLR(
                optimizer,
                max_lr=highest,
                total_steps=length.steps,
                pct_start=self.pct_start * (1 + 1e-9) if one_step else self.pct_start,
                div_factor=self.div_factor,
                final_div_factor=self.final_div_factor,
                anneal_strategy=self.anneal_strategy,
                # Several of the optimizers have no momentum to cycle.
                cycle_momentum=False,
            )
        )


@dataclass(frozen=True)
class ReduceLROnPlateau(LRSchedule):
    """Multiplies the rate when a metric stops getting better.

    Args:
        monitor: the metric to watch; ``val/loss`` if not given, or ``train/loss`` where
            nothing validates.
        mode: whether a better metric is smaller ("min") or greater ("max").
        factor: the factor.
        patience: epochs without improvement that are let pass; those that validate count, where it watches that.
        min_lr: the rate below which it does not fall.
    """

    monitor: str | None = None
    mode: Literal["min", "max"] = "min"
    factor: float = 0.2
    patience: int = 10
    min_lr: float = 0.0

    def build(self, optimizer: Optimizer, length: TrainingLength) -> dict[str, Any]:
        """As :meth:`LRSchedule.build`."""
        if not 0 < self.factor < 1:
            raise UserError(f"ReduceLROnPlateau: factor must lie between 0 and 1, got {self.factor!r}.")
        if self.patience < 0:
            raise UserError(f"ReduceLROnPlateau: patience must not be negative, got {self.patience}.")
        _require_rate(self, min_lr=self.min_lr)
        monitor = self.monitor or ("val/loss" if length.validates else "train/loss")
        if monitor.startswith("val/") and not length.validates:
            raise UserError(
                f"ReduceLROnPlateau: the protocol 'full' has no {monitor}; "
                "monitor train/loss, or choose --data.protocol holdout."
            )
        scheduler = lr_scheduler.ReduceLROnPlateau(
            optimizer, mode=self.mode, factor=self.factor, patience=self.patience, min_lr=self.min_lr
        )
        return {**_per_epoch(scheduler), "monitor": monitor}
