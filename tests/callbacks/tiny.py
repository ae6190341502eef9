"""A training that takes a second: a tiny network on random images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader, TensorDataset

from hps_lightning.modules import HPSClassifier

# What Lightning itself warns of here: its own call into torch, loaders without workers, and no validation.
LIGHTNING_WARNINGS = (
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),
)
# A resume here goes without the callback that saved, which would save again.
RESUME_WARNING = pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided")
CLASSES = ("bird", "cat", "dog")
ARGUMENTS = {"num_classes": 3, "stages": [1, 1, 1, 1], "width": 0.1}


class TinyData(LightningDataModule):
    """``images`` random training images in batches of 4, the last one smaller, and 6 of validation."""

    def __init__(self, images: int = 10, protocol: str = "holdout") -> None:
        super().__init__()
        self.protocol = protocol
        self.validates = protocol != "full"
        generator = torch.Generator().manual_seed(0)
        self.train_set = self._set(images, generator)
        self.val_set = self._set(6, generator)

    @staticmethod
    def _set(count: int, generator: torch.Generator) -> TensorDataset:
        images = torch.randn(count, 3, 32, 32, generator=generator)
        return TensorDataset(images, torch.randint(0, 3, (count,), generator=generator))

    def record(self) -> dict[str, Any]:
        return {
            "dataset": "made",
            "classes": list(CLASSES),
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
            "image_size": [3, 32, 32],
            "protocol": self.protocol,
        }

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_set, batch_size=4)

    def val_dataloader(self) -> DataLoader | list:
        return DataLoader(self.val_set, batch_size=3) if self.validates else []


class Tiny(HPSClassifier):
    """A network whose validation accuracy can be dictated, and that tells of its steps.

    Attributes:
        scores: ``val/accuracy`` of each epoch, and 1 in the sanity check; what is measured if None.
        spend: called with "train" or "val" in every step.
    """

    scores: list[float] | None = None
    spend: Callable[[str], None] | None = None

    def training_step(self, batch, batch_idx):
        if self.spend:
            self.spend("train")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        if self.spend:
            self.spend("val")
        if self.scores is None:
            return super().validation_step(batch, batch_idx)
        score = 1.0 if self.trainer.sanity_checking else self.scores[self.current_epoch]
        self.log("val/accuracy", score, batch_size=len(batch[0]))
        return None


def tiny(scores: list[float] | None = None, spend: Callable[[str], None] | None = None) -> Tiny:
    torch.manual_seed(0)
    module = Tiny(**ARGUMENTS)
    module.scores, module.spend = scores, spend
    return module


def tiny_trainer(folder: Path, *callbacks: Callback, **arguments: Any) -> Trainer:
    settings = {
        "accelerator": "cpu",
        "max_epochs": 3,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "log_every_n_steps": 1,
        "logger": TensorBoardLogger(folder, name="run", version=0),
    }
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**settings, **arguments})
