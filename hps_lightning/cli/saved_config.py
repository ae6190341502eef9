"""The config that a training leaves in its run, from which it can be repeated or goes on."""

import os
from pathlib import Path

import jsonargparse
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from hps_lightning.errors import UserError
from hps_lightning.files import remove_leftovers, write_text


class SaveFitConfig(SaveConfigCallback):
    """Saves the whole config of a training beside its checkpoints."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leaves out what is no training: its config would replace the training's."""
        if stage == "fit" and trainer.log_dir is not None:
            # Whoever repeats the training wants another one, in a folder of its own.
            self.config = self.config.clone()
            self.config.ckpt_path = None
            logger = self.config.trainer.logger
            if isinstance(logger, jsonargparse.Namespace) and "version" in logger.init_args:
                logger.init_args.version = None
            self._path = os.path.join(trainer.log_dir, self.config_filename)
            super().setup(trainer, pl_module, stage)

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
