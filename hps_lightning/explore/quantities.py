"""The quantities that an exploration can make small or limit, and how they are written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

ERROR = "error"
"""The one that only a training tells: the part of the held-out images that the last epoch gets wrong."""


@dataclass(frozen=True)
class Quantity:
    """Something that is better when it is smaller.

    Attributes:
        title: what it is, for the axis of a plot.
        unit: that of the text.
        text: a value in that unit.
        scale: how many of our own units one such unit is.
        log: whether a plot spreads it best on a logarithmic axis.
    """

    title: str
    unit: str
    text: Callable[[float], str]
    scale: float = 1.0
    log: bool = True

    def write(self, value: float) -> str:
        """A value with its unit."""
        return f"{self.text(value)} {self.unit}".strip()


QUANTITIES: dict[str, Quantity] = {
    ERROR: Quantity("error on the hold-out", "%", lambda value: f"{100 * value:.2f}", 0.01, log=False),
    "size_bytes": Quantity("ONNX file", "kB", lambda value: f"{value / 1e3:,.1f}", 1e3),
    "latency_ms": Quantity("one image, one thread", "ms", lambda value: f"{value:.3f}"),
    "parameters": Quantity("parameters", "", lambda value: f"{value:,.0f}"),
    "macs": Quantity("multiply-accumulates", "MMACs", lambda value: f"{value / 1e6:,.2f}", 1e6),
}
"""All of them; all but the error are known before a network is trained."""


def excess(values: Mapping[str, float], limits: Mapping[str, float]) -> dict[str, float]:
    """By which part each quantity exceeds its limit; 0 or less where it meets it.

    As parts, so that bytes do not outweigh milliseconds where they are added up.
    """
    return {name: values[name] / limit - 1 for name, limit in limits.items() if name in values}


def exceeds(part: float) -> bool:
    """Whether a quantity of which :func:`excess` tells ``part`` is beyond its limit."""
    # Rounding may put one that equals its limit beyond it.
    return part > 1e-9


def write_limits(limits: Mapping[str, float]) -> str:
    """Limits to be read."""
    return ", ".join(f"{name} at most {QUANTITIES[name].write(limit)}" for name, limit in limits.items())
