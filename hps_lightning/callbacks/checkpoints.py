"""Which checkpoints a training leaves in its run's ``checkpoints/``: the best, the last, the weights."""

from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from hps_lightning.callbacks.report import best_checkpoint, last_checkpoint
from hps_lightning.checkpoint import save_weights


class _MovableCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint whose run may have been moved to another folder before it goes on."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the state, as if it had been saved where the run lies now."""
        folder = Path(self.dirpath)

        def here(path: str) -> str:
            return str(folder / Path(path).name) if path else path

        super().load_state_dict(
            {
                **state_dict,
                # Lightning forgets which checkpoint is best where these differ.
                "dirpath": self.dirpath,
                "best_model_path": here(state_dict["best_model_path"]),
                "last_model_path": here(state_dict["last_model_path"]),
                "kth_best_model_path": here(state_dict["kth_best_model_path"]),
                "best_k_models": {here(path): score for path, score in state_dict["best_k_models"].items()},
            }
        )


class BestCheckpoint(_MovableCheckpoint):
    """Keeps the epoch of the best validation as ``best.ckpt``; nothing where nothing validates.

    Args:
        monitor: the metric that decides which is best.
        mode: whether a better metric is greater ("max") or smaller ("min").
    """

    def __init__(self, monitor: str = "val/accuracy", mode: Literal["max", "min"] = "max") -> None:
        # After the epoch's end, so that its training metrics are in the checkpoint too.
        super().__init__(
            filename="best", monitor=monitor, mode=mode, save_on_train_epoch_end=True, enable_version_counter=False
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keeps nothing under a protocol without validation."""
        if not getattr(trainer.datamodule, "validates", True):
            self.save_top_k = 0
        super().setup(trainer, pl_module, stage)


class LastCheckpoint(_MovableCheckpoint):
    """Keeps the newest state of a training as ``last.ckpt``, from which it can go on.

    Args:
        every_n_epochs: epochs between two checkpoints.
    """

    # Apart from `save_last` of the best one, which Lightning writes when the best one improves.
    def __init__(self, every_n_epochs: int = 1) -> None:
        super().__init__(
            filename="last", every_n_epochs=every_n_epochs, save_on_train_epoch_end=True, enable_version_counter=False
        )


class WeightsCheckpoint(Callback):
    """Writes ``weights.ckpt`` at the end: the best, or without validation the last weights, and no more.

    It holds what `hps test` and `hps predict` need, without what only a training needs.
    """

    def __init__(self) -> None:
        self.weights_path = ""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file."""
        source = best_checkpoint(trainer) or last_checkpoint(trainer)
        if trainer.is_global_zero and source:
            target = Path(source).with_name("weights.ckpt")
            save_weights(source, target)
            self.weights_path = str(target)
