"""The published networks: weights that come with the package, ready to classify images."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hps_lightning.checkpoint import read_checkpoint, rebuilt
from hps_lightning.complexity import IMAGE_SIZE
from hps_lightning.data.batches import normalise
from hps_lightning.data.photos import read_photo
from hps_lightning.errors import UserError
from hps_lightning.installed import published_folder
from hps_lightning.modules import RECORD_KEY


def published_names() -> list[str]:
    """The published networks, each as ``NAME-DATASET``."""
    return sorted(path.stem for path in published_folder().glob("*.ckpt"))


@dataclass(frozen=True)
class Pretrained:
    """A published network with what is needed to use it.

    Attributes:
        name: as in the zoo.
        dataset: what it was trained on.
        network: in evaluation mode; maps normalised N x 3 x 32 x 32 to N x classes logits.
        classes: names, in the order of the logits.
        mean: of each channel, 0 to 1, that its images are normalised with.
        std: standard deviation likewise.
        facts: what was measured of it, as ``checkpoints/NAME-DATASET.json`` holds it.
    """

    name: str
    dataset: str
    network: nn.Module
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    facts: dict[str, Any]

    def preprocess(self, images: Tensor | str | Path) -> Tensor:
        """Normalised images, N x 3 x 32 x 32, of uint8 images of that shape or of one image file.

        Raises:
            UserError: the file cannot be read, or the tensor is no uint8 images of that size.
        """
        if not isinstance(images, Tensor):
            images = read_photo(Path(images))[None]
        # Of another size the network would answer as well, and differently.
        if images.dtype != torch.uint8 or images.shape[1:] != IMAGE_SIZE:
            raise UserError(
                f"preprocess takes uint8 images of N x 3 x 32 x 32, got {images.dtype} of {tuple(images.shape)}; "
                "resize them, or give the file, which is resized."
            )
        return normalise(images, self.mean, self.std)

    @torch.inference_mode()
    def probabilities(self, images: Tensor | str | Path) -> Tensor:
        """Probabilities, N x classes, of what :meth:`preprocess` takes, on the network's device."""
        device = next(self.network.parameters()).device
        return self.network(self.preprocess(images).to(device)).softmax(1)


def load(name: str, dataset: str = "cifar10") -> Pretrained:
    """A published network by its name in the zoo.

    Args:
        name: such as "hps_06_05x".
        dataset: what it was trained on, "cifar10" or "cifar100".

    Raises:
        UserError: it is not published; the message lists those that are.
    """
    path = published_folder() / f"{name}-{dataset}.ckpt"
    if not path.is_file():
        known = ", ".join(published_names()) or "none"
        raise UserError(f"{name} trained on {dataset} is not published. Published: {known}.")
    checkpoint = read_checkpoint(path)
    record = checkpoint[RECORD_KEY]
    return Pretrained(
        name=name,
        dataset=dataset,
        # The bare network, in the usual layout: Lightning is not needed to use it.
        network=rebuilt(path, checkpoint).network.to(memory_format=torch.contiguous_format),
        classes=tuple(record["classes"]),
        mean=tuple(record["mean"]),
        std=tuple(record["std"]),
        facts=json.loads(path.with_suffix(".json").read_text(encoding="utf-8")),
    )
