"""The callback that ends a training which has diverged, before anything sound is replaced by it."""

import math
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from hps_lightning.callbacks.checkpoints import best_checkpoint, last_checkpoint, program
from hps_lightning.callbacks.run_directory import run_directory
from hps_lightning.errors import DivergedError

NonFinite = Literal["stop", "ignore"]

# Losses, where the trainer logs nothing and so does not say how often looking is fine.
_MOST_KEPT = 50


@dataclass(frozen=True)
class _Step:
    """A step of the training, and its loss.

    Attributes:
        number: counted from 1.
        epoch: counted from 1.
        rate: the learning rate that it was made with; None before the first one.
        loss: without dimensions.
    """

    number: int
    epoch: int
    rate: float | None
    loss: Tensor


class Guards(Callback):
    """Ends a training whose loss, or whose weights, are NaN or infinite.

    The error names the step, the learning rate and the last checkpoint that is sound. Checkpoints of a training
    that has diverged are not written, so that those before it stay.

    A validation's loss ends nothing: batch norms that have seen a few batches can make it overflow in a training that
    is sound, and does so no more an epoch later.

    On a CPU each step's loss is looked at. Elsewhere, and where several processes have to agree, looking would make
    each step wait; there it is done every ``log_every_n_steps`` steps of the trainer, after an epoch's last step, and
    before each checkpoint. Weights are looked at in the latter two.

    Args:
        non_finite: "stop" does all that; "ignore" does nothing, for who wants to see how a training diverges.
    """

    def __init__(self, non_finite: NonFinite = "stop") -> None:
        self.non_finite = non_finite
        self._steps: list[_Step] = []
        self._rate: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets what an earlier training left."""
        self._steps.clear()
        self._rate = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Notes the rate, which the schedule changes before the batch ends."""
        self._rate = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks at the loss, or keeps it for later; after an epoch's last batch, before it validates, at everything.

        Raises:
            DivergedError: the training has diverged.
        """
        if self.non_finite == "ignore":
            return
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        at_once = trainer.world_size == 1 and isinstance(loss, Tensor) and loss.device.type == "cpu"
        if isinstance(loss, Tensor) and not (at_once and math.isfinite(loss)):
            self._steps.append(_Step(trainer.global_step, trainer.current_epoch + 1, self._rate, loss.detach()))
            if at_once or len(self._steps) >= (trainer.log_every_n_steps or _MOST_KEPT):
                self._check_losses(trainer, pl_module)
        if trainer.is_last_batch:
            self._check_losses(trainer, pl_module)
            self._check_weights(trainer, pl_module, pl_module.state_dict())

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lets no checkpoint be written of a training that has diverged.

        Raises:
            DivergedError: it has.
        """
        if self.non_finite == "ignore" or trainer.state.fn != "fit":
            return
        self._check_losses(trainer, pl_module)
        self._check_weights(trainer, pl_module, checkpoint["state_dict"])

    def _check_losses(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps, self._steps = self._steps, []
        values = torch.stack([step.loss.float() for step in steps]).tolist() if steps else []
        first = next((step for step, value in zip(steps, values, strict=True) if not math.isfinite(value)), None)
        # All of several processes end at the same step, or the others would wait for this one.
        if trainer.strategy.reduce_boolean_decision(first is None, all=True):
            return
        if first is None:
            self._stop(trainer, pl_module, "the loss of another process is NaN or infinite")
        self._stop(trainer, pl_module, f"the loss is {_name(first.loss)}", first)

    def _check_weights(self, trainer: Trainer, pl_module: LightningModule, weights: dict[str, Any]) -> None:
        bad = non_finite(weights.items())
        if bad is not None:
            self._stop(trainer, pl_module, f"the weights {bad} hold NaN or infinite values")

    def _stop(self, trainer: Trainer, pl_module: LightningModule, problem: str, step: _Step | None = None) -> None:
        step = step or _Step(trainer.global_step, trainer.current_epoch + 1, self._rate, torch.tensor(math.nan))
        rate = "" if step.rate is None else f", with the learning rate {step.rate:.4g}"
        raise DivergedError(
            f"The training has diverged: {problem} at step {step.number}, in epoch {step.epoch} of "
            f"{trainer.max_epochs}{rate}. {_way_out(trainer, pl_module)}"
        )


def non_finite(weights: Iterable[tuple[str, Any]]) -> str | None:
    """The first name whose values are not all finite numbers; None if all are."""
    floats = [(name, value) for name, value in weights if isinstance(value, Tensor) and value.is_floating_point()]
    if not floats:
        return None
    # One look at the device for all of them.
    sound = torch.stack([value.isfinite().all() for _, value in floats]).tolist()
    return next((name for (name, _), fine in zip(floats, sound, strict=True) if not fine), None)


def _name(value: Tensor) -> str:
    return "NaN" if math.isnan(value) else "infinite"


def _way_out(trainer: Trainer, pl_module: LightningModule) -> str:
    option = _smaller_rate(pl_module)
    checkpoint = last_checkpoint(trainer) or best_checkpoint(trainer) or trainer.ckpt_path
    if not checkpoint or not Path(checkpoint).is_file():
        return f"There is no checkpoint yet; begin again with a smaller rate: {option}"
    # A continued training takes its rate from the checkpoint.
    options = ["--init_weights", str(checkpoint)]
    config = Path(run_directory(trainer) or "", "config.yaml")
    if config.is_file():
        options = ["--config", str(config), *options]
    return f"The last sound checkpoint is {checkpoint}; train from its weights with a smaller rate: " + (
        f"{program(type(pl_module))} fit {shlex.join(options)} {option}"
    )


def _smaller_rate(pl_module: LightningModule) -> str:
    """An option that sets a tenth of the training's rate."""
    schedule = getattr(pl_module, "lr_scheduler_spec", None) or {}
    optimizer = getattr(pl_module, "optimizer_spec", None) or {}
    highest = (schedule.get("init_args") or {}).get("max_lr")
    rate = (optimizer.get("init_args") or {}).get("lr")
    name, rate = ("optimizer.lr", rate) if highest is None else ("lr_scheduler.max_lr", highest)
    return f"--{name} {rate / 10:g}" if isinstance(rate, float | int) else f"--{name} RATE"
