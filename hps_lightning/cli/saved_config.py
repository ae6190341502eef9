"""The config that a training leaves in its run, from which it can be repeated or goes on."""

import os
from pathlib import Path
from typing import Any

import jsonargparse
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from hps_lightning.callbacks.run_directory import run_directory
from hps_lightning.errors import UserError
from hps_lightning.files import remove_leftovers, write_text


class SaveFitConfig(SaveConfigCallback):
    """Saves the whole config of a training beside its checkpoints.

    Args:
        chose_logger: whether the user chose the logger. Another one is left out, as it lies in a folder that is named
            by network and data, which whoever repeats the training may change.
        arguments: Lightning's.
    """

    def __init__(self, *arguments: Any, chose_logger: bool = True, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._chose_logger = chose_logger
        self._goes_on = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Saves that of a new training; leaves out what is no training, whose config would replace the training's."""
        folder = run_directory(trainer) if stage == "fit" else None
        if folder is not None:
            self._goes_on = self.config.ckpt_path is not None
            # Whoever repeats the training wants another one, in a folder of its own.
            self.config = self.config.clone()
            self.config.ckpt_path = None
            logger = self.config.trainer.logger
            if not self._chose_logger:
                self.config.trainer.logger = None
            elif isinstance(logger, jsonargparse.Namespace) and "version" in logger.get("init_args", ()):
                logger.init_args.version = None
            self._path = os.path.join(folder, self.config_filename)
            if not self._goes_on:
                super().setup(trainer, pl_module, stage)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Saves that of a training that goes on, once nothing can refuse it any more: it would go on by that config."""
        if self._goes_on:
            self._goes_on = False
            super().setup(trainer, pl_module, "fit")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the file, whole.

        Raises:
            UserError: it cannot be written.
        """
        if "://" in self._path:
            self.parser.save(self.config, self._path, skip_none=False, overwrite=True, multifile=False)
            return
        try:
            Path(self._path).parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(Path(self._path).parent)
            write_text(Path(self._path), self.parser.dump(self.config, skip_none=False))
        except OSError as error:
            raise UserError(f"{self._path} cannot be written: {error.strerror or error}.") from error
