"""The LightningDataModule: CIFAR-10, CIFAR-100 and the offline digits, by one argument."""

import os
from dataclasses import asdict
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from hps_lightning.data.augmentation import Augmentation
from hps_lightning.data.batches import BatchSampler, ImageBatches
from hps_lightning.data.catalog import IMAGE_SIDE, dataset_info
from hps_lightning.data.locate import find_dataset
from hps_lightning.data.photos import Photos
from hps_lightning.data.readers import load_images
from hps_lightning.data.splits import Protocol, stratified_holdout
from hps_lightning.errors import UserError

# Each is a process; a slip of the finger must not take the machine down.
_MOST_WORKERS = 512


class ImageDataModule(LightningDataModule):
    """Images of 3 x 32 x 32, held in memory (of the GPU, where one trains) and augmented a batch at a time.

    Batches are normalised float32 images, N x 3 x 32 x 32, with labels (int64, N; or, after
    mixup or CutMix, float32, N x classes).

    Args:
        dataset: "cifar10", "cifar100", or "digits" (scikit-learn's, which need no download).
        root: folder that holds the data set, as torchvision or the Hugging Face hub lay it
            out; the environment variable HPS_DATA_DIR if not given, then the cache.
        download: whether what is found nowhere may be downloaded into the cache.
        protocol: "holdout" (a part of the training images validates), "full" (all training
            images train, nothing validates) or "paper" (the test images validate).
        val_fraction: the part of each class that "holdout" sets aside.
        split_seed: which images "holdout" sets aside; apart from the training's seed, so that
            trainings of several seeds validate on the same images.
        batch_size: training images in a batch, on all devices together.
        eval_batch_size: images in a batch of validation, test or prediction, on all devices together.
        augmentation: what is done to training images.
        num_workers: processes that prepare batches; 0 prepares them in the training's own
            process, which is fastest unless a policy works image by image.
        images: files and folders to classify, for `hps predict`.

    Raises:
        UserError: an argument cannot be used.
    """

    def __init__(
        self,
        dataset: Literal["cifar10", "cifar100", "digits"] = "cifar10",
        root: str | None = None,
        download: bool = True,
        protocol: Protocol = "holdout",
        val_fraction: float = 0.1,
        split_seed: int = 0,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 (frozen, so that sharing it is safe)
        num_workers: int = 0,
        images: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.info = dataset_info(dataset)
        if protocol not in get_args(Protocol):
            raise UserError(f"data.protocol must be one of {', '.join(get_args(Protocol))}, got {protocol!r}.")
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise UserError(f"data.{name} must be at least {least}, got {value}.")
        if num_workers > _MOST_WORKERS:
            raise UserError(f"data.num_workers must be at most {_MOST_WORKERS}, got {num_workers}.")
        if not 0 <= split_seed < 2**63:
            raise UserError(f"data.split_seed must lie between 0 and 2**63 - 1, got {split_seed}.")
        self.root = root
        self.download = download
        self.protocol = protocol
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.augmentation = augmentation
        self.num_workers = num_workers
        self.images = images
        self.train_set: ImageBatches | None = None
        self.val_set: ImageBatches | None = None
        self.test_set: ImageBatches | None = None
        self.photos: Photos | None = None
        self._resumed: dict[str, Any] | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes of the data set."""
        return len(self.info.classes)

    @property
    def validates(self) -> bool:
        """Whether the protocol has images to validate on."""
        return self.protocol != "full"

    def record(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data, in plain types: how to make it, and what a user of the network needs."""
        return {
            "data": {
                "dataset": self.info.name,
                "root": None if self.root is None else os.fspath(self.root),
                "download": self.download,
                "protocol": self.protocol,
                "val_fraction": self.val_fraction,
                "split_seed": self.split_seed,
                "batch_size": self.batch_size,
                "eval_batch_size": self.eval_batch_size,
                "augmentation": asdict(self.augmentation),
                "num_workers": self.num_workers,
            },
            "dataset": self.info.name,
            "classes": list(self.info.classes),
            "mean": list(self.info.mean),
            "std": list(self.info.std),
            "image_size": [3, IMAGE_SIDE, IMAGE_SIDE],
            "protocol": self.protocol,
        }

    def check_batch_size(self, images: int) -> None:
        """Refuses batches of more than all ``images`` that train.

        Raises:
            UserError: they are.
        """
        if self.batch_size > images:
            raise UserError(
                f"data.batch_size {self.batch_size} is more than the {images:,} training images; "
                "a batch may have at most as many."
            )

    def check_trainer(self, trainer: Trainer) -> None:
        """Refuses what would take other batches than those of this module, or empty ones.

        Raises:
            UserError: ``overfit_batches`` is set, or a batch is not to be shared by several processes alike.
        """
        self._check_eval_batch_size(trainer)
        rest = self.batch_size % trainer.world_size
        if rest:
            fewer = [str(self.batch_size - rest)] if self.batch_size > rest else []
            sizes = " or ".join([*fewer, str(self.batch_size - rest + trainer.world_size)])
            raise UserError(
                f"data.batch_size {self.batch_size} cannot be shared alike by {trainer.world_size} processes, so that "
                f"images of each batch would be left out; take {sizes}."
            )
        if trainer.overfit_batches:
            raise UserError(
                f"trainer.overfit_batches {trainer.overfit_batches}: batches here come from a sampler of their own, "
                "which Lightning would replace. Take trainer.limit_train_batches instead, with every augmentation off "
                "for the same images in each epoch."
            )

    def _check_eval_batch_size(self, trainer: Trainer) -> None:
        if self.eval_batch_size < trainer.world_size:
            raise UserError(
                f"data.eval_batch_size {self.eval_batch_size} leaves some of {trainer.world_size} processes without an "
                f"image; take at least {trainer.world_size}."
            )

    def prepare_data(self) -> None:
        """Downloads what is missing, in one process alone."""
        if self.images is None:
            find_dataset(self.info, self.root, self.download)

    def setup(self, stage: str) -> None:
        """Loads the images that ``stage`` ("fit", "validate", "test" or "predict") needs."""
        if stage == "predict" and self.images is not None:
            self.photos = Photos(self.images, self.info.mean, self.info.std)
        if stage in ("fit", "validate") and self.train_set is None:
            self._setup_training(stage)
        if stage == "fit":
            self.check_batch_size(len(self.train_set))
        needs_test_set = stage == "test" or (stage == "predict" and self.images is None)
        if needs_test_set and self.test_set is None:
            self.test_set = self._batches(*self._load("test"))

    def _setup_training(self, stage: str) -> None:
        if stage == "validate" and not self.validates:
            raise UserError(
                "The protocol 'full' has no validation images; use `hps test`, or --data.protocol paper or holdout."
            )
        if self.protocol == "paper":
            self.val_set = self._batches(*self._load("test"))
        if stage == "validate" and self.protocol == "paper":
            return
        images, labels = self._load("train")
        if self.protocol == "holdout":
            parts = stratified_holdout(labels, self.val_fraction, self.split_seed)
            self.val_set = self._batches(images[parts.val], labels[parts.val])
            images, labels = images[parts.train], labels[parts.train]
        self.train_set = self._batches(images, labels, self.augmentation)

    def _load(self, split: str) -> tuple[Tensor, Tensor]:
        loaded = load_images(self.info, split, self.root, self.download)
        return loaded.images, loaded.labels

    def _batches(self, images: Tensor, labels: Tensor, augmentation: Augmentation | None = None) -> ImageBatches:
        device = self._device()
        images, labels = images.to(device), labels.to(device)
        return ImageBatches(images, labels, self.num_classes, self.info.mean, self.info.std, augmentation)

    def _device(self) -> torch.device:
        """Where the images live: on the GPU that trains, unless workers prepare their batches."""
        on_gpu = self._trains_on_cuda() and not self.num_workers
        return self.trainer.strategy.root_device if on_gpu else torch.device("cpu")

    def _trains_on_cuda(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _loader(self, batches: ImageBatches, batch_size: int, shuffle: bool, **options: Any) -> DataLoader:
        trainer = self.trainer
        sampler = BatchSampler(
            len(batches),
            batch_size,
            shuffle,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            **options,
        )
        return DataLoader(
            batches,
            # The sampler's keys stand for whole batches already.
            batch_size=None,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            # A loader draws a seed for its workers, which need none; so it does not from the training's generator.
            generator=torch.Generator(),
            # What lies on the GPU already cannot be pinned; pinning takes memory of a GPU that only stands by.
            pin_memory=torch.cuda.is_available() and self._trains_on_cuda() and batches.images.device.type == "cpu",
        )

    def state_dict(self) -> dict[str, Any]:
        """Where a training stands: ``epoch``, counted from 0, ``batches`` trained of it, and what decides on these."""
        if self.train_set is None or self.trainer is None:
            return {}
        loop = self.trainer.fit_loop
        epochs = loop.epoch_progress.current
        # `processed` is ahead of `completed` while an epoch ends, when checkpoints are written.
        ended = epochs.processed > epochs.completed
        # Of what is saved amid a batch, as when one breaks off a training, that batch is to be trained again.
        batches = 0 if ended else loop.epoch_loop.batch_progress.current.processed
        return {"epoch": epochs.processed, "batches": batches, "batch_size": self.batch_size, **self._order()}

    def _order(self) -> dict[str, Any]:
        """What decides which images an epoch has, and in which order, by the names of the options."""
        order = {"seed_everything": _run_seed(), "data.dataset": self.info.name, "data.protocol": self.protocol}
        if self.protocol == "holdout":
            order |= {"data.val_fraction": self.val_fraction, "data.split_seed": self.split_seed}
        return order

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up :meth:`state_dict`.

        Lightning would ask the loader to do so, but forgets to where an optimizer's schedule has
        asked for the number of steps; and it warns of a loader that cannot.
        """
        # Lightning hands it to an evaluation too, which would leave it to a training after it.
        if self.trainer is not None and self.trainer.state.fn == "fit":
            self._resumed = state_dict

    def train_dataloader(self) -> DataLoader:
        """Shuffled, augmented training batches.

        Raises:
            UserError: a training is to go on in the middle of an epoch, with batches of another size or other
                images, or in another order; or see :meth:`check_trainer`.
        """
        if self.trainer is not None:
            self.check_trainer(self.trainer)
        loader = self._loader(self.train_set, self.batch_size, shuffle=True, seed=_run_seed(), equal_shares=True)
        state, self._resumed = self._resumed, None
        if state:
            if state["batches"] and state["batch_size"] != self.batch_size:
                raise UserError(
                    f"The training stopped in epoch {state['epoch'] + 1} after {state['batches']} batches of "
                    f"{state['batch_size']} images, so that it cannot go on with batches of {self.batch_size}; leave "
                    f"data.batch_size at {state['batch_size']}."
                )
            for option, value in self._order().items():
                # Earlier versions have not said.
                if state["batches"] and option in state and state[option] != value:
                    raise UserError(
                        f"The training stopped in epoch {state['epoch'] + 1} after {state['batches']} batches, so that "
                        f"it cannot go on with {option} {value}, in another order; leave {option} at {state[option]}."
                    )
            loader.sampler.resume(state["epoch"], state["batches"])
        return loader

    def _eval_loader(self, batches: ImageBatches) -> DataLoader:
        if self.trainer is not None:
            self._check_eval_batch_size(self.trainer)
        return self._loader(batches, self.eval_batch_size, shuffle=False)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Validation batches; none under the protocol "full"."""
        return [] if self.val_set is None else self._eval_loader(self.val_set)

    def test_dataloader(self) -> DataLoader:
        """Batches of the test set."""
        return self._eval_loader(self.test_set)

    def predict_dataloader(self) -> DataLoader:
        """Batches of the images to classify, each with its path; without any given, the test set."""
        if self.photos is None:
            return self._eval_loader(self.test_set)
        return DataLoader(self.photos, batch_size=self.eval_batch_size)


def _run_seed() -> int:
    # seed_everything leaves it here.
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))
