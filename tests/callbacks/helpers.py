"""A tiny network, tiny data and a quiet trainer, so that callbacks can be tested in seconds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator
from torch.utils.data import DataLoader, Dataset, TensorDataset

from hps_lightning.data import Augmentation, DatasetInfo
from hps_lightning.modules import HPSClassifier

# On images this few, threads only wait for each other: minutes instead of seconds on a busy machine.
torch.set_num_threads(1)

LIGHTNING_WARNINGS = [
    # Worker processes would only slow down a few images.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    # Lightning 2.6 uses a name that torch has renamed since.
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"),
]
"""What Lightning warns of in any run on a few images."""


def random_images(count: int, num_classes: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 32, 32, generator=generator)
    return TensorDataset(images, torch.arange(count) % num_classes)


class TinyData(LightningDataModule):
    """Random images with the attributes that callbacks read from ImageDataModule."""

    def __init__(self, num_classes: int = 10, protocol: str = "holdout", predict_set: Dataset | None = None) -> None:
        super().__init__()
        grouped = {}
        if num_classes == 100:
            grouped = {"superclasses": tuple("abcdefghijklmnopqrst"), "superclass_of": tuple(range(20)) * 5}
        self.info = DatasetInfo(
            name="tiny",
            title="Tiny-10",
            classes=tuple(f"class_{index}" for index in range(num_classes)),
            mean=(0.5, 0.4, 0.3),
            std=(0.2, 0.2, 0.2),
            train_size=16,
            test_size=12,
            **grouped,
        )
        self.protocol = protocol
        self.val_fraction, self.split_seed = 0.1, 0
        self.batch_size = 8
        self.augmentation = Augmentation(cutout=4)
        self.train_set = random_images(16, num_classes, seed=1)
        self.val_set = None if protocol == "full" else random_images(12, num_classes, seed=2)
        self.test_set = random_images(12, num_classes, seed=3)
        self.predict_set = predict_set or self.test_set

    @property
    def validates(self) -> bool:
        return self.protocol != "full"

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_set, batch_size=8)

    def val_dataloader(self) -> Any:
        return [] if self.val_set is None else DataLoader(self.val_set, batch_size=5)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test_set, batch_size=5)

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(self.predict_set, batch_size=5)


def tiny_classifier(num_classes: int = 10, **arguments: Any) -> HPSClassifier:
    torch.manual_seed(0)
    return HPSClassifier(num_classes=num_classes, stages=[1, 1, 1, 1], width=0.1, **arguments)


def quiet_trainer(folder: Path, **arguments: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": TensorBoardLogger(folder, name="runs", default_hp_metric=False),
        "default_root_dir": folder,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    return Trainer(**{**settings, **arguments})


def events(trainer: Trainer) -> EventAccumulator:
    """What the trainer's TensorBoardLogger has written."""
    accumulator = EventAccumulator(trainer.logger.log_dir, size_guidance={IMAGES: 0})
    return accumulator.Reload()
