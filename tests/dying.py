"""A process of several that dies in the middle of a training."""

import os
import signal
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Die(Callback):
    """Ends one process at the start of a batch.

    Args:
        rank: of the process.
        epoch: in which it dies, counted from 0.
        batch: likewise.
        how: "SIGKILL", "SIGTERM", or the text of a MemoryError.
        attempt: of torchrun or SLURM, in which it dies.
    """

    def __init__(self, rank: int, epoch: int, batch: int = 1, how: str = "SIGKILL", attempt: int = 0) -> None:
        self.rank, self.epoch, self.batch, self.how, self.attempt = rank, epoch, batch, how, attempt

    @property
    def state_key(self) -> str:
        # There may be several.
        return f"Die{self.rank}{self.attempt}"

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        here = trainer.global_rank, trainer.current_epoch, batch_idx
        attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or os.environ.get("SLURM_RESTART_COUNT") or 0)
        if here != (self.rank, self.epoch, self.batch) or attempt != self.attempt:
            return
        if self.how in ("SIGKILL", "SIGTERM"):
            os.kill(os.getpid(), signal.Signals[self.how])
            return
        raise MemoryError(self.how)
