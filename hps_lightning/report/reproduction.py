"""The paper's Tables 1 to 4, row by row: what they print, what computation says, what we measured."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from hps_lightning import complexity, paper, zoo
from hps_lightning.data.catalog import DATASETS
from hps_lightning.report.measured import Measured

MODULE = "module"
MODULE_AND_MOMENTUM = "module + momentum"
CONVENTIONS = (MODULE, MODULE_AND_MOMENTUM)
"""What the paper's sizes may be of: see ``complexity.module_bytes`` and ``module_and_momentum_bytes``."""

TOLERANCE = 0.03
"""How far a computed size may be from the printed one, as a share of it, to explain it."""


@dataclass(frozen=True)
class Cost:
    """What a network costs: parameters, multiply-accumulates of one image, decimal megabytes by convention."""

    parameters: int
    macs: int
    size_mb: dict[str, float]


@dataclass(frozen=True)
class Row:
    """One row of Tables 1 to 4.

    Attributes:
        printed: the paper's own.
        variant: the network of the zoo that it is.
        cost: of that network.
        explained_by: the conventions under which the network has the printed size.
        other_fits: where none does, other networks of the same family and width that have it, each
            with the convention.
        ours: our training of the network on the row's data set, if there is one.
    """

    printed: paper.PaperResult
    variant: zoo.Variant
    cost: Cost
    explained_by: tuple[str, ...]
    other_fits: tuple[tuple[zoo.Variant, str], ...]
    ours: Measured | None


@dataclass(frozen=True)
class Disagreement:
    """A figure that the tables print differently for the same network and data set.

    Attributes:
        variant: the network.
        dataset: of the rows.
        quantity: "accuracy", "size_mb" or "seconds_per_epoch".
        printed: each (table, figure).
    """

    variant: zoo.Variant
    dataset: str
    quantity: str
    printed: tuple[tuple[str, float], ...]


def variant_of(row: paper.PaperResult) -> zoo.Variant:
    """The network that a row of Tables 1 to 4 is, whose name the tables write in several ways.

    Raises:
        LookupError: the zoo has none.
    """
    for variant in zoo.ZOO.values():
        if variant.paper_name == row.model:
            return variant
    key = _name_key(row.model)
    fitting = [
        variant
        for variant in zoo.ZOO.values()
        if key and variant.family == row.family and variant.paper_name and _name_key(variant.paper_name)[:2] == key[:2]
    ]
    # A version tells networks apart only where the tables list several of that depth and width.
    if len(fitting) > 1:
        fitting = [variant for variant in fitting if _name_key(variant.paper_name)[2] == key[2]]
    if len(fitting) != 1:
        raise LookupError(f"no network of the zoo is the paper's {row.model!r}")
    return fitting[0]


def _name_key(name: str) -> tuple[int, float, float] | None:
    # "06-0.50x", "06-0.5x-v1" and "06-0.5x" are one network, "21-1x-v2.0" and "21-1x-v2" too.
    found = re.search(r"-(\d\d)-([\d.]+)x(?:-v([\d.]+))?$", name)
    return (int(found[1]), float(found[2]), float(found[3] or 1)) if found else None


@cache
def cost(name: str, dataset: str) -> Cost:
    """What a network of the zoo costs with the classes of a data set.

    Args:
        name: as in the zoo.
        dataset: a key of ``data.catalog.DATASETS``.
    """
    network = zoo.find_variant(name).build(len(DATASETS[dataset].classes))
    return Cost(
        parameters=complexity.count_parameters(network),
        macs=complexity.count_macs(network),
        size_mb={
            MODULE: complexity.module_bytes(network) / 1e6,
            MODULE_AND_MOMENTUM: complexity.module_and_momentum_bytes(network) / 1e6,
        },
    )


def explaining(size_mb: float, computed: Cost) -> tuple[str, ...]:
    """The conventions under which a computed size is the printed one, within :data:`TOLERANCE`."""
    return tuple(name for name in CONVENTIONS if abs(computed.size_mb[name] - size_mb) <= TOLERANCE * size_mb)


def _other_fits(row: paper.PaperResult, variant: zoo.Variant) -> tuple[tuple[zoo.Variant, str], ...]:
    return tuple(
        (other, convention)
        for other in zoo.ZOO.values()
        if other is not variant
        and other.family == variant.family
        and other.arguments.get("width") == variant.arguments.get("width")
        for convention in explaining(row.size_mb, cost(other.name, row.dataset))
    )


def rows(measured: Sequence[Measured]) -> list[Row]:
    """Every row of Tables 1 to 4, in the paper's order.

    Args:
        measured: our trainings, named as in the zoo.
    """
    ours = {(training.name, training.dataset): training for training in measured}
    made = []
    for printed in paper.results():
        if printed.table == "text":
            continue
        variant = variant_of(printed)
        computed = cost(variant.name, printed.dataset)
        explained = explaining(printed.size_mb, computed)
        made.append(
            Row(
                printed=printed,
                variant=variant,
                cost=computed,
                explained_by=explained,
                other_fits=() if explained else _other_fits(printed, variant),
                ours=ours.get((variant.name, printed.dataset)),
            )
        )
    return made


def disagreements(table_rows: Sequence[Row]) -> list[Disagreement]:
    """The figures in which rows of the same network and data set differ from table to table."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in table_rows:
        groups.setdefault((row.variant.name, row.printed.dataset), []).append(row)
    return [
        Disagreement(
            variant=group[0].variant,
            dataset=dataset,
            quantity=quantity,
            printed=tuple((row.printed.table, getattr(row.printed, quantity)) for row in group),
        )
        for (_, dataset), group in groups.items()
        for quantity in ("accuracy", "size_mb", "seconds_per_epoch")
        if len({getattr(row.printed, quantity) for row in group}) > 1
    ]
