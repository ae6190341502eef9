"""The report: one page, as Markdown and as HTML that needs no other file, with its plots beside it."""

import base64
import math
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import markdown

from hps_lightning import __version__, paper
from hps_lightning.bluebox.staging import staged_directory, write_file
from hps_lightning.errors import UserError
from hps_lightning.report import parts, plots
from hps_lightning.report.curves import Run
from hps_lightning.report.measured import published, trainings
from hps_lightning.report.paper_tables import (
    TABLES,
    disagreement_table,
    paper_table,
    reproduced,
    size_counts,
    tables_csv,
)
from hps_lightning.report.points import size_groups, times
from hps_lightning.report.public import public_networks
from hps_lightning.report.reproduction import TOLERANCE, disagreements, rows
from hps_lightning.report.studies import EXPLORATIONS, explorations, kept_memory, optimizer_studies
from hps_lightning.report.wording import cell, named, table

MARKDOWN_FILE = "report.md"
HTML_FILE = "report.html"
TABLES_FILE = "tables.csv"
_DATASETS = ("cifar10", "cifar100")
"""Those of the paper."""


def plot_names(results: Path | None) -> list[str]:
    """The names that plots may have, without suffix, of a report on the given results."""
    studies = [
        path.name.removesuffix(".json")
        for pattern in ("optimizers-*.json", EXPLORATIONS)
        for path in (sorted(results.glob(pattern)) if results else ())
    ]
    return ["time", *(f"{kind}-{dataset}" for kind in ("size", "curves") for dataset in plots.TITLES), *studies]


def _curve_pictures(curves: Sequence[tuple[Run, str]]) -> dict[str, list[tuple[Run, str]]]:
    """The trainings in each picture of curves, by its name: of one data set, as many as can be told apart."""
    pictures: dict[str, list[tuple[Run, str]]] = {}
    for dataset in dict.fromkeys(run.dataset for run, _ in curves):
        of_dataset = [(run, title) for run, title in curves if run.dataset == dataset]
        needed = math.ceil(len(of_dataset) / plots.MOST_RUNS)
        share = math.ceil(len(of_dataset) / needed)
        for index in range(needed):
            name = f"curves-{dataset}" + (f"-{index + 1}" if index else "")
            pictures[name] = of_dataset[index * share : (index + 1) * share]
    return pictures


def _earlier_names(output: Path) -> set[str]:
    """The names of pictures in an earlier report that the results at hand need not give again."""
    if not (output / MARKDOWN_FILE).is_file():
        return set()
    patterns = (f"{kind}-*{suffix}" for kind in ("curves", "optimizers", "exploration") for suffix in plots.FORMATS)
    return {path.name for pattern in patterns for path in output.glob(pattern)}


def write_report(output: Path, checkpoints: Path, results: Path | None, curves: Sequence[tuple[Run, str]]) -> list[str]:
    """Makes the report and puts it in the place of an earlier one, whole or not at all.

    Args:
        output: the folder to write.
        checkpoints: that of the published networks.
        results: that of the benchmarks' results; None without any.
        curves: trainings with their titles; each data set among them has pictures of its own.

    Returns:
        The names of the files that were written.

    Raises:
        UserError: a result cannot be read, or ``output`` cannot be written or holds something else.
    """
    names = {MARKDOWN_FILE, HTML_FILE, TABLES_FILE}
    names |= {name + suffix for name in plot_names(results) for suffix in plots.FORMATS}
    names |= {name + suffix for name in _curve_pictures(curves) for suffix in plots.FORMATS}
    names |= _earlier_names(output)
    unknown = {run.dataset for run, _ in curves} - set(plots.TITLES)
    if unknown:
        raise UserError(f"No data set is called {min(unknown)!r}; runs are of {', '.join(plots.TITLES)}.")
    # What else lies there is refused before the work begins.
    with staged_directory(output, names, "a report") as folder:
        content, figures = _content(checkpoints, results, curves)
        for name, figure in figures.items():
            for suffix in plots.FORMATS:
                plots.write_figure(figure, folder / (name + suffix))
        text = _markdown(content)
        write_file(folder / MARKDOWN_FILE, text.encode())
        write_file(folder / HTML_FILE, _html(text, folder).encode())
        write_file(folder / TABLES_FILE, tables_csv(content["rows"]).encode())
        return sorted(path.name for path in folder.iterdir())


def _content(
    checkpoints: Path, results: Path | None, curves: Sequence[tuple[Run, str]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the template is filled with, and the figures by name."""
    ours = published(checkpoints)
    others = trainings(results) if results else []
    tested = [*ours, *(run for run in others if run.accuracies)]
    table_rows = rows(ours)
    figures: dict[str, Any] = {}
    size_plots, curve_plots = [], []
    for dataset in _DATASETS:
        title = plots.TITLES[dataset]
        name = f"size-{dataset}"
        figures[name] = plots.size_figure(size_groups(table_rows, tested, dataset), dataset)
        size_plots.append({"file": f"{name}.png", "alt": f"Accuracy against size on {title}: paper, ours, public"})
    for name, drawn in _curve_pictures(curves).items():
        figures[name] = plots.curves_figure(*(list(column) for column in zip(*drawn, strict=True)))
        alt = f"Training and validation accuracy by epoch on {plots.TITLES[drawn[0][0].dataset]}"
        curve_plots.append({"file": f"{name}.png", "alt": alt, "words": parts.curve_words(drawn)})
    optimizers = [parts.optimizers(study, figures) for study in (optimizer_studies(results) if results else [])]
    explored = [parts.explored(study, figures) for study in (explorations(results) if results else [])]
    time_groups, time_rows = times(table_rows, ours, others, results)
    figures["time"] = plots.time_figure(time_groups)
    content = {
        "version": __version__,
        "tolerance": f"{100 * TOLERANCE:g}",
        "rows": table_rows,
        "sizes": size_counts(table_rows),
        "ours": reproduced(table_rows),
        "copy_note": parts.copy_note(checkpoints),
        "tables": [paper_table(number, table_rows) for number in TABLES],
        "disagreements": disagreements(table_rows),
        "disagreement_table": disagreement_table(table_rows),
        "size_plots": size_plots,
        "time_plot": {"file": "time.png", "alt": "Seconds per epoch against parameters, a group a kind of machine"},
        "time_table": time_rows,
        "curves": curve_plots,
        "optimizers": optimizers,
        "memory": [parts.memory(study) for study in (kept_memory(results) if results else [])],
        "explorations": explored,
        "table5": parts.table5_part(),
        "claims": parts.claims_part(),
        "cited_table": table(
            ("system", "accuracy (%)"),
            [(cell(row.model), f"{row.accuracy:.2f}") for row in paper.results() if row.table == "text"],
        ),
        "runs_table": parts.runs_table(ours, others),
        "published_commands": [f"{named(run)}: `{run.command}`" for run in ours],
        "times_to_accuracy": parts.times_to_accuracy_lines(results),
        "public_table": parts.public_table(),
        "public_count": len(public_networks()),
        "best_epochs": sum("by test accuracy" in network.protocol for network in public_networks()),
    }
    return content, figures


def _markdown(content: dict[str, Any]) -> str:
    # Cells and names are escaped where they are made: see `cell`.
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    template = resources.files(__package__).joinpath("report.md.j2").read_text(encoding="utf-8")
    return re.sub(r"\n{3,}", "\n\n", environment.from_string(template).render(content))


def _html(text: str, folder: Path) -> str:
    """The page as HTML, with the plots in it."""
    converter = markdown.Markdown(extensions=["tables", "toc", "fenced_code", "sane_lists"], output_format="html")
    body = converter.convert(text)

    def inlined(match: re.Match[str]) -> str:
        # Sharp at every size, and smaller than the pixels.
        picture = (folder / match[1]).with_suffix(".svg").read_bytes()
        return f'src="data:image/svg+xml;base64,{base64.b64encode(picture).decode()}"'

    # A line does not end between a figure and its sign, nor within a name or a figure of a table.
    body = body.replace(" %", "&nbsp;%")
    body = re.sub(r"<td>([^<]{1,9})</td>", r'<td class="short">\1</td>', body)
    body = re.sub(r'src="([\w.-]+\.png)"', inlined, body)
    # A wide table scrolls by itself, also by keyboard, and not the whole page.
    body = re.sub(r"<p>(<img[^>]*>)</p>", r'<div class="figure" tabindex="0">\1</div>', body)
    body = body.replace("<table>", '<div class="scroll" tabindex="0"><table>').replace("</table>", "</table></div>")
    (title,) = converter.toc_tokens
    links = "".join(f'<li><a href="#{entry["id"]}">{entry["name"]}</a></li>' for entry in title["children"])
    head, rest = body.split("</h1>", 1)
    style = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title['name']}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"{head}</h1>\n<nav><ul>{links}</ul></nav>\n{rest}\n</body>\n</html>\n"
    )
