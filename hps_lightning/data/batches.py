"""Batches out of images that lie in memory, in an order that seed and epoch alone decide."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from hps_lightning.data.augmentation import Augmentation
from hps_lightning.errors import UserError


class BatchKey(NamedTuple):
    """Which images make a batch, and the seed of their augmentation."""

    indices: Tensor
    seed: int


class BatchSampler(DistributedSampler):
    """Yields the keys of an epoch's batches.

    Where several processes train together, each gets its share of every batch: ``batch_size``
    is that of all together, so that a recipe means the same on any number of devices.

    Args:
        size: number of images.
        batch_size: images in a batch; the last one may be smaller.
        shuffle: whether each epoch has an order of its own.
        seed: what order and augmentation come from, together with the epoch.
        equal_shares: whether images that cannot be shared out evenly among the processes are
            left out, as a training needs; otherwise some process gets one image more.
        rank: which process this is.
        world_size: number of processes.
    """

    # Lightning leaves a DistributedSampler as it is, and tells it each epoch.
    def __init__(
        self,
        size: int,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        equal_shares: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(range(size), world_size, rank, shuffle, seed)
        self.size = size
        self.batch_size = batch_size
        self.equal_shares = equal_shares
        self._trained = (0, 0)

    def resume(self, epoch: int, batches: int) -> None:
        """Lets passes through an epoch begin after its first batches; other epochs stay whole, and so does the length.

        Args:
            epoch: that comes next, counted from 0. Worker processes fetch before Lightning tells it.
            batches: of that epoch that were trained already.
        """
        self.epoch = epoch
        self._trained = (epoch, batches)

    def _starts(self) -> list[int]:
        starts = list(range(0, self.size, self.batch_size))
        left = self.size - starts[-1] if starts else 0
        # A process that got nothing of a batch would have no loss to share.
        if left < self.num_replicas and len(starts) > 1:
            starts.pop()
        return starts

    def __len__(self) -> int:
        return len(self._starts())

    def __iter__(self) -> Iterator[BatchKey]:
        # Large odd factors keep the generators of neighbouring seeds and epochs apart.
        generator = torch.Generator().manual_seed(((self.seed * 1_000_003 + self.epoch) * 7_919 + 1) % 2**63)
        order = torch.randperm(self.size, generator=generator) if self.shuffle else torch.arange(self.size)
        starts = self._starts()
        seeds = torch.randint(0, 2**62, (len(starts),), generator=generator).tolist()
        epoch, trained = self._trained
        for start, seed in list(zip(starts, seeds, strict=True))[trained if self.epoch == epoch else 0 :]:
            end = self.size if start == starts[-1] else start + self.batch_size
            if self.equal_shares:
                end -= (end - start) % self.num_replicas
            yield BatchKey(order[start + self.rank : end : self.num_replicas], seed + self.rank)


class ImageBatches(Dataset[tuple[Tensor, Tensor]]):
    """Images in memory, fetched a whole batch at a time.

    Args:
        images: uint8, N x 3 x H x W, on the device that is to augment them.
        labels: int64, N, on the same device.
        num_classes: number of classes.
        mean: of each channel, 0 to 1.
        std: standard deviation of each channel, 0 to 1.
        augmentation: applied to each batch, or None.

    Raises:
        UserError: there is no image, or not one label for each, or a label that is no class.
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
        if not len(images):
            raise UserError("There are no images in the data set.")
        if len(labels) != len(images):
            raise UserError(f"The data set has {len(images)} images, but {len(labels)} labels.")
        outside = ((labels < 0) | (labels >= num_classes)).nonzero().flatten()
        if len(outside):
            position = int(outside[0])
            raise UserError(
                f"Image {position} has the label {int(labels[position])}; the network tells classes 0 to "
                f"{num_classes - 1} apart."
            )
        self.images = images
        self.labels = labels
        self.num_classes = num_classes
        self.augmentation = augmentation
        self.mean, self.std = mean, std

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: BatchKey) -> tuple[Tensor, Tensor]:
        """A batch: normalised float32 images, N x 3 x H x W, and labels (see :class:`Augmentation`)."""
        # Nothing here waits for a GPU, which is still busy with the batches before.
        indices = key.indices.to(self.images.device, non_blocking=True)
        images, labels = self.images[indices], self.labels[indices]
        if self.augmentation is not None:
            images, labels = self.augmentation(images, labels, self.num_classes, key.seed)
        return normalise(images, self.mean, self.std), labels


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Brings uint8 images, N x 3 x H x W, to mean 0 and deviation 1, as float32 in channels-last layout."""
    mean_, std_ = torch.tensor(mean), torch.tensor(std)
    scale, shift = (
        each.to(images.device, non_blocking=True)[:, None, None] for each in (1 / (255 * std_), -mean_ / std_)
    )
    images = images.to(torch.float32, memory_format=torch.channels_last)
    return torch.addcmul(shift, images, scale)
