"""The plots: curves of trainings, accuracy against size, time per epoch against parameters, optimizers.

Colours are Okabe and Ito's, which colour-blind people tell apart; markers and line styles say the
same once more. The same content gives the same bytes.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from hps_lightning.errors import UserError
from hps_lightning.files import replaced_whole
from hps_lightning.point_labels import Label, place_labels
from hps_lightning.report.curves import Run
from hps_lightning.report.studies import Trained

FORMATS = (".png", ".svg")
"""The suffixes of picture files."""

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
)
_STYLES = tuple(zip((BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK), "os^DvP*", strict=True))

MOST_RUNS = len(_STYLES)
"""With more trainings than this, colours repeat."""

TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "digits": "digits"}
_VALIDATED_ON = {"holdout": "held-out training images", "paper": "the test images, as in the paper"}
_GRID = {"color": "#DDDDDD", "linewidth": 0.6}


@dataclass(frozen=True)
class Point:
    """A network in a scatter plot.

    Attributes:
        name: written beside it.
        x: megabytes, or number of parameters.
        y: percent, or seconds.
        also_x: where computation puts it instead, if that is known; the two are joined by a line.
    """

    name: str
    x: float
    y: float
    also_x: float | None = None


@dataclass(frozen=True)
class Group:
    """Points of one origin.

    Attributes:
        title: in the legend.
        points: its networks.
        colour: of its points and names.
        marker: as matplotlib names it.
        filled: whether the markers are.
    """

    title: str
    points: Sequence[Point]
    colour: str
    marker: str
    filled: bool = True


def check_comparable(runs: Sequence[Run]) -> None:
    """Refuses trainings that do not belong into one picture.

    Raises:
        UserError: they are of different data sets, or too many to tell apart.
    """
    datasets = {run.dataset: run.name for run in runs}
    if len(datasets) > 1:
        of = ", ".join(f"{name} is trained on {dataset}" for dataset, name in datasets.items())
        raise UserError(f"The runs are of different data sets, whose accuracies are not comparable: {of}.")
    if len(runs) > MOST_RUNS:
        raise UserError(f"{len(runs)} runs in one picture cannot be told apart; give at most {MOST_RUNS}.")


def run_titles(runs: Sequence[Run], paths: Sequence[Path]) -> list[str]:
    """A name for each run that tells it from the others: the network's, with protocol, seed or path as needed.

    Args:
        runs: to be told apart.
        paths: where each was read.
    """
    for title in (
        lambda run: run.name,
        lambda run: f"{run.name}, {run.protocol}",
        lambda run: f"{run.name}, seed {run.seed}",
        lambda run: f"{run.name}, {run.protocol}, seed {run.seed}",
    ):
        titles = [title(run) for run in runs]
        if len(set(titles)) == len(titles):
            return titles
    places = [path.absolute() for path in paths]
    common = os.path.commonpath(places)
    return [f"{run.name} ({os.path.relpath(place, common)})" for run, place in zip(runs, places, strict=True)]


def curves_figure(runs: Sequence[Run], titles: Sequence[str], metric: str = "accuracy") -> Figure:
    """Training (dashed) and validation (solid) of each run by epoch, as in the paper's Figure 10.

    Args:
        runs: of one data set; :func:`check_comparable` tells.
        titles: of the runs, in the legend; see :func:`run_titles`.
        metric: one of ``curves.METRICS``.

    Raises:
        UserError: the runs are not comparable, or hold nothing of the metric.
    """
    check_comparable(runs)
    figure = Figure(figsize=(7.2, 4.3 + 0.36 * len(runs)), dpi=100, layout="constrained")
    axes = figure.subplots()
    factor, unit = (100, " %") if metric == "accuracy" else (1, "")
    for run, title, (colour, marker) in zip(runs, titles, _STYLES, strict=False):
        drawn = 0
        for stage, words, line in (("train", "training", "--"), ("val", "validation", "-")):
            values = run.series.get(f"{stage}/{metric}", {})
            if not values:
                continue
            drawn += 1
            epochs = sorted(values)
            heights = [factor * values[epoch] for epoch in epochs]
            last = f"{heights[-1]:.2f}{unit}" if metric == "accuracy" else f"{heights[-1]:.3f}"
            axes.plot(
                epochs,
                heights,
                color=colour,
                linestyle=line,
                linewidth=1.6 if stage == "val" else 1.3,
                marker=marker,
                markersize=4.5,
                markerfacecolor=colour if stage == "val" else "white",
                # Some points only, the last among them.
                markevery=[i for i in range(len(epochs)) if (len(epochs) - 1 - i) % max(1, len(epochs) // 8) == 0],
                label=_plain(f"{title}, {words}: {last} after epoch {epochs[-1]}"),
            )
        if not drawn:
            raise UserError(f"The run {title} has logged no {metric}.")
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy (%)" if metric == "accuracy" else "cross entropy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(_title(runs, metric), fontsize=11, parse_math=False)
    _tidy(axes)
    figure.legend(loc="outside lower left", ncols=1, frameon=False, fontsize=9, handlelength=3.2)
    return figure


def _title(runs: Sequence[Run], metric: str) -> str:
    dataset = TITLES.get(runs[0].dataset, runs[0].dataset)
    validating = [run for run in runs if run.series.get(f"val/{metric}")]
    if not validating:
        return f"Training on {dataset}"
    measured = sorted({_VALIDATED_ON[run.protocol] for run in validating if run.protocol in _VALIDATED_ON})
    validated = f"\nvalidation on {' or '.join(measured)}" if measured else ""
    return f"Training and validation, {dataset}{validated}"


def _plain(text: str) -> str:
    # A label between dollar signs would be a formula, one that begins with an underscore no label.
    return " " + text.replace("$", r"\$")


def _tidy(axes: Axes) -> None:
    axes.grid(**_GRID)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def size_figure(groups: Sequence[Group], dataset: str) -> Figure:
    """Accuracy against size, each network with its name.

    Args:
        groups: points of megabytes and percent.
        dataset: that the accuracies are on.
    """
    figure = Figure(figsize=(9.5, 8), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    _scatter(axes, groups)
    axes.set_xlabel("size (MB)")
    axes.set_ylabel(f"accuracy on the test images of {TITLES[dataset]} (%)")
    axes.set_title(f"Accuracy against size, {TITLES[dataset]}", fontsize=11)
    _plain_ticks(axes.xaxis, axes.get_xlim())
    return _labelled(figure, axes, groups)


def time_figure(groups: Sequence[Group]) -> Figure:
    """Seconds per epoch against parameters, each network with its name.

    Args:
        groups: points of parameters and seconds, a group a machine.
    """
    figure = Figure(figsize=(9.5, 8), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log")
    _scatter(axes, groups)
    axes.set_xlabel("parameters")
    axes.set_ylabel("seconds per epoch")
    axes.set_title("Time per epoch against parameters: each kind of machine by itself", fontsize=11)
    _plain_ticks(axes.xaxis, axes.get_xlim())
    _plain_ticks(axes.yaxis, axes.get_ylim())
    return _labelled(figure, axes, groups)


def optimizers_figure(trained: Sequence[Trained]) -> Figure:
    """Every optimizer's accuracies under every schedule: a mark for each seed, a dash at their mean."""
    figure = Figure(figsize=(9.5, 5.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(one.optimizer for one in trained))
    schedules = list(dict.fromkeys(one.schedule for one in trained))
    for column, schedule in enumerate(schedules):
        # Beside each other, in the order of the legend.
        shift = (column - (len(schedules) - 1) / 2) * 0.8 / len(schedules)
        colour, marker = _STYLES[column % len(_STYLES)]
        of_schedule = [one for one in trained if one.schedule == schedule]
        points = [(names.index(one.optimizer) + shift, value) for one in of_schedule for value in one.accuracies]
        means = [(names.index(one.optimizer) + shift, one.accuracy) for one in of_schedule]
        style = {"color": colour, "linewidth": 0}
        axes.plot(*zip(*points, strict=True), marker, **style, markersize=5, alpha=0.6, label=_plain(schedule))
        axes.plot(*zip(*means, strict=True), "_", **style, markersize=11, markeredgewidth=2)
    axes.set_xticks(range(len(names)), names, rotation=25, ha="right")
    axes.set_ylabel("accuracy on the hold-out (%)")
    _tidy(axes)
    figure.legend(loc="outside lower left", ncols=min(4, len(schedules)), frameon=False, fontsize=9)
    return figure


def _scatter(axes: Axes, groups: Sequence[Group]) -> None:
    axes.margins(0.09)
    for group in groups:
        for point in group.points:
            if point.also_x is not None:
                axes.plot([point.x, point.also_x], [point.y, point.y], color=group.colour, linewidth=0.9, alpha=0.7)
                axes.plot(point.also_x, point.y, marker="|", markersize=8, color=group.colour)
        axes.scatter(
            [point.x for point in group.points],
            [point.y for point in group.points],
            s=34,
            marker=group.marker,
            facecolors=group.colour if group.filled else "white",
            edgecolors=group.colour,
            linewidths=1.2,
            label=_plain(group.title),
            # A filled mark in front of a hollow one leaves both to be seen.
            zorder=4 if group.filled else 3,
        )
    _tidy(axes)


def _plain_ticks(axis, limits: tuple[float, float]) -> None:
    """1, 2 and 5 of each decade, as plain numbers instead of powers of ten."""
    ticks = [mantissa * 10.0**power for power in range(-3, 10) for mantissa in (1, 2, 5)]
    axis.set_major_locator(FixedLocator([tick for tick in ticks if limits[0] <= tick <= limits[1]]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _labelled(figure: Figure, axes: Axes, groups: Sequence[Group]) -> Figure:
    figure.legend(loc="outside lower left", ncols=1 if len(groups) < 4 else 2, frameon=False, fontsize=9)
    named: dict[tuple[float, float, str], list[str]] = {}
    for group in groups:
        for point in group.points:
            # What lies on one spot has one label.
            named.setdefault((point.x, point.y, _darker(group.colour)), []).append(point.name)
    labels = [Label(x, y, ", ".join(names), colour) for (x, y, colour), names in named.items()]
    joined = [point for group in groups for point in group.points if point.also_x is not None]
    # Along each line, so that no name lies on it.
    obstacles = [(point.x * (point.also_x / point.x) ** (i / 6), point.y) for point in joined for i in range(1, 7)]
    place_labels(axes, labels, obstacles)
    return figure


def _darker(colour: str) -> str:
    """A shade that small letters can be read in on white."""
    return to_hex([0.68 * channel for channel in to_rgb(colour)])


def write_figure(figure: Figure, path: Path) -> None:
    """Writes a figure, whole or not at all, in the format that the file's name says.

    Raises:
        UserError: the suffix is none of :data:`FORMATS`, or the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise UserError(f"{path}: a picture is written as {' or '.join(FORMATS)}; end the name with one of them.")
    FigureCanvasAgg(figure)
    # Without a date and with fixed names for its parts, the same figure gives the same file.
    settings = {"svg.hashsalt": "hps_lightning", "svg.fonttype": "path"}
    metadata = {"Date": None, "Creator": None} if suffix == ".svg" else {"Software": None}
    try:
        with matplotlib.rc_context(settings), replaced_whole(path) as aside:
            figure.savefig(aside, format=suffix[1:], dpi=200, metadata=metadata)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
