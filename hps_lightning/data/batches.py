"""Batches out of images that lie in memory, in an order that seed and epoch alone decide."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from hps_lightning.data.augmentation import Augmentation


class BatchKey(NamedTuple):
    """Which images make a batch, and the seed of their augmentation."""

    indices: Tensor
    seed: int


class BatchSampler(Sampler[BatchKey]):
    """Yields the keys of an epoch's batches.

    Args:
        size: number of images.
        batch_size: images in a batch; the last one may be smaller.
        shuffle: whether each epoch has an order of its own.
        drop_last: whether a smaller last batch is left out.
        seed: what order and augmentation come from, together with the epoch.
    """

    def __init__(self, size: int, batch_size: int, shuffle: bool, drop_last: bool = False, seed: int = 0) -> None:
        self.size = size
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Tells which epoch comes next; Lightning calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.drop_last:
            return self.size // self.batch_size
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[BatchKey]:
        # Large odd factors keep the generators of neighbouring seeds and epochs apart.
        generator = torch.Generator().manual_seed(((self.seed * 1_000_003 + self.epoch) * 7_919 + 1) % 2**63)
        order = torch.randperm(self.size, generator=generator) if self.shuffle else torch.arange(self.size)
        seeds = torch.randint(0, 2**62, (len(self),), generator=generator).tolist()
        for step, seed in enumerate(seeds):
            yield BatchKey(order[step * self.batch_size : (step + 1) * self.batch_size], seed)


class ImageBatches(Dataset[tuple[Tensor, Tensor]]):
    """Images in memory, fetched a whole batch at a time.

    Args:
        images: uint8, N x 3 x H x W.
        labels: int64, N.
        num_classes: number of classes.
        mean: of each channel, 0 to 1.
        std: standard deviation of each channel, 0 to 1.
        augmentation: applied to each batch, or None.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        num_classes: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        augmentation: Augmentation | None = None,
    ) -> None:
        self.images = images
        self.labels = labels
        self.num_classes = num_classes
        self.augmentation = augmentation
        self.mean, self.std = mean, std

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: BatchKey) -> tuple[Tensor, Tensor]:
        """A batch: normalised float32 images, N x 3 x H x W, and labels (see :class:`Augmentation`)."""
        images, labels = self.images[key.indices], self.labels[key.indices]
        if self.augmentation is not None:
            images, labels = self.augmentation(images, labels, self.num_classes, key.seed)
        return normalise(images, self.mean, self.std), labels


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Brings uint8 images, N x 3 x H x W, to mean 0 and deviation 1, as float32 in channels-last layout."""
    scale = 1 / (255 * torch.tensor(std))
    shift = -torch.tensor(mean) / torch.tensor(std)
    images = images.to(torch.float32, memory_format=torch.channels_last)
    return torch.addcmul(shift[:, None, None], images, scale[:, None, None])
