"""Progress for logs: one line an epoch where there is no terminal to draw a bar on."""

import time

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar


class EpochLines(ProgressBar):
    """Prints one line after each epoch, in place of a progress bar."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._started = 0.0
        self._validated = False

    def disable(self) -> None:
        """Prints nothing any more; Lightning calls it on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Prints again."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the time; an epoch that is resumed half-way does not start."""
        self._started = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the time."""
        self._started = time.monotonic()
        self._validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that the epoch has a validation; Lightning keeps an earlier one's metrics."""
        super().on_validation_end(trainer, pl_module)
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the epoch's metrics and its seconds."""
        if not self._enabled:
            return
        metrics = trainer.callback_metrics
        parts = [
            f"{name} {float(metrics[name]):.4f}"
            for name in ("train/loss", "train/accuracy", "val/loss", "val/accuracy")
            if name in metrics and (self._validated or not name.startswith("val/"))
        ]
        epochs = f"{trainer.current_epoch + 1}/{trainer.max_epochs}"
        print(f"epoch {epochs}  {'  '.join(parts)}  {time.monotonic() - self._started:.1f} s", flush=True)
