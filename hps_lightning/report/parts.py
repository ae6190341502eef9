"""The page's parts after the paper's tables: each gives what the template is filled with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hps_lightning import paper
from hps_lightning.explore.front import front_markdown, front_of
from hps_lightning.explore.plot import study_figure
from hps_lightning.explore.quantities import write_limits
from hps_lightning.report import claims as claims_
from hps_lightning.report import plots, table5
from hps_lightning.report.curves import Run
from hps_lightning.report.measured import Measured, times_to_accuracy
from hps_lightning.report.public import public_networks
from hps_lightning.report.studies import SUGGESTED, Exploration, KeptMemory, OptimizerStudy, Trained
from hps_lightning.report.wording import NONE, cell, seeds, spread, table


def copy_note(checkpoints: Path) -> str:
    """The paragraph of the published networks' README that tells of the copy of the data; empty if there is none."""
    try:
        text = (checkpoints / "README.md").read_text(encoding="utf-8")
    except OSError:
        return ""
    paragraph = next((part for part in text.split("\n\n") if "JPEG" in part), "")
    return "**On the data.** " + " ".join(paragraph.split()) if paragraph else ""


def curve_words(curves: Sequence[tuple[Run, str]]) -> str:
    """Where the curves end, in words."""
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


def optimizers(study: OptimizerStudy, figures: dict[str, Any]) -> dict[str, Any]:
    """A study of optimizers; its plot is added to ``figures``."""
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


def memory(study: KeptMemory) -> dict[str, Any]:
    """What activations keep for the backward pass."""
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


def explored(study: Exploration, figures: dict[str, Any]) -> dict[str, Any]:
    """An exploration; the plot of its trials is added to ``figures``."""
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


def table5_part() -> dict[str, Any]:
    """The paper's Table 5, its errors marked."""
    found = table5.composition()

    def marked(row: table5.LayerRow, columns: Sequence[str]) -> str:
        printed = [row.printed[column] for column in columns]
        if all(figure is None for figure in printed):
            return NONE
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


def claims_part() -> dict[str, Any]:
    """The paper's claims, derived again from its own figures."""
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


def runs_table(ours: Sequence[Measured], others: Sequence[Measured]) -> str:
    """Every run of ours, as a Markdown table."""
    if not (ours or others):
        return "No runs of ours are recorded in the results that this page was made from."
    headings = ("run", "data set", "test accuracy", "seeds", "hold-out", "protocol", "epochs", "s/epoch", "machine")
    return table(
        (*headings, "file"),
        [
            (
                cell(run.name),
                plots.TITLES.get(run.dataset, cell(run.dataset)),
                f"{run.accuracies[0]:.2f} % ({run.correct[0]:,} of {run.images:,})" if run.correct else NONE,
                seeds(run),
                f"{run.validation:.2f} %" if run.validation is not None else NONE,
                cell(run.how),
                f"{run.epochs}",
                f"{run.epoch_seconds:.1f}",
                cell(run.hardware),
                f"`{run.source}`",
            )
            for run in [*ours, *others]
        ],
    )


def times_to_accuracy_lines(results: Path | None) -> list[str]:
    """A line for each network that was trained against the clock to the paper's accuracy."""
    return [
        f"`{found.name}`: {spread(found.accuracies)} of the test images (the paper's: {found.target:.2f} %) in "
        f"{found.epochs} epochs and {found.seconds / 60:.1f} minutes, where the paper's epochs take "
        f"{found.reference_seconds / 60:.0f} minutes: {found.reference_seconds / found.seconds:.1f} times less time "
        f"({cell(found.hardware)}; `{found.source}`)."
        for found in (times_to_accuracy(results) if results else [])
    ]


def public_table() -> str:
    """The public networks of the plots, as a Markdown table."""
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
