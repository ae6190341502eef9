"""Images: finding, downloading, splitting, augmenting and serving them."""

from .augmentation import Augmentation
from .catalog import DATASETS, DatasetInfo, dataset_info
from .datamodule import ImageDataModule

__all__ = ["DATASETS", "Augmentation", "DatasetInfo", "ImageDataModule", "dataset_info"]
