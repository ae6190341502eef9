"""What is done to a batch of training images before the network sees it.

Crop, flip and Cutout act on whole batches as tensors; the other operations are torchvision's.
All randomness comes from one seed a batch and is drawn on the CPU, so that the same epoch and
step give the same images whatever the number of workers, and wherever the images lie.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torchvision.transforms import v2

from hps_lightning.errors import UserError

Policy = Literal["autoaugment", "randaugment", "trivialaugment", "augmix"]
PaddingMode = Literal["constant", "reflect"]

# Beyond its own side an image has nothing left to show.
_MOST = {"crop_padding": 32}
# float32 holds little less, and a Beta distribution nothing of it.
_LEAST = 1e-6


class _AugMix(v2.AugMix):
    """AugMix that draws on the CPU, as all else here, when the images lie on a GPU."""

    def _sample_dirichlet(self, params: Tensor) -> Tensor:
        return super()._sample_dirichlet(params.cpu()).to(params.device)


_POLICIES = {
    "autoaugment": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
    "randaugment": v2.RandAugment,
    "trivialaugment": v2.TrivialAugmentWide,
    "augmix": _AugMix,
}


def random_crop(images: Tensor, padding: int, padding_mode: PaddingMode = "constant") -> Tensor:
    """Pads on each side and cuts out the original size anywhere, N x C x H x W.

    Args:
        images: a batch.
        padding: pixels on each side.
        padding_mode: what they show, as torchvision's: black ("constant"), or the image mirrored
            at its edge ("reflect", fewer pixels than the image has).
    """
    count, _, height, width = images.shape
    padded = v2.functional.pad(images, [padding], padding_mode=padding_mode)
    # All windows of an image are a view of it, so that the cut is one gather.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    top, left = torch.randint(0, 2 * padding + 1, (2, count)).to(images.device, non_blocking=True)
    return windows[torch.arange(count, device=images.device), :, top, left]


def random_flip(images: Tensor) -> Tensor:
    """Mirrors each image left to right with probability one half, N x C x H x W."""
    flipped = (torch.rand(len(images)) < 0.5).to(images.device, non_blocking=True)
    return torch.where(flipped[:, None, None, None], images.flip(3), images)


def cutout(images: Tensor, size: int) -> Tensor:
    """Blackens a square of ``size`` pixels around a random centre of each image (DeVries and Taylor, 2017).

    N x C x H x W; where the centre lies near an edge, a part of the square falls outside.
    """
    count, _, height, width = images.shape
    centre_y = torch.randint(0, height, (count, 1)).to(images.device, non_blocking=True)
    centre_x = torch.randint(0, width, (count, 1)).to(images.device, non_blocking=True)
    first_y, first_x = centre_y - size // 2, centre_x - size // 2
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    rows = (y >= first_y) & (y < first_y + size)
    columns = (x >= first_x) & (x < first_x + size)
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of training images.

    Args:
        crop_padding: pixels padded on each side before a random crop; 0 switches it off.
        padding_mode: what these pixels show: black ("constant"), or the image mirrored at its
            edge ("reflect").
        flip: whether images are mirrored at random.
        cutout: side of the square that Cutout blackens, in pixels; 0 switches it off.
        random_erasing: probability of erasing a random rectangle of an image.
        color_jitter: strength of random brightness, contrast and saturation, 0 to 1.
        policy: a learned or random policy: "autoaugment" (the CIFAR-10 policy),
            "randaugment", "trivialaugment" or "augmix".
        mixup: alpha of mixup's Beta distribution; 0 switches it off.
        cutmix: alpha of CutMix's Beta distribution; 0 switches it off. With mixup on as
            well, each batch takes one of the two at random.

    Raises:
        UserError: a strength, probability or side is out of its range, or the policy is unknown.
    """

    crop_padding: int = 4
    padding_mode: PaddingMode = "constant"
    flip: bool = True
    cutout: int = 0
    random_erasing: float = 0.0
    color_jitter: float = 0.0
    policy: Policy | None = None
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        for name in ("crop_padding", "cutout", "mixup", "cutmix"):
            value = getattr(self, name)
            if not value >= 0:
                raise UserError(f"augmentation.{name} must not be negative, got {value!r}.")
            if 0 < value < _LEAST:
                raise UserError(f"augmentation.{name} must be 0, or at least {_LEAST:g}, got {value!r}.")
            if value > _MOST.get(name, 1e6):
                raise UserError(f"augmentation.{name} must be at most {_MOST.get(name, 1e6):g}, got {value!r:.80}.")
        for name in ("random_erasing", "color_jitter"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserError(f"augmentation.{name} must lie between 0 and 1, got {value!r}.")
        if self.padding_mode not in get_args(PaddingMode):
            modes = ", ".join(get_args(PaddingMode))
            raise UserError(f"augmentation.padding_mode must be one of {modes}, got {self.padding_mode!r}.")
        if self.padding_mode == "reflect" and self.crop_padding > 31:
            raise UserError(
                f"augmentation.crop_padding must be at most 31 where the edge is mirrored, got {self.crop_padding!r}."
            )
        if self.policy is not None and self.policy not in _POLICIES:
            raise UserError(f"augmentation.policy must be one of {', '.join(_POLICIES)}, got {self.policy!r}.")

    def __call__(self, images: Tensor, labels: Tensor, num_classes: int, seed: int) -> tuple[Tensor, Tensor]:
        """Augments a batch.

        Args:
            images: uint8, N x 3 x H x W.
            labels: int64, N.
            num_classes: number of classes.
            seed: what all randomness of this batch comes from.

        Returns:
            uint8 images of the same shape, and the labels: unchanged, or probabilities
            (float32, N x ``num_classes``) where images were mixed.
        """
        # torchvision's transforms draw from torch's global generator alone.
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would reseed the GPUs as well, and with them the training's dropout.
            torch.default_generator.manual_seed(seed)
            if self.flip:
                images = random_flip(images)
            if self.policy or self.color_jitter:
                images = self._one_by_one(images)
            if self.crop_padding:
                images = random_crop(images, self.crop_padding, self.padding_mode)
            if self.cutout:
                images = cutout(images, self.cutout)
            if self.random_erasing:
                erase = v2.RandomErasing(p=self.random_erasing)
                images = torch.stack([erase(image) for image in images])
            if self.mixup or self.cutmix:
                images, labels = self._mix(images, labels, num_classes)
        return images, labels

    def _one_by_one(self, images: Tensor) -> Tensor:
        steps: list[torch.nn.Module] = []
        if self.policy:
            steps.append(_POLICIES[self.policy]())
        if self.color_jitter:
            steps.append(v2.ColorJitter(self.color_jitter, self.color_jitter, self.color_jitter))
        transform = v2.Compose(steps)
        return torch.stack([transform(image) for image in images])

    def _mix(self, images: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        mixers = []
        if self.mixup:
            mixers.append(v2.MixUp(alpha=self.mixup, num_classes=num_classes))
        if self.cutmix:
            mixers.append(v2.CutMix(alpha=self.cutmix, num_classes=num_classes))
        mix = mixers[0] if len(mixers) == 1 else v2.RandomChoice(mixers)
        mixed, probabilities = mix(images.float(), labels)
        return mixed.round().to(torch.uint8), probabilities
