"""The report: one page, as Markdown and as HTML that needs no other file, with its plots beside it."""

import base64
import csv
import html
import io
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from statistics import mean
from typing import Any

import jinja2
import markdown

from hps_lightning import __version__, paper
from hps_lightning.bluebox.staging import staged_directory, write_file
from hps_lightning.errors import UserError
from hps_lightning.explore.front import front_markdown, front_of
from hps_lightning.explore.plot import study_figure
from hps_lightning.explore.quantities import write_limits
from hps_lightning.report import claims as claims_
from hps_lightning.report import plots, table5
from hps_lightning.report.curves import Run
from hps_lightning.report.measured import Measured, published, times_to_accuracy, train_speeds, trainings
from hps_lightning.report.public import public_networks
from hps_lightning.report.reproduction import (
    CLASSES,
    CONVENTIONS,
    MODULE,
    MODULE_AND_MOMENTUM,
    TOLERANCE,
    Row,
    cost,
    disagreements,
    rows,
)
from hps_lightning.report.studies import (
    EXPLORATIONS,
    SUGGESTED,
    Exploration,
    KeptMemory,
    OptimizerStudy,
    Trained,
    explorations,
    kept_memory,
    optimizer_studies,
)
from hps_lightning.zoo import Variant

MARKDOWN_FILE = "report.md"
HTML_FILE = "report.html"
TABLES_FILE = "tables.csv"

_TABLES = {
    "1": ("accuracy improvement (CIFAR-10)", "Printed without configurations; they are taken from the names."),
    "2": ("speed and size improvement for CIFAR-10", "Each printed row is said to be the mean of three runs."),
    "3": ("speed and size improvement for CIFAR-100", "Each printed row is said to be the mean of three runs."),
    "4": ("deployment results on Bluebox 2.0", "The text calls its seconds those of an epoch; a deployment has none."),
}
_QUANTITIES = {"accuracy": "accuracy (%)", "size_mb": "size (MB)", "seconds_per_epoch": "seconds per epoch"}
_NONE = "-"


def plot_names(results: Path | None) -> list[str]:
    """The names that plots may have, without suffix, of a report on the given results."""
    studies = [
        path.name.removesuffix(".json")
        for pattern in ("optimizers-*.json", EXPLORATIONS)
        for path in (sorted(results.glob(pattern)) if results else ())
    ]
    return ["time", *(f"{kind}-{dataset}" for kind in ("size", "curves") for dataset in plots.TITLES), *studies]


def write_report(output: Path, checkpoints: Path, results: Path | None, curves: Sequence[tuple[Run, str]]) -> list[str]:
    """Makes the report and puts it in the place of an earlier one, whole or not at all.

    Args:
        output: the folder to write.
        checkpoints: that of the published networks.
        results: that of the benchmarks' results; None without any.
        curves: trainings with their titles; a picture is drawn for each data set among them.

    Returns:
        The names of the files that were written.

    Raises:
        UserError: a result cannot be read, trainings are not comparable, or ``output`` cannot be
            written or holds something else.
    """
    names = {MARKDOWN_FILE, HTML_FILE, TABLES_FILE}
    names |= {name + suffix for name in plot_names(results) for suffix in plots.FORMATS}
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
        write_file(folder / TABLES_FILE, _tables_csv(content["rows"]).encode())
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
    for dataset in CLASSES:
        title = plots.TITLES[dataset]
        name = f"size-{dataset}"
        figures[name] = plots.size_figure(_size_groups(table_rows, tested, dataset), dataset)
        size_plots.append({"file": f"{name}.png", "alt": f"Accuracy against size on {title}: paper, ours, public"})
    for dataset in dict.fromkeys(run.dataset for run, _ in curves):
        of_dataset = [(run, title) for run, title in curves if run.dataset == dataset]
        name = f"curves-{dataset}"
        figures[name] = plots.curves_figure(*(list(column) for column in zip(*of_dataset, strict=True)))
        alt = f"Training and validation accuracy by epoch on {plots.TITLES[dataset]}"
        curve_plots.append({"file": f"{name}.png", "alt": alt, "words": _curve_words(of_dataset)})
    optimizers = [_optimizers(study, figures) for study in (optimizer_studies(results) if results else [])]
    explored = [_explored(study, figures) for study in (explorations(results) if results else [])]
    time_groups, time_rows = _times(table_rows, ours, others, results)
    figures["time"] = plots.time_figure(time_groups)
    content = {
        "version": __version__,
        "tolerance": f"{100 * TOLERANCE:g}",
        "rows": table_rows,
        "sizes": _size_counts(table_rows),
        "ours": _ours(table_rows),
        "copy_note": copy_note(checkpoints),
        "tables": [_paper_table(number, table_rows) for number in _TABLES],
        "disagreements": disagreements(table_rows),
        "disagreement_table": _disagreement_table(table_rows),
        "size_plots": size_plots,
        "time_plot": {"file": "time.png", "alt": "Seconds per epoch against parameters, a group for each machine"},
        "time_table": time_rows,
        "curves": curve_plots,
        "optimizers": optimizers,
        "memory": [_memory(study) for study in (kept_memory(results) if results else [])],
        "explorations": explored,
        "table5": _table5(),
        "claims": _claims(),
        "cited_table": table(
            ("system", "accuracy (%)"),
            [(cell(row.model), f"{row.accuracy:.2f}") for row in paper.results() if row.table == "text"],
        ),
        "runs_table": _runs_table(ours, others),
        "published_commands": [f"{_named(run)}: `{run.command}`" for run in ours],
        "times_to_accuracy": _times_to_accuracy(results),
        "public_table": _public_table(),
        "public_count": len(public_networks()),
        "best_epochs": sum("by test accuracy" in network.protocol for network in public_networks()),
    }
    return content, figures


def cell(text: object) -> str:
    """A text as a cell of a Markdown table: nothing in it is markup, and nothing ends the cell."""
    return re.sub(r"([|*_`\[\]\\])", r"\\\1", html.escape(str(text), quote=False)).replace("\n", " ")


def table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells that are Markdown already."""
    content = [headings, ["---"] * len(headings), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in content)


def _named(run: Measured) -> str:
    return f"`{run.name}` on {plots.TITLES.get(run.dataset, run.dataset)}"


def _size_counts(table_rows: Sequence[Row]) -> dict[str, int]:
    def count(*explained: str) -> int:
        return sum(row.explained_by == explained for row in table_rows)

    return {
        "rows": len(table_rows),
        "module": count(MODULE),
        "momentum": count(MODULE_AND_MOMENTUM),
        "none": count(),
        "other": sum(bool(row.other_fits) for row in table_rows),
    }


def _ours(table_rows: Sequence[Row]) -> dict[str, Any]:
    with_run = [row for row in table_rows if row.ours]
    # A network that several tables print is told once.
    networks = {row.ours.source: (row.ours, row.printed.accuracy) for row in with_run}
    return {
        "rows": len(with_run),
        "networks": [
            f"{_named(ours)} {_accuracy(ours)}, where the paper prints {printed:.2f} %"
            for ours, printed in networks.values()
        ],
    }


def _accuracy(run: Measured) -> str:
    if not run.accuracies:
        return _NONE
    return f"{run.accuracies[0]:.2f} %"


def _seeds(run: Measured) -> str:
    if not run.seeds:
        return _NONE
    if len(run.seeds) == 1:
        return "one seed, so no spread"
    low, high = min(run.accuracies), max(run.accuracies)
    return f"{len(run.seeds)} seeds: mean {mean(run.accuracies):.2f} % ({low:.2f} to {high:.2f})"


def copy_note(checkpoints: Path) -> str:
    """The paragraph of the published networks' README that tells of the copy of the data; empty if there is none."""
    try:
        text = (checkpoints / "README.md").read_text(encoding="utf-8")
    except OSError:
        return ""
    paragraph = next((part for part in text.split("\n\n") if "JPEG" in part), "")
    return "**On the data.** " + " ".join(paragraph.split()) if paragraph else ""


def _explained(row: Row) -> str:
    return row.explained_by[0] if row.explained_by else "none"


def _paper_table(number: str, table_rows: Sequence[Row]) -> dict[str, Any]:
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
            f"{cell(_short(row.printed.model))} `{row.variant.name}`",
            *([" ".join(map(str, row.printed.stages or ())) or _NONE] if stages else []),
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
        f"{cell(_short(row.printed.model))}, printed {row.printed.size_mb:g} MB: the {convention} of `{other.name}`"
        f"{_stages(other)} "
        f"has {cost(other.name, row.printed.dataset).size_mb[convention]:.3f} MB."
        for row in of_table
        for other, convention in row.other_fits
    ]
    remarks = {f"`{row.variant.name}`: {row.variant.note}" for row in of_table if row.variant.note}
    title, text = _TABLES[number]
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
        return ["no run of ours", _NONE, _NONE]
    how = f"{cell(ours.protocol)}, {ours.epochs} epochs, {_seeds(ours)}"
    return [_accuracy(ours), how, f"{ours.epoch_seconds:.1f} ({cell(ours.hardware)})"]


def _disagreement_table(table_rows: Sequence[Row]) -> str:
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


def _short(model: str) -> str:
    return model.replace("High Performance SqueezeNext", "HPS").replace("Baseline ", "").replace("Modified", "Mod.")


def _distinct(table_rows: Sequence[Row], dataset: str) -> list[Row]:
    """The rows of a data set, each network once: from Tables 2 and 3, which print configurations, if it is there."""
    order = sorted(table_rows, key=lambda row: row.printed.table not in "23")
    kept = {row.variant.name: row for row in reversed(order) if row.printed.dataset == dataset}
    return [row for row in table_rows if kept.get(row.variant.name) is row]


def _size_groups(table_rows: Sequence[Row], ours: Sequence[Measured], dataset: str) -> list[plots.Group]:
    printed = [
        plots.Point(
            _short(row.printed.model),
            row.printed.size_mb,
            row.printed.accuracy,
            None if MODULE in row.explained_by else row.cost.size_mb[MODULE],
        )
        for row in _distinct(table_rows, dataset)
    ]
    measured = [
        plots.Point(f"ours: {run.name}", run.size_mb, run.accuracies[0]) for run in ours if run.dataset == dataset
    ]
    groups = [plots.Group("the paper, printed size; a line leads to the computed size", printed, plots.VERMILLION, "s")]
    if measured:
        groups.append(plots.Group("ours", measured, plots.BLUE, "*"))
    public: dict[str, list[plots.Point]] = {}
    for network in public_networks():
        if network.dataset == dataset:
            point = plots.Point(network.name, 4 * network.parameters / 1e6, network.accuracy)
            public.setdefault(network.publisher, []).append(point)
    markers = dict(zip(dict.fromkeys(network.publisher for network in public_networks()), "o^Dvph", strict=False))
    for publisher, points in public.items():
        groups.append(plots.Group(f"public: {publisher}", points, "#666666", markers[publisher], filled=False))
    return groups


def _times(
    table_rows: Sequence[Row], ours: Sequence[Measured], others: Sequence[Measured], results: Path | None
) -> tuple[list[plots.Group], str]:
    groups, lines = [], []
    # What a row prints for CIFAR-100 is the same network with a larger classifier.
    for dataset, colour, marker in (("cifar10", plots.VERMILLION, "s"), ("cifar100", plots.ORANGE, "D")):
        points = [
            plots.Point(_short(row.printed.model), row.cost.parameters, row.printed.seconds_per_epoch)
            for row in _distinct(table_rows, dataset)
        ]
        groups.append(plots.Group(f"the paper, {plots.TITLES[dataset]}, its authors' GPU", points, colour, marker))
    by_machine: dict[str, list[plots.Point]] = {}
    for run in [*ours, *others]:
        by_machine.setdefault(run.hardware, []).append(plots.Point(run.name, run.parameters, run.epoch_seconds))
        kind = "training and validation" if run.validation is not None else "training"
        lines.append((cell(run.name), f"{run.epoch_seconds:.1f}", kind, cell(run.hardware), f"`{run.source}`"))
    for speed in train_speeds(results) if results else []:
        parameters = cost(speed.name, speed.dataset).parameters
        point = plots.Point(f"{speed.name}, by its speed", parameters, speed.epoch_seconds)
        by_machine.setdefault(speed.hardware, []).append(point)
        loop = f"the usual loop here: {speed.reference_seconds:.1f} s"
        lines.append(
            (
                cell(speed.name),
                f"{speed.epoch_seconds:.1f}",
                f"training, by its images a second ({loop})",
                cell(speed.hardware),
                f"`{speed.source}`",
            )
        )
    styles = ((plots.BLUE, "o"), (plots.GREEN, "^"), (plots.PURPLE, "v"), (plots.SKY, "P"), (plots.BLACK, "X"))
    for index, (machine, points) in enumerate(by_machine.items()):
        colour, marker = styles[index % len(styles)]
        groups.append(plots.Group(f"ours, {machine}", points, colour, marker))
    if not lines:
        return groups, "No times of ours are recorded in the results that this page was made from."
    return groups, table(("run", "seconds per epoch", "of", "machine", "file"), lines)


def _curve_words(curves: Sequence[tuple[Run, str]]) -> str:
    parts = []
    for run, title in curves:
        ends = []
        for stage, words in (("train", "training"), ("val", "validation")):
            values = run.series.get(f"{stage}/accuracy", {})
            if values:
                ends.append(f"{words} {100 * values[max(values)]:.2f} % after epoch {max(values)}")
        seed = f", seed {cell(run.seed)}" if run.seed else ""
        parts.append(f"{cell(title)} (protocol {cell(run.protocol)}{seed}): {', '.join(ends)}.")
    words = "Training accuracy is measured on augmented images while the weights change: it may lie below validation."
    return " ".join([*parts, words])


def _optimizers(study: OptimizerStudy, figures: dict[str, Any]) -> dict[str, Any]:
    name = study.source.removesuffix(".json")
    if study.trained:
        figures[name] = plots.optimizers_figure(study.trained)
    count = len({trained.optimizer for trained in study.trained})
    return {
        "network": study.network,
        "epochs": study.epochs,
        "file": f"{name}.png" if study.trained else None,
        "alt": f"Accuracy of {study.network} with {count} optimizers under each schedule",
        "finding": _optimizers_finding(study),
        # Headings of its own would stand among the page's.
        "tables": study.tables.strip(),
        "hardware": cell(study.hardware),
        "source": study.source,
    }


def _optimizers_finding(study: OptimizerStudy) -> str:
    """What did best, what comes next by another optimizer, and where the paper's own choice stands."""
    ranks = sorted(study.trained, key=lambda trained: trained.accuracy, reverse=True)
    if not ranks:
        return ""

    def told(trained: Trained) -> str:
        seeds = f", mean of {len(trained.accuracies)} seeds" if len(trained.accuracies) > 1 else ""
        return (
            f"{cell(trained.optimizer)} with rate {trained.rate:g} under {cell(trained.schedule)} "
            f"({trained.accuracy:.2f} %{seeds})"
        )

    words = f"Best: {told(ranks[0])}"
    others = [trained for trained in ranks if trained.optimizer != ranks[0].optimizer]
    words += f"; of the other optimizers: {told(others[0])}." if others else "."
    suggested = [trained for trained in ranks if (trained.optimizer, trained.schedule) == SUGGESTED]
    if suggested:
        words += (
            f" The paper suggests SGD with Nesterov momentum (section 8) and decays its rate in steps (section 7.1.2): "
            f"{told(suggested[0])}, place {ranks.index(suggested[0]) + 1} of {len(ranks)}."
        )
    return words


def _memory(study: KeptMemory) -> dict[str, Any]:
    lines = [
        (
            cell(kept["activation"]),
            "in place" if kept["inplace"] else "not in place",
            cell(kept["dtype"]),
            cell(kept["kernels"]),
            f"{kept['bytes'] / 1e6:.1f}",
        )
        for kept in study.kept
    ]
    return {
        "network": study.network,
        "batch_size": study.batch_size,
        "table": table(("activation", "computed", "precision", "kernels", "kept (MB)"), lines),
        "source": study.source,
    }


def _explored(study: Exploration, figures: dict[str, Any]) -> dict[str, Any]:
    front = front_of(study.rows, study.objectives)
    trained = sum(row.state in ("done", "stopped early") for row in study.rows)
    figures[study.source] = study_figure(study.rows, study.objectives, study.limits, f"{study.name}: {trained} trained")
    states = {state: sum(row.state == state for row in study.rows) for state in sorted({r.state for r in study.rows})}
    return {
        "name": cell(study.name),
        "objectives": ", ".join(study.objectives),
        "limits": write_limits(study.limits),
        "trials": len(study.rows),
        "states": ", ".join(f"{count} {state}" for state, count in states.items()),
        "front": front_markdown(front, study.objectives, study.limits).strip(),
        "file": f"{study.source}.png",
        "alt": f"Trials of the exploration {cell(study.name)}, the Pareto front brought out",
        "source": study.source,
    }


def _table5() -> dict[str, Any]:
    found = table5.composition()

    def marked(row: table5.LayerRow, columns: Sequence[str]) -> str:
        printed = [row.printed[column] for column in columns]
        if all(figure is None for figure in printed):
            return _NONE
        text = " x ".join(f"{figure:,}" for figure in printed)
        if not any(row.error(column) for column in columns):
            return text
        return f"**{text} → {' x '.join(f'{row.computed[column]:,}' for column in columns)}**"

    lines = [
        (
            cell(row.layer),
            marked(row, ("in_w", "in_h", "in_c")),
            marked(row, ("pad_w", "pad_h")),
            marked(row, ("stride",)),
            marked(row, ("kernel_w", "kernel_h")),
            marked(row, ("out_w", "out_h", "out_c")),
            marked(row, ("parameters",)),
            f"{row.repeat}",
        )
        for row in found.rows
    ]
    headings = ("layer", "input", "padding", "stride", "kernel", "output", "parameters", "layers")
    return {
        "network": table5.NETWORK,
        "table": table(headings, lines),
        "rows": len(found.rows),
        "wrong_rows": sum(bool(row.errors) for row in found.rows),
        "errors": sum(len(row.errors) for row in found.rows),
        "reasons": [_reasons(row) for row in found.rows if row.errors],
        **{
            name: f"{getattr(found, name):,}"
            for name in (
                *("printed_parameters", "network_parameters", "shortcuts", "shortcut_parameters"),
                *("unlisted", "unlisted_parameters", "norm_parameters", "convolutions"),
            )
        },
    }


_COLUMN_WORDS = {"in_c": "input channels", "out_c": "output channels", "parameters": "parameters"}


def _reasons(row: table5.LayerRow) -> str:
    """One line on a row's errors; width and height of a map are one thing."""
    reasons: dict[str, str] = {}
    for error in row.errors:
        words = _COLUMN_WORDS.get(error.column, error.column)
        if error.column in ("out_w", "out_h"):
            words = "output side"
        text = f"{words} {error.printed:,}, computed {error.computed:,} ({cell(error.why)})"
        reasons.setdefault(words, text)
    return f"{cell(row.layer)}: {'; '.join(reasons.values())}."


def _claims() -> dict[str, Any]:
    checked = claims_.check_claims()
    lines = []
    previous = None
    for found in checked:
        quote = cell(f"“{found.claim.quote}”") if found.claim.quote != previous else "same sentence"
        previous = found.claim.quote
        lines.append((found.claim.section, quote, _claimed(found.claim), found.verdict, cell(found.finding)))
    comparisons = [
        {
            "title": f"**{_claimed(found.claim)}**, “{cell(found.claim.quote)}”",
            "table": table(
                ("compared with", "read as", "computed", "fits"),
                [
                    (
                        cell(reading.baseline.model) + ("" if _names(found.claim, reading) else " (not the one named)"),
                        reading.meaning,
                        f"{reading.value:.2f}",
                        "yes" if reading.fits else "no",
                    )
                    for reading in found.readings
                    # Of networks that the sentence does not name here, only what would explain the figure.
                    if reading.fits or _names(found.claim, reading)
                ],
            ),
        }
        for found in checked
        if found.claim.unit == "times"
    ]
    counts = {
        name: sum(found.verdict == verdict for found in checked)
        for name, verdict in (
            ("holds", claims_.HOLDS),
            ("elsewhere", claims_.ELSEWHERE),
            ("fails", claims_.FAILS),
            ("open", claims_.OPEN),
        )
    }
    return {
        "table": table(("section", "the paper", "claimed", "verdict", "computed from its tables"), lines),
        "comparisons": comparisons,
        "total": len(checked),
        **counts,
    }


def _names(claim: paper.PaperClaim, reading: claims_.Reading) -> bool:
    return claim.baseline in (reading.baseline.model, reading.baseline.family)


def _claimed(claim: paper.PaperClaim) -> str:
    if claim.unit == "times":
        return f"{claim.claimed} times"
    if claim.unit == "together":
        return f"{claim.claimed} MB with {claim.second} %"
    units = {"accuracy": "%", "size": "MB", "seconds": "s", "networks": "experiments"}
    figures = " to ".join(figure for figure in (claim.claimed, claim.second) if figure)
    bound = "under " if claim.unit == "range" and not claim.claimed else ""
    return f"{bound}{figures} {units[claim.quantity]}"


def _runs_table(ours: Sequence[Measured], others: Sequence[Measured]) -> str:
    if not (ours or others):
        return "No runs of ours are recorded in the results that this page was made from."
    headings = ("run", "data set", "test accuracy", "seeds", "hold-out", "protocol", "epochs", "s/epoch", "machine")
    return table(
        (*headings, "file"),
        [
            (
                cell(run.name),
                plots.TITLES.get(run.dataset, cell(run.dataset)),
                f"{run.accuracies[0]:.2f} % ({run.correct[0]:,} of {run.images:,})" if run.correct else _NONE,
                _seeds(run),
                f"{run.validation:.2f} %" if run.validation is not None else _NONE,
                cell(run.protocol),
                f"{run.epochs}",
                f"{run.epoch_seconds:.1f}",
                cell(run.hardware),
                f"`{run.source}`",
            )
            for run in [*ours, *others]
        ],
    )


def _times_to_accuracy(results: Path | None) -> list[str]:
    return [
        f"`{found.name}`: {found.accuracy:.2f} % of the test images (the paper's: {found.target:.2f} %) in "
        f"{found.epochs} epochs and {found.seconds / 60:.1f} minutes, where the paper's epochs take "
        f"{found.reference_seconds / 60:.0f} minutes: {found.reference_seconds / found.seconds:.1f} times less time "
        f"({cell(found.hardware)}; `{found.source}`)."
        for found in (times_to_accuracy(results) if results else [])
    ]


def _public_table() -> str:
    return table(
        ("network", "publisher", "data set", "parameters", "accuracy (%)", "protocol", "source"),
        [
            (
                cell(network.name),
                cell(network.publisher),
                plots.TITLES[network.dataset],
                f"{network.parameters:,}",
                f"{network.accuracy:.2f}",
                cell(network.protocol),
                f"[{cell(network.source)}]({network.url})",
            )
            for network in public_networks()
        ],
    )


def _tables_csv(table_rows: Sequence[Row]) -> str:
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
    body = re.sub(r'src="([\w-]+\.png)"', inlined, body)
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
