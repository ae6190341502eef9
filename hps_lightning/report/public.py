"""Small networks from elsewhere, with the accuracies that their sources publish."""

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class PublicNetwork:
    """One network of ``public_networks.csv``.

    Attributes:
        name: of the network.
        publisher: who trained it.
        dataset: "cifar10" or "cifar100".
        parameters: rounded as the source rounds them.
        accuracy: in percent, on the test images.
        protocol: how the source chose what it reports.
        source: who says so, and where.
        url: of the source.
    """

    name: str
    publisher: str
    dataset: str
    parameters: int
    accuracy: float
    protocol: str
    source: str
    url: str


@cache
def public_networks() -> tuple[PublicNetwork, ...]:
    """Every row, in the file's order."""
    with resources.files(__package__).joinpath("public_networks.csv").open(encoding="utf-8", newline="") as file:
        return tuple(
            PublicNetwork(
                name=row["name"],
                publisher=row["publisher"],
                dataset=row["dataset"],
                parameters=round(float(row["parameters_millions"]) * 1e6),
                accuracy=float(row["accuracy_percent"]),
                protocol=row["protocol"],
                source=row["source"],
                url=row["url"],
            )
            for row in csv.DictReader(file)
        )
