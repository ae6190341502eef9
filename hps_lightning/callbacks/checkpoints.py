"""Which checkpoints a training leaves behind."""

from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from hps_lightning.checkpoint import save_weights


class Checkpoints(ModelCheckpoint):
    """Keeps the best and the last state of a training, and at its end the weights alone.

    In the run's ``checkpoints/``: ``best.ckpt`` (where the protocol validates) and
    ``last.ckpt``, both resumable, then ``weights.ckpt``: the best, or without validation the
    last one, less what only a training needs.

    Args:
        monitor: the metric that decides which is best.
        mode: whether a better metric is greater ("max") or smaller ("min").
        every_n_epochs: epochs between two checkpoints.
    """

    def __init__(
        self, monitor: str = "val/accuracy", mode: Literal["max", "min"] = "max", every_n_epochs: int = 1
    ) -> None:
        super().__init__(
            filename="best",
            monitor=monitor,
            mode=mode,
            every_n_epochs=every_n_epochs,
            save_last=True,
            # After the epoch's end, so that its training metrics are in the checkpoint too.
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self.weights_path = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives up the best where nothing validates."""
        if not getattr(trainer.datamodule, "validates", True):
            self.monitor = None
            self.save_top_k = 0
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the state of a training whose folder may have been moved since."""
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

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the weights alone."""
        source = self.best_model_path or self.last_model_path
        if trainer.is_global_zero and source and not trainer.fast_dev_run:
            target = Path(source).with_name("weights.ckpt")
            save_weights(source, target)
            self.weights_path = str(target)
