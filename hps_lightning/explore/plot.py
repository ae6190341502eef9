"""A study as a picture: the first objective over each of the others, the front brought out."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from hps_lightning.explore.front import Row, front_of
from hps_lightning.explore.quantities import ERROR, QUANTITIES
from hps_lightning.point_labels import Label, place_labels

# Okabe and Ito's colours, told apart with every kind of colour vision; shapes tell the same.
_FRONT, _OTHER, _STOPPED, _LIMIT = "#0072B2", "#999999", "#E69F00", "#D55E00"

_LABELS = 24
"""Points of a front that are numbered; more would find no room."""

_DECADE = 10


def study_figure(rows: Sequence[Row], objectives: Sequence[str], limits: Mapping[str, float], title: str) -> Figure:
    """A study as a figure.

    One panel for each objective after the first; a study of one objective is drawn over what it
    limits, or else over the number of parameters. Trials that were not trained have no place in it
    and are counted in the title.

    Args:
        rows: the trials.
        objectives: see ``front.front_of``.
        limits: drawn as lines.
        title: above it.
    """
    across = [name for name in (*objectives[1:], *limits) if name != objectives[0]]
    across = list(dict.fromkeys(across)) or [next(name for name in ("parameters", "macs") if name != objectives[0])]
    figure = Figure(figsize=(max(6.4, 4.8 * len(across)), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(across), sharey=True, squeeze=False)[0]
    front = front_of(rows, objectives)
    for panel, name in zip(panels, across, strict=True):
        _panel(panel, rows, front, name, objectives[0], limits)
    panels[0].set_ylabel(_axis(objectives[0]))
    untrained = sum(row.state == "over the limits" and ERROR not in row.values for row in rows)
    more = f"\nover the limits and so not trained: {untrained}" if untrained else ""
    figure.suptitle(title + more, fontsize=11)
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    # Last, since it lays the figure out for good.
    for panel, name in zip(panels, across, strict=True):
        _number_points(panel, rows, front, name, objectives[0])
    return figure


def _panel(
    panel: Axes, rows: Sequence[Row], front: Sequence[Row], across: str, upwards: str, limits: Mapping[str, float]
) -> None:
    def draw(chosen: Sequence[Row], **style: object) -> None:
        points = [
            (_scaled(row, across), _scaled(row, upwards)) for row in chosen if {across, upwards} <= set(row.values)
        ]
        if points:
            panel.scatter(*zip(*points, strict=True), **style)

    numbers = {row.number for row in front}
    stopped = [row for row in rows if row.state == "stopped early"]
    over = [row for row in rows if row.state == "over the limits"]
    others = [row for row in rows if row.done and row.number not in numbers]
    draw(stopped, marker="v", s=34, facecolors="none", edgecolors=_STOPPED, label="stopped early, error so far")
    draw(over, marker="x", s=34, color=_LIMIT, linewidths=1.2, label="over the limits")
    draw(others, marker="o", s=30, color=_OTHER, label="beaten by another")
    draw(front, marker="o", s=58, color=_FRONT, edgecolors="white", linewidths=0.8, zorder=3, label="beaten by none")
    for name, line in ((across, panel.axvline), (upwards, panel.axhline)):
        if name in limits:
            line(limits[name] / QUANTITIES[name].scale, color=_LIMIT, linestyle="--", linewidth=1, zorder=0)
    panel.set_xlabel(_axis(across))
    for name, set_scale, axis in (
        (across, panel.set_xscale, panel.xaxis),
        (upwards, panel.set_yscale, panel.yaxis),
    ):
        if QUANTITIES[name].log:
            set_scale("log")
            # Powers of ten alone leave an axis of one decade without a number.
            low, high = axis.get_view_interval()
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > _DECADE * low else (1, 1.5, 2, 3, 4, 5, 7)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            axis.set_minor_formatter(NullFormatter())
    panel.grid(alpha=0.25, linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def _number_points(panel: Axes, rows: Sequence[Row], front: Sequence[Row], across: str, upwards: str) -> None:
    def places(chosen: Sequence[Row]) -> list[tuple[float, float]]:
        return [(_scaled(row, across), _scaled(row, upwards)) for row in chosen]

    numbered = front[:: max(1, -(-len(front) // _LABELS))]
    labels = [Label(x, y, str(row.number), _FRONT) for row, (x, y) in zip(numbered, places(numbered), strict=True)]
    shown = {row.number for row in numbered}
    others = [row for row in rows if row.number not in shown and {across, upwards} <= set(row.values)]
    place_labels(panel, labels, places(others), size=9)


def _scaled(row: Row, name: str) -> float:
    return row.values[name] / QUANTITIES[name].scale


def _axis(name: str) -> str:
    quantity = QUANTITIES[name]
    return f"{quantity.title} [{quantity.unit}]" if quantity.unit else quantity.title
