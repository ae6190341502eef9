"""Training on smaller images first: epochs that cost a fraction, before those at full size."""

from lightning.pytorch import Callback, LightningModule, Trainer

from hps_lightning.errors import UserError


class ProgressiveResolution(Callback):
    """Lets a network see small images at first, and larger ones from epoch to epoch.

    The network's own resolution multiplier (paper section 5.1) is what changes; it ends at the
    value that the network was built with, which validation and checkpoints always use.

    Args:
        start: part of the sides that the first epochs see, 0 to 1.
        until: part of the training after which the sides are whole, 0 to 1.
        steps: number of sizes on the way up, ``start`` among them.
    """

    def __init__(self, start: float = 0.5, until: float = 0.5, steps: int = 2) -> None:
        for name, value in (("start", start), ("until", until)):
            if not 0 < value <= 1:
                raise UserError(f"ProgressiveResolution: {name} must be greater than 0 and at most 1, got {value!r}.")
        if steps < 1:
            raise UserError(f"ProgressiveResolution: steps must be at least 1, got {steps!r}.")
        self.start = start
        self.until = until
        self.steps = steps

    def resolution(self, epoch: int, max_epochs: int) -> float:
        """The part of the sides that an epoch sees; epochs count from 0."""
        # Rounding must not let a whole number fall short of itself.
        step = epoch * self.steps / (self.until * max_epochs) + 1e-9
        # Exactly: less by a rounding would let each batch pay for a resize that changes nothing.
        return 1.0 if step >= self.steps else self.start + (1 - self.start) * int(step) / self.steps

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a network that has no resolution to change."""
        if not hasattr(pl_module.network, "resolution"):
            raise UserError(
                f"ProgressiveResolution: {type(pl_module.network).__name__} has no resolution multiplier; "
                "leave the callback out."
            )
        self._full = pl_module.network.resolution
        if round(32 * self._full * self.start) < 4:
            raise UserError(f"ProgressiveResolution: start must leave at least 4 of 32 pixels, got {self.start!r}.")

    # The full value comes back at once after each batch, so that whatever runs between two
    # batches (validation, checkpoints, an interruption) finds the network as it was built.
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Makes the network see the epoch's size."""
        # Not the trainer's number: max_steps may end the training sooner, and StochasticWeightAveraging adds an epoch.
        epochs = pl_module.training_length.whole_epochs
        pl_module.network.resolution = self._full * self.resolution(trainer.current_epoch, epochs)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Makes it see the whole size again."""
        pl_module.network.resolution = self._full

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Makes it see the whole size again where a batch did not end."""
        if hasattr(self, "_full"):
            pl_module.network.resolution = self._full
