"""`hps models`: the zoo as a table, with the paper's figures beside ours."""

import csv
import json
import sys
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from hps_lightning import complexity, zoo
from hps_lightning.cli.parser import OneLineParser

_CLASSES = {"cifar10": 10, "cifar100": 100}


def model_rows(dataset: str | None = None) -> list[dict[str, Any]]:
    """One row for each variant and data set: what it is, what it costs, and what the paper prints.

    Args:
        dataset: "cifar10" or "cifar100", or None for both.

    Returns:
        Rows with the keys ``name``, ``dataset``, ``stages``, ``width``, ``parameters``,
        ``macs``, ``size_mb`` (the whole module as PyTorch before 1.6 saves it, decimal megabytes),
        ``paper_accuracy`` (percent), ``paper_size_mb``, ``paper_seconds_per_epoch``, ``note``.
    """
    rows = []
    for variant in zoo.ZOO.values():
        for name in variant.datasets:
            if dataset not in (None, name):
                continue
            network = variant.build(_CLASSES[name])
            published = variant.published(name)
            rows.append(
                {
                    "name": variant.name,
                    "dataset": name,
                    "stages": variant.arguments.get("stages"),
                    "width": variant.arguments.get("width"),
                    "parameters": complexity.count_parameters(network),
                    "macs": complexity.count_macs(network),
                    "size_mb": complexity.module_bytes(network) / 1e6,
                    "paper_accuracy": published and published.accuracy,
                    "paper_size_mb": published and published.size_mb,
                    "paper_seconds_per_epoch": published and published.seconds_per_epoch,
                    "note": variant.note,
                }
            )
    return rows


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Networks by name", caption=_CAPTION, caption_justify="left", pad_edge=False)
    for heading, justify in (
        ("name", "left"),
        ("data set", "left"),
        ("stages", "left"),
        ("width", "right"),
        ("parameters", "right"),
        ("MMACs", "right"),
        ("MB", "right"),
        ("paper %", "right"),
        ("paper MB", "right"),
        ("paper s/epoch", "right"),
    ):
        table.add_column(heading, justify=justify, no_wrap=heading != "paper s/epoch")
    for row in rows:
        table.add_row(
            row["name"] + ("*" if row["note"] else ""),
            row["dataset"],
            " ".join(map(str, row["stages"])) if row["stages"] else "-",
            f"{row['width']:g}" if row["width"] else "-",
            f"{row['parameters']:,}",
            f"{row['macs'] / 1e6:.2f}",
            f"{row['size_mb']:.3f}",
            *(
                f"{row[key]:g}" if row[key] is not None else "-"
                for key in ("paper_accuracy", "paper_size_mb", "paper_seconds_per_epoch")
            ),
        )
    return table


_CAPTION = (
    "MB: the whole module as PyTorch before 1.6 saves it, the convention of the paper's Tables 1, 2 and 4; its Table 3 "
    "(CIFAR-100) holds about twice that, with SGD's momentum. paper s/epoch: on the authors' GPU."
)


def run_models(argv: list[str]) -> int:
    """Runs `hps models` with the arguments that follow it; returns the exit status."""
    parser = OneLineParser(prog="hps models", description="Lists the networks that --model knows by name.")
    parser.add_argument("--dataset", choices=sorted(_CLASSES), help="only the networks published for this data set")
    parser.add_argument(
        "--format", choices=("table", "csv", "json"), default="table", help="how to print them (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    # Next to nothing is computed here; threads would only wait for each other.
    torch.set_num_threads(1)
    rows = model_rows(arguments.dataset)
    if arguments.format == "json":
        json.dump(rows, sys.stdout, indent=1)
        print()
    elif arguments.format == "csv":
        writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "stages": " ".join(map(str, row["stages"] or []))} for row in rows)
    else:
        # A pipe has no width; rich would cut the table to 80 columns.
        console = Console() if sys.stdout.isatty() else Console(width=140)
        console.print(_table(rows))
        for row in {row["name"]: row for row in rows if row["note"]}.values():
            console.print(f"* {row['name']}: {row['note']}", highlight=False)
    return 0
