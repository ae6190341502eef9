"""How figures, runs and tables are written, in Markdown."""

import html
import re
from collections.abc import Iterable, Sequence
from statistics import mean

from hps_lightning.report import plots
from hps_lightning.report.measured import Measured

NONE = "-"
"""Stands in a cell where there is no figure."""


def cell(text: object) -> str:
    """A text as a cell of a Markdown table: nothing in it is markup, and nothing ends the cell."""
    return re.sub(r"([|*_`\[\]\\])", r"\\\1", html.escape(str(text), quote=False)).replace("\n", " ")


def table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells that are Markdown already."""
    content = [headings, ["---"] * len(headings), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in content)


def short(model: str) -> str:
    """A network's printed name, short enough for tables and plots."""
    return model.replace("High Performance SqueezeNext", "HPS").replace("Baseline ", "").replace("Modified", "Mod.")


def named(run: Measured) -> str:
    """A run's network and data set, and its teacher where it had one."""
    taught = f" (distilled from `{run.teacher}`)" if run.teacher else ""
    return f"`{run.name}`{taught} on {plots.TITLES.get(run.dataset, run.dataset)}"


def accuracy(run: Measured) -> str:
    """The test accuracy of a run's first seed, in percent; :data:`NONE` if it was not tested."""
    if not run.accuracies:
        return NONE
    return f"{run.accuracies[0]:.2f} %"


def seeds(run: Measured) -> str:
    """How many seeds a run has, with mean and range of their accuracies."""
    if not run.seeds:
        return NONE
    if len(run.seeds) == 1:
        return "one seed, so no spread"
    return f"{len(run.seeds)} seeds: mean {spread(run.accuracies)}"


def spread(accuracies: Sequence[float]) -> str:
    """One accuracy in percent, or the mean and the range of several."""
    if len(accuracies) == 1:
        return f"{accuracies[0]:.2f} %"
    return f"{mean(accuracies):.2f} % ({min(accuracies):.2f} to {max(accuracies):.2f})"
