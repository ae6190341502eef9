"""Names beside the points of a scatter plot, none upon another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

# Distances from the point, in typographic points.
_DISTANCES = (7, 10, 16, 24, 34, 46, 60, 76)
_DIRECTIONS = 16
_LEADER_FROM = 10
_ROUNDS = 5

# Plain tuples, in pixels: matplotlib's own boxes take a hundred times as long to compare.
Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""

Line = tuple[float, float, float, float]
"""x and y of the start, x and y of the end."""


@dataclass(frozen=True)
class Label:
    """A point with its name; ``x`` and ``y`` as the axes have them."""

    x: float
    y: float
    text: str
    colour: str


@dataclass(frozen=True)
class _Place:
    """Where a label may stand: its box, the line to its point (pixels), and its middle off the point (points)."""

    box: Box
    line: Line
    offset: tuple[float, float]
    distance: float

    @property
    def far(self) -> bool:
        return self.distance > _LEADER_FROM


def place_labels(
    axes: Axes, labels: Sequence[Label], obstacles: Sequence[tuple[float, float]] = (), size: float = 7.5
) -> None:
    """Writes each label near its point, off the other labels and off all points, with a thin line where it is far.

    The labels take turns, several times, each to its best place given where the others are. It
    lays the figure out for good, so that it comes last.

    Args:
        axes: with everything else drawn, limits included.
        labels: what to write.
        obstacles: further points to keep clear of, in data coordinates.
        size: of the font, in points.
    """
    figure = axes.figure
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    unit = figure.dpi / 72
    frame = tuple(axes.get_window_extent(renderer).extents)
    points = [tuple(axes.transData.transform((label.x, label.y))) for label in labels]
    drawn = [*points, *(tuple(axes.transData.transform(point)) for point in obstacles)]
    markers = [_around(x, y, 5 * unit) for x, y in drawn]
    neighbourhoods = [_around(x, y, 12 * unit) for x, y in points]
    texts = [
        axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size,
            color=label.colour,
            parse_math=False,
        )
        for label in labels
    ]
    candidates: list[list[tuple[float, _Place]]] = []
    for (x, y), text in zip(points, texts, strict=True):
        extent = text.get_window_extent(renderer)
        fixed = []
        for place in _places(x, y, 1.04 * extent.width + 2 * unit, extent.height + unit, unit):
            # Its own marker, and those that lie upon it, cannot be avoided by the line.
            others = [marker for marker in markers if not _holds(marker, x, y)]
            cost = (
                5 * sum(_overlap(place.box, marker) for marker in markers)
                # A name nearer to another point than to its own would be taken for that one's.
                + 2 * sum(_overlap(place.box, near) for near in neighbourhoods if not _holds(near, x, y))
                + 50 * (_overlap(place.box, place.box) - _overlap(place.box, frame))
                + (15 * sum(_through(place.line, marker) for marker in others) if place.far else 0)
                + 2 * place.distance * unit
            )
            fixed.append((cost, place))
        candidates.append(sorted(fixed, key=lambda choice: choice[0]))
    chosen: list[_Place | None] = [None] * len(labels)
    order = sorted(range(len(labels)), key=lambda i: (-points[i][1], points[i][0]))
    for _ in range(_ROUNDS):
        for index in order:
            rest = [place for other, place in enumerate(chosen) if other != index and place is not None]
            chosen[index] = _best(candidates[index], rest)
    for label, text, place in zip(labels, texts, chosen, strict=True):
        text.set_position(place.offset)
        if place.far:
            axes.annotate(
                "",
                (label.x, label.y),
                xytext=_edge(place, unit),
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": label.colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3},
            )


def _best(candidates: Sequence[tuple[float, _Place]], others: Sequence[_Place]) -> _Place:
    """The place that costs least beside others, of candidates in the order of what they cost alone."""
    least, best = math.inf, candidates[0][1]
    for alone, place in candidates:
        if alone >= least:
            break
        cost = alone + _conflict(place, others)
        if cost < least:
            least, best = cost, place
    return best


def _places(x: float, y: float, width: float, height: float, unit: float) -> list[_Place]:
    places = []
    for distance in _DISTANCES:
        for step in range(_DIRECTIONS):
            angle = 2 * math.pi * step / _DIRECTIONS
            # The label's nearest side or corner lies at that distance.
            dx = math.cos(angle) * distance * unit + _side(math.cos(angle)) * width / 2
            dy = math.sin(angle) * distance * unit + _side(math.sin(angle)) * height / 2
            box = (x + dx - width / 2, y + dy - height / 2, x + dx + width / 2, y + dy + height / 2)
            places.append(_Place(box, (x, y, x + 0.8 * dx, y + 0.8 * dy), (dx / unit, dy / unit), distance))
    return places


def _conflict(place: _Place, others: Sequence[_Place]) -> float:
    """What a place costs for where the other labels and their lines are."""
    return sum(
        10 * _overlap(place.box, other.box)
        + (20 * _through(place.line, other.box) if place.far else 0)
        + (20 * _through(other.line, place.box) if other.far else 0)
        for other in others
    )


def _edge(place: _Place, unit: float) -> tuple[float, float]:
    """Where the line from a label's middle to its point leaves the label, in points off the point."""
    dx, dy = place.offset
    left, bottom, right, top = place.box
    sides = ((right - left) / unit, dx), ((top - bottom) / unit, dy)
    share = max(0.0, 1 - min((side / 2 / abs(offset) for side, offset in sides if abs(offset) > 1e-9), default=0.0))
    return dx * share, dy * share


def _side(component: float) -> float:
    """From -1 to 1 which side of the point the label's middle lies on, flush with it near the axes."""
    return max(-1.0, min(1.0, 1.5 * component))


def _around(x: float, y: float, radius: float) -> Box:
    return (x - radius, y - radius, x + radius, y + radius)


def _holds(box: Box, x: float, y: float) -> bool:
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


def _overlap(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def _through(line: Line, box: Box) -> float:
    """The length of a line that runs through a box."""
    x0, y0, x1, y1 = line
    start, end = 0.0, 1.0
    for origin, step, low, high in ((x0, x1 - x0, box[0], box[2]), (y0, y1 - y0, box[1], box[3])):
        if abs(step) < 1e-9:
            if not low <= origin <= high:
                return 0.0
            continue
        enters, leaves = sorted(((low - origin) / step, (high - origin) / step))
        start, end = max(start, enters), min(end, leaves)
        if start >= end:
            return 0.0
    return (end - start) * math.hypot(x1 - x0, y1 - y0)
