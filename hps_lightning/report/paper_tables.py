"""The rows of `reproduction` as tables, in Markdown and CSV."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from hps_lightning.report import plots
from hps_lightning.report.measured import Measured
from hps_lightning.report.reproduction import CONVENTIONS, MODULE, MODULE_AND_MOMENTUM, Row, cost, disagreements
from hps_lightning.report.wording import NONE, accuracy, cell, named, seeds, short, table
from hps_lightning.zoo import Variant

TABLES = {
    "1": ("accuracy improvement (CIFAR-10)", "Printed without configurations; they are taken from the names."),
    "2": ("speed and size improvement for CIFAR-10", "Each printed row is said to be the mean of three runs."),
    "3": ("speed and size improvement for CIFAR-100", "Each printed row is said to be the mean of three runs."),
    "4": ("deployment results on Bluebox 2.0", "The text calls its seconds those of an epoch; a deployment has none."),
}
_QUANTITIES = {"accuracy": "accuracy (%)", "size_mb": "size (MB)", "seconds_per_epoch": "seconds per epoch"}


def paper_table(number: str, table_rows: Sequence[Row]) -> dict[str, Any]:
    """What the template gets for the paper's table of that number."""
    of_table = [row for row in table_rows if row.printed.table == number]
    # Tables 1 and 4 print no configurations.
    stages = any(row.printed.stages for row in of_table)
    headings = [
        *("network", *(["stages"] if stages else [])),
        *("printed accuracy (%)", "printed size (MB)", "printed s/epoch", "parameters", "MMACs"),
        *(f"{name} (MB)" for name in CONVENTIONS),
        *("printed size explained by", "our accuracy", "our protocol, epochs, seeds", "our s/epoch"),
    ]
    lines = [
        [
            f"{cell(short(row.printed.model))} `{row.variant.name}`",
            *([" ".join(map(str, row.printed.stages or ())) or NONE] if stages else []),
            f"{row.printed.accuracy:.2f}",
            f"{row.printed.size_mb:g}",
            f"{row.printed.seconds_per_epoch:g}",
            f"{row.cost.parameters:,}",
            f"{row.cost.macs / 1e6:.2f}",
            *(f"{row.cost.size_mb[name]:.3f}" for name in CONVENTIONS),
            _explained(row),
            *_our_cells(row.ours),
        ]
        for row in of_table
    ]
    notes = [
        f"{cell(short(row.printed.model))}, printed {row.printed.size_mb:g} MB: the {convention} of `{other.name}`"
        f"{_stages(other)} "
        f"has {cost(other.name, row.printed.dataset).size_mb[convention]:.3f} MB."
        for row in of_table
        for other, convention in row.other_fits
    ]
    remarks = {f"`{row.variant.name}`: {row.variant.note}" for row in of_table if row.variant.note}
    title, text = TABLES[number]
    return {
        "number": number,
        "title": title,
        "text": "\n\n".join([text, table(headings, lines), *sorted(remarks)]),
        "notes": notes,
    }


def _stages(variant: Variant) -> str:
    stages = variant.arguments.get("stages")
    return f" (stages {' '.join(map(str, stages))})" if stages else ""


def _our_cells(ours: Measured | None) -> list[str]:
    if ours is None:
        return ["no run of ours", NONE, NONE]
    how = f"{cell(ours.how)}, {ours.epochs} epochs, {seeds(ours)}"
    return [accuracy(ours), how, f"{ours.epoch_seconds:.1f} ({cell(ours.hardware)})"]


def _explained(row: Row) -> str:
    return row.explained_by[0] if row.explained_by else "none"


def size_counts(table_rows: Sequence[Row]) -> dict[str, int]:
    """How many rows' printed sizes each convention explains."""

    def count(*explained: str) -> int:
        return sum(row.explained_by == explained for row in table_rows)

    return {
        "rows": len(table_rows),
        "module": count(MODULE),
        "momentum": count(MODULE_AND_MOMENTUM),
        "none": count(),
        "other": sum(bool(row.other_fits) for row in table_rows),
    }


def reproduced(table_rows: Sequence[Row]) -> dict[str, Any]:
    """The rows that a published network of ours stands beside, and what those networks reach."""
    with_run = [row for row in table_rows if row.ours]
    # A network that several tables print is told once.
    networks = {row.ours.source: (row.ours, row.printed.accuracy) for row in with_run}
    return {
        "rows": len(with_run),
        "networks": [
            # The paper's figures are means of three trainings.
            f"{named(ours)} {accuracy(ours)}{f' ({seeds(ours)})' * (len(ours.seeds) > 1)}, where the paper prints "
            f"{printed:.2f} %"
            for ours, printed in networks.values()
        ],
    }


def disagreement_table(table_rows: Sequence[Row]) -> str:
    """What the paper prints differently in different tables, as a Markdown table."""
    return table(
        ("network", "data set", "figure", "printed"),
        [
            (
                f"`{found.variant.name}`",
                plots.TITLES[found.dataset],
                _QUANTITIES[found.quantity],
                ", ".join(f"{figure:g} (Table {number})" for number, figure in found.printed),
            )
            for found in disagreements(table_rows)
        ],
    )


def tables_csv(table_rows: Sequence[Row]) -> str:
    """Tables 1 to 4 as data; sizes in decimal megabytes, accuracies in percent."""
    lines = [
        {
            "table": row.printed.table,
            "dataset": row.printed.dataset,
            "network": row.printed.model,
            "zoo_name": row.variant.name,
            "printed_accuracy": row.printed.accuracy,
            "printed_size_mb": row.printed.size_mb,
            "printed_seconds_per_epoch": row.printed.seconds_per_epoch,
            "parameters": row.cost.parameters,
            "macs": row.cost.macs,
            "module_mb": row.cost.size_mb[MODULE],
            "module_and_momentum_mb": row.cost.size_mb[MODULE_AND_MOMENTUM],
            "explained_by": _explained(row),
            "our_accuracy": row.ours.accuracies[0] if row.ours else "",
            "our_accuracies": " ".join(f"{value:.2f}" for value in row.ours.accuracies) if row.ours else "",
            "our_protocol": row.ours.protocol if row.ours else "",
            "our_teacher": row.ours.teacher if row.ours else "",
            "our_epochs": row.ours.epochs if row.ours else "",
            "our_seconds_per_epoch": row.ours.epoch_seconds if row.ours else "",
            "our_hardware": row.ours.hardware if row.ours else "",
        }
        for row in table_rows
    ]
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()
