"""Images: finding, downloading, splitting, augmenting and serving them."""

from .augmentation import Augmentation
from .catalog import DATASETS, DatasetInfo, HubSource, dataset_info
from .datamodule import ImageDataModule

__all__ = ["DATASETS", "Augmentation", "DatasetInfo", "HubSource", "ImageDataModule", "dataset_info"]
