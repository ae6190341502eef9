"""Folding (see ``board.folding``) of networks that need not be ours: only where the answers stay what they were."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hps_lightning.bluebox.board.folding import fold
from hps_lightning.errors import UserError

TOLERANCE = 1e-4
"""How far logits may be off, of the largest one where that is above 1: as much as the self-test allows."""


def folded_network(network: nn.Module, manifest: Mapping[str, Any], complete: bool = True) -> nn.Module:
    """A network with its batch norms folded, after a comparison of both on images of noise.

    Args:
        network: bare, in float32 on the CPU, in evaluation mode; it is not changed.
        manifest: what :func:`~hps_lightning.bluebox.describe` returns.
        complete: see :func:`~hps_lightning.bluebox.board.folding.fold`.

    Raises:
        UserError: the folded one does not run, or answers otherwise: the network is none of ours, but has names of
            ours for something else.
    """
    images = torch.randn(4, *manifest["input"]["shape"], generator=torch.Generator().manual_seed(0))
    expected = answers(network, images)
    try:
        folded = fold(network, complete)
        off = (answers(folded, images) - expected).abs().max()
    except Exception as error:  # A network's own code raises what it likes.
        raise _refusal(network, f"it does not run: {' '.join(str(error).split()) or type(error).__name__}") from error
    # Not the other way about, since it may be no number.
    if expected.isfinite().all() and not off <= TOLERANCE * expected.abs().max().clamp(min=1):
        raise _refusal(network, f"its logits are {off:.2g} off")
    return folded


@torch.no_grad()
def answers(network: nn.Module, images: Tensor) -> Tensor:
    """A network's logits, N x classes, to normalised images, N x C x H x W.

    Raises:
        UserError: it cannot be run on them, or gives something else.
    """
    kind = type(network).__name__
    size = " x ".join(map(str, images.shape[1:]))
    try:
        # A training that exports may be amid an autocast, in which answers are rounded.
        with torch.autocast("cpu", enabled=False):
            # One at a time, which takes less memory where they are large.
            logits = [network(image) for image in images.contiguous().split(1)]
    except Exception as error:  # A network's own code raises what it likes.
        raise UserError(f"{kind} cannot be run on images of {size}: {error}") from error
    shapes = {tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__ for each in logits}
    if len(shapes) > 1 or not (isinstance(logits[0], Tensor) and logits[0].ndim == 2 and len(logits[0]) == 1):
        raise UserError(
            f"{kind} gives {' and '.join(map(str, shapes))} for a single image of {size}; a board asks for one image "
            "at a time, and needs 1 x classes. A `squeeze()` without a dimension takes the batch's, too."
        )
    return torch.cat(logits)


def _refusal(network: nn.Module, problem: str) -> UserError:
    return UserError(
        f"{type(network).__name__} with its batch norms folded into its convolutions is another network: {problem}. "
        "Export it as it is, and without int8, which is of the folded one: hps export --no-fold --formats pytorch onnx."
    )
