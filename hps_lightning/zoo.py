"""The named variants: each is one network class with the arguments that a paper prints."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from hps_lightning import networks, paper
from hps_lightning.errors import UserError
from hps_lightning.names import no_network

FAMILIES: dict[str, type[nn.Module]] = {
    "squeezenet": networks.SqueezeNet,
    "squeezed_cnn": networks.SqueezedCNN,
    "mobilenet": networks.MobileNet,
    "squeezenext": networks.SqueezeNext,
    "modified_squeezenext": networks.ModifiedSqueezeNext,
    "shallow_squeezenext": networks.ShallowSqueezeNext,
    "hps": networks.HighPerformanceSqueezeNext,
}
"""The network class of each family."""


@dataclass(frozen=True)
class Variant:
    """A network under the name that people know it by.

    Attributes:
        name: as typed on the command line, such as ``hps_06_05x``.
        family: a key of :data:`FAMILIES`.
        arguments: what the family's network is built with, besides the number of classes.
        datasets: the data sets that it was published for.
        paper_name: the name in the paper's tables, where they list it.
        note: what a user should know before relying on the name.
    """

    name: str
    family: str
    arguments: dict[str, Any] = field(default_factory=dict)
    datasets: tuple[str, ...] = ("cifar10",)
    paper_name: str | None = None
    note: str = ""

    def build(self, num_classes: int = 10, **overrides: Any) -> nn.Module:
        """The network, with fresh weights; ``overrides`` replace the variant's arguments.

        Raises:
            ValueError: an argument is none that the network can be built with.
        """
        return FAMILIES[self.family](num_classes=num_classes, **{**self.arguments, **overrides})

    def published(self, dataset: str) -> paper.PaperResult | None:
        """The paper's row for ``dataset``: the one that prints the configuration, if any does."""
        rows = [row for row in paper.results() if row.model == self.paper_name and row.dataset == dataset]
        rows.sort(key=lambda row: row.stages is None)
        return rows[0] if rows else None


def _hps(name: str, stages: list[int], width: float, paper_name: str, *datasets: str, note: str = "") -> Variant:
    title = f"High Performance SqueezeNext-{paper_name}"
    return Variant(name, "hps", {"stages": stages, "width": width}, datasets, title, note)


_BOTH = ("cifar10", "cifar100")
_VARIANTS = (
    Variant("squeezenet_v1_0", "squeezenet", {"version": "1_0"}, _BOTH, "Baseline SqueezeNet-v1.0"),
    Variant("squeezenet_v1_1", "squeezenet", {"version": "1_1"}, ("cifar10",), "Baseline SqueezeNet-v1.1"),
    Variant(
        "squeezed_cnn",
        "squeezed_cnn",
        paper_name="Squeezed CNN",
        note="A reconstruction: the layer table is not public; fitted to the printed size.",
    ),
    Variant("mobilenet", "mobilenet", {"width": 1.0}, _BOTH, note="The paper cites 76.7 % without a configuration."),
    Variant("mobilenet_05x", "mobilenet", {"width": 0.5}, _BOTH),
    Variant(
        "squeezenext_23_1x",
        "squeezenext",
        {"stages": [6, 6, 8, 1], "width": 1.0},
        _BOTH,
        "Baseline SqueezeNext-23-1x-v1",
    ),
    Variant(
        "squeezenext_23_2x",
        "squeezenext",
        {"stages": [6, 6, 8, 1], "width": 2.0},
        ("cifar10",),
        "Baseline SqueezeNext-23-2x-v1",
    ),
    Variant(
        "modified_squeezenext_23_1x",
        "modified_squeezenext",
        {"stages": [6, 6, 8, 1], "width": 1.0},
        ("cifar10",),
        "Modified SqueezeNext",
        note="Table 4 prints no configuration; the baseline's is assumed.",
    ),
    Variant(
        "shallow_06_04x",
        "shallow_squeezenext",
        {"stages": [1, 1, 1, 1], "width": 0.4},
        note="The nearest to the 272 kB that the authors publish elsewhere.",
    ),
    Variant(
        "shallow_06_05x",
        "shallow_squeezenext",
        {"stages": [1, 1, 1, 1], "width": 0.5},
        note="The same network as hps_06_05x, whose published figures it shares.",
    ),
    Variant("shallow_08_05x", "shallow_squeezenext", {"stages": [1, 2, 2, 1], "width": 0.5}),
    _hps("hps_06_04x", [1, 1, 1, 1], 0.4, "06-0.4x", "cifar100"),
    _hps("hps_06_05x", [1, 1, 1, 1], 0.5, "06-0.5x", "cifar10"),
    _hps("hps_06_0575x", [1, 1, 1, 1], 0.575, "06-0.575x", "cifar100"),
    _hps("hps_06_075x", [1, 1, 1, 1], 0.75, "06-0.75x", "cifar10"),
    _hps("hps_06_1x", [1, 1, 1, 1], 1.0, "06-1x", "cifar10"),
    _hps("hps_08_05x", [1, 2, 2, 1], 0.5, "08-0.5x", "cifar10"),
    _hps("hps_09_05x", [1, 1, 4, 1], 0.5, "09-0.5x", "cifar100"),
    _hps("hps_14_1x", [1, 2, 8, 1], 1.0, "14-1x", "cifar100"),
    _hps("hps_14_15x", [1, 2, 8, 1], 1.5, "14-1.5x", *_BOTH),
    _hps("hps_21_1x_v2", [2, 2, 14, 1], 1.0, "21-1x-v2", "cifar10"),
    _hps("hps_21_1x_v3", [2, 4, 12, 1], 1.0, "21-1x-v3", "cifar10"),
    Variant(
        "hps_23_1x",
        "hps",
        {"stages": [6, 6, 8, 1], "width": 1.0},
        note="As Table 5 composes it. Tables 2 and 3 print another configuration: hps_23_1x_table2.",
    ),
    _hps("hps_23_1x_table2", [2, 2, 16, 1], 1.0, "23-1x", *_BOTH, note="As Tables 2 and 3 configure it."),
    _hps("hps_25_1x", [2, 4, 16, 1], 1.0, "25-1x", "cifar100"),
)

ZOO: dict[str, Variant] = {variant.name: variant for variant in _VARIANTS}
"""Every named variant, by family."""


# Beside what a variant sets; not even the number of parameters tells networks apart that differ in these.
_COMPUTE = ("resolution", "activation")


def find_name(family: str | None, arguments: Mapping[str, Any]) -> str | None:
    """The name of the first variant with these arguments, or None where they make none.

    Args:
        family: a key of :data:`FAMILIES`.
        arguments: of the family's network, and any others. Those that change nothing of what a trained network
            computes (dropout, in-place activations) and the number of classes may be any.
    """
    for variant in ZOO.values():
        if variant.family == family and _is(variant, arguments):
            return variant.name
    return None


def describe(family: str, arguments: Mapping[str, Any]) -> str:
    """What a network is called in words: its name, "hps_14_1x with width 4" where that alone is another, or its family.

    Args:
        family: a key of :data:`FAMILIES`.
        arguments: as :func:`find_name` takes them.
    """
    name = find_name(family, arguments)
    if name is not None:
        return name
    # Of several, the one by whose channels widths are counted.
    near = [
        (abs(variant.arguments.get("width", 1) - 1), variant.name)
        for variant in ZOO.values()
        if variant.family == family and _differing(variant, arguments) == ["width"]
    ]
    return f"{min(near)[1]} with width {arguments['width']:g}" if near else family


def _is(variant: Variant, arguments: Mapping[str, Any]) -> bool:
    return not _differing(variant, arguments)


def _differing(variant: Variant, arguments: Mapping[str, Any]) -> list[str]:
    """Names of the arguments that are not the variant's."""
    parameters = inspect.signature(FAMILIES[variant.family]).parameters
    defaults = {name: parameters[name].default for name in _COMPUTE if name in parameters}
    return [
        *(name for name, value in variant.arguments.items() if arguments.get(name) != value),
        *(
            name
            for name, default in defaults.items()
            if name not in variant.arguments and arguments.get(name, default) != default
        ),
    ]


def find_variant(name: str) -> Variant:
    """The variant called ``name``.

    Raises:
        UserError: there is none; the message suggests near names.
    """
    if name in ZOO:
        return ZOO[name]
    raise UserError(no_network(name, ZOO))
