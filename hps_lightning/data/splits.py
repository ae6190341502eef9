"""Protocols: which images train, which validate, which test."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hps_lightning.errors import UserError

Protocol = Literal["holdout", "full", "paper"]
"""Which images a training may see.

holdout: a seeded, stratified part of the training images validates; the test images are left to `hps test`.
full: all training images train; nothing validates; the test images are left to `hps test`.
paper: all training images train; the test images validate, as in the paper.
"""


@dataclass(frozen=True)
class HoldOut:
    """Positions of the images that train and of those that validate (both int64, sorted)."""

    train: Tensor
    val: Tensor


def stratified_holdout(labels: Tensor, fraction: float, seed: int) -> HoldOut:
    """Sets a part of each class aside.

    Args:
        labels: class of each image, N.
        fraction: the part of each class to set aside, more than 0 and less than 1.
        seed: which images are chosen; the same seed chooses the same images anywhere.

    Raises:
        UserError: the fraction leaves nothing on one side.
    """
    if not 0 < fraction < 1:
        raise UserError(f"data.val_fraction must lie between 0 and 1, got {fraction!r}.")
    generator = torch.Generator().manual_seed(seed)
    held = []
    for label in labels.unique(sorted=True):
        members = (labels == label).nonzero().flatten()
        count = round(len(members) * fraction)
        held.append(members[torch.randperm(len(members), generator=generator)[:count]])
    val = torch.cat(held).sort().values
    mask = torch.ones(len(labels), dtype=torch.bool)
    mask[val] = False
    train = mask.nonzero().flatten()
    if not len(val) or not len(train):
        raise UserError(
            f"data.val_fraction {fraction:g} of {len(labels)} images leaves {len(train)} to train and "
            f"{len(val)} to validate; choose another fraction."
        )
    return HoldOut(train, val)
