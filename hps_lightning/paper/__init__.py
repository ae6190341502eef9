"""What the paper prints: Duggal and El-Sharkawy, 2022, doi:10.25046/aj070308.

``results.csv`` holds Tables 1 to 4 and the accuracies that the text cites; ``table5.csv``
holds Table 5, with its errors, as printed; ``claims.csv`` the figures that its text derives from
them.
"""

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class PaperResult:
    """One printed row.

    Attributes:
        table: "1" to "4", or "text" for accuracies that the text cites.
        dataset: "cifar10" or "cifar100".
        model: the name as printed.
        family: the family of networks that the row belongs to, or "cited".
        width: the width multiplier, where the row gives one.
        stages: the four-stage configuration, which the tables call "Resol.".
        accuracy: in percent, on the test set.
        size_mb: in decimal megabytes.
        seconds_per_epoch: on the authors' GPU.
    """

    table: str
    dataset: str
    model: str
    family: str
    width: float | None
    stages: tuple[int, ...] | None
    accuracy: float
    size_mb: float | None
    seconds_per_epoch: float | None


@dataclass(frozen=True)
class PaperClaim:
    """One figure that the text derives from the tables.

    Attributes:
        section: where it stands.
        quote: the sentence, or the part of it, as printed.
        quantity: "accuracy", "size", "seconds", "networks", "size and accuracy", or "any" where it does not say.
        unit: "times", "points" (percentage points), "MB" (a difference), "range", "drop" (from CIFAR-10 to
            CIFAR-100, in points), "count", or "together" (that one network has both).
        claimed: the figure as printed; empty where a range has no lower end.
        second: the upper end of a range, or the accuracy that is claimed together with a size; else empty.
        network: the name in the tables of what is claimed to be better, or a family.
        baseline: the name, or the family, that it is compared with.
    """

    section: str
    quote: str
    quantity: str
    unit: str
    claimed: str
    second: str
    network: str
    baseline: str


def _rows(name: str) -> list[dict[str, str]]:
    with resources.files(__package__).joinpath(name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _number(text: str) -> float | None:
    return float(text) if text else None


@cache
def results() -> tuple[PaperResult, ...]:
    """Every row of Tables 1 to 4 and the cited accuracies, in the paper's order."""
    return tuple(
        PaperResult(
            table=row["table"],
            dataset=row["dataset"],
            model=row["model"],
            family=row["family"],
            width=_number(row["width"]),
            stages=tuple(int(blocks) for blocks in row["stages"].split()) or None,
            accuracy=float(row["accuracy_percent"]),
            size_mb=_number(row["size_mb"]),
            seconds_per_epoch=_number(row["seconds_per_epoch"]),
        )
        for row in _rows("results.csv")
    )


@cache
def table5() -> tuple[dict[str, str], ...]:
    """The rows of Table 5 as printed: a mapping from column to text for each layer."""
    return tuple(_rows("table5.csv"))


@cache
def claims() -> tuple[PaperClaim, ...]:
    """What the text claims of the tables, the conclusion first."""
    return tuple(PaperClaim(**row) for row in _rows("claims.csv"))
