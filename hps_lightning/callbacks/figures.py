"""Pictures of what a network answers: confusion matrices and sample predictions."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

# Okabe and Ito's blue and vermillion, which colour-blind people tell apart.
RIGHT_COLOUR = "#0072B2"
WRONG_COLOUR = "#D55E00"

MOST_NUMBERED_CLASSES = 30
"""With more classes than this, a confusion matrix has no room for numbers."""


def denormalise(images: Tensor, mean: Iterable[float], std: Iterable[float]) -> Tensor:
    """Brings normalised images, N x 3 x H x W, back to 0 to 1."""
    mean, std = (torch.tensor(tuple(values))[:, None, None] for values in (mean, std))
    return (images.float() * std + mean).clamp(0, 1)


def superclass_counts(counts: Tensor, superclass_of: Sequence[int]) -> Tensor:
    """Sums a confusion matrix, C x C, over superclasses: S x S, int64.

    Args:
        counts: number of images by true (row) and predicted (column) class.
        superclass_of: index of the superclass of each class.
    """
    members = F.one_hot(torch.tensor(superclass_of))
    return members.T @ counts.to(torch.int64) @ members


def confusion_figure(counts: Tensor, names: Sequence[str], title: str) -> Figure:
    """Draws a confusion matrix; the colour of a cell is its share of the true class.

    Args:
        counts: number of images by true (row) and predicted (column) class, C x C.
        names: of the classes.
        title: what stands above it.
    """
    numbered = len(names) <= MOST_NUMBERED_CLASSES
    side = (4 + 0.52 * len(names)) if numbered else (4 + 0.15 * len(names))
    figure = Figure(figsize=(side + 1, side), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    shares = (counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy()
    # The square root lets rare confusions be seen beside the diagonal; blue on white needs no hue to be read.
    colours = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    font = 10 if numbered else 7.5
    axes.set_xticks(range(len(names)), names, rotation=45 if numbered else 90, fontsize=font, parse_math=False)
    axes.set_yticks(range(len(names)), names, fontsize=font, parse_math=False)
    if numbered:
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
        _number_cells(axes, counts, shares)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(title, parse_math=False)
    bar = figure.colorbar(colours, ax=axes, shrink=0.8, label="share of the true class (%)")
    percents = (0, 1, 5, 10, 25, 50, 75, 100)
    bar.set_ticks([percent / 100 for percent in percents], labels=map(str, percents))
    return figure


def _number_cells(axes: Axes, counts: Tensor, shares: np.ndarray) -> None:
    for true, predicted in counts.nonzero().tolist():
        axes.text(
            predicted,
            true,
            f"{int(counts[true, predicted])}",
            ha="center",
            va="center",
            fontsize=9,
            # The square root of 0.3 is a little more than half of the colour scale.
            color="white" if shares[true, predicted] > 0.3 else "black",
        )


def samples_figure(images: Tensor, labels: Tensor, probabilities: Tensor, names: Sequence[str], title: str) -> Figure:
    """Draws images in a square grid, each with its predicted class, and its true one where they differ.

    Args:
        images: N x 3 x H x W, 0 to 1.
        labels: true classes, N.
        probabilities: of each class, N x C.
        names: of the classes.
        title: what stands above it.
    """
    columns = max(1, math.ceil(math.sqrt(len(images))))
    rows = max(1, math.ceil(len(images) / columns))
    figure = Figure(figsize=(1.9 * columns, 2.15 * rows + 0.6), dpi=100, layout="constrained")
    figure.suptitle(f"{title}\n✓ right, ✗ wrong", parse_math=False)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid[len(images) :]:
        axes.set_axis_off()
    best = probabilities.max(1)
    for axes, image, label, probability, predicted in zip(
        grid, images, labels.tolist(), best.values.tolist(), best.indices.tolist(), strict=False
    ):
        right = predicted == label
        axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        for edge in axes.spines.values():
            edge.set(
                color=RIGHT_COLOUR if right else WRONG_COLOUR,
                linewidth=1.5 if right else 3,
                linestyle="-" if right else (0, (4, 2)),
                capstyle="butt",
            )
        text = f"{'✓' if right else '✗'} {names[predicted]} {100 * probability:.0f} %"
        # An empty second line keeps the rows equally high.
        text += "\n" if right else f"\ntrue: {names[label]}"
        axes.set_xlabel(text, fontsize=9, fontweight="normal" if right else "bold", parse_math=False)
    return figure


def render(figure: Figure) -> np.ndarray:
    """The pixels of a figure: uint8, H x W x 3."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
