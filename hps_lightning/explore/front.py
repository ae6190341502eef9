"""What a study has found: its trials, those that no other beats in everything, and tables of them."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from hps_lightning import files
from hps_lightning.errors import UserError
from hps_lightning.explore.quantities import ERROR, QUANTITIES, exceeds, excess, write_limits
from hps_lightning.explore.storage import FAILURE
from hps_lightning.explore.study import counted
from hps_lightning.explore.worker import COSTS, OPTIONS, PLACE, SAME_AS, curve_of, write_options


@dataclass(frozen=True)
class Row:
    """A trial.

    Attributes:
        number: as the study counts.
        state: "done", "over the limits", "stopped early", "failed", "running" or "waiting".
        values: quantities by name, as far as they are known; the error is that of the last epoch,
            and for a trial that stopped early that of the epoch at which it did.
        options: of `hps fit`, in which the trial differs from others.
        epochs: that were trained.
        note: why it failed, or which other trial it repeats.
        folder: of its run, on the machine that trained it.
    """

    number: int
    state: str
    values: dict[str, float]
    options: dict[str, Any]
    epochs: int
    note: str
    folder: str

    @property
    def done(self) -> bool:
        """Whether it was trained to its end and meets the study's limits."""
        return self.state == "done"


def rows_of(trials: Sequence[FrozenTrial]) -> list[Row]:
    """The trials of a study that count, in their order; see ``study.counted``."""
    return [_row(trial) for trial in counted(trials)]


def _row(trial: FrozenTrial) -> Row:
    attributes = trial.user_attrs
    curve = curve_of(trial)
    values = dict(attributes.get(COSTS, {}))
    if curve and trial.state != TrialState.FAIL:
        values[ERROR] = curve[max(curve)]
    note = attributes.get(FAILURE, "")
    if SAME_AS in attributes:
        note = f"the same as trial {attributes[SAME_AS]}"
    epochs = max(curve) + 1 if curve and SAME_AS not in attributes else 0
    place = attributes.get(PLACE, "")
    return Row(trial.number, _state(trial), values, attributes.get(OPTIONS, {}), epochs, note, place)


def _state(trial: FrozenTrial) -> str:
    over = any(map(exceeds, trial.constraints.values()))
    if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
        if over:
            return "over the limits"
        return "done" if trial.state == TrialState.COMPLETE else "stopped early"
    return {TrialState.RUNNING: "running", TrialState.WAITING: "waiting"}.get(trial.state, "failed")


def meets(row: Row, limits: Mapping[str, float]) -> bool:
    """Whether all quantities of a trial are known to be within limits."""
    over = excess(row.values, limits)
    return len(over) == len(limits) and not any(map(exceeds, over.values()))


def front_of(rows: Sequence[Row], objectives: Sequence[str]) -> list[Row]:
    """The trials that no other beats: none is as good in every objective and better in one.

    Of equal ones the first stays.

    Args:
        rows: of which only those count that are done.
        objectives: names of quantities, all better when smaller.

    Returns:
        Those trials, by the first objective.
    """
    done = [row for row in rows if row.done]
    points = [tuple(row.values[name] for name in objectives) for row in done]

    def beaten(index: int) -> bool:
        mine = points[index]
        return any(
            all(a <= b for a, b in zip(other, mine, strict=True)) and (other != mine or position < index)
            for position, other in enumerate(points)
            if position != index
        )

    front = [row for index, row in enumerate(done) if not beaten(index)]
    return sorted(front, key=lambda row: [row.values[name] for name in objectives])


def choose(
    rows: Sequence[Row], objectives: Sequence[str], limits: Mapping[str, float], number: int | None = None
) -> Row:
    """The trial that is wanted: a given one, or the best in the first objective among those within limits.

    Args:
        rows: all trials.
        objectives: see :func:`front_of`.
        limits: further ones than the study's.
        number: of a trial; None for the best one.

    Raises:
        UserError: there is no such trial, or none meets the limits.
    """
    if number is not None:
        row = next((row for row in rows if row.number == number), None)
        if row is None or not row.options:
            numbers = ", ".join(str(row.number) for row in rows if row.options) or "none"
            raise UserError(f"The study has no trial {number} to make a config of; it has {numbers}.")
        return row
    front = front_of([row for row in rows if meets(row, limits)], objectives)
    if front:
        return front[0]
    raise nothing_meets(rows, limits)


def nothing_meets(rows: Sequence[Row], limits: Mapping[str, float]) -> UserError:
    """The error that says why there is nothing to choose from, with the least of what is limited."""
    if not limits or not any(row.done or row.state == "over the limits" for row in rows):
        failed = next((row for row in rows if row.note and row.state in ("failed", "stopped early")), None)
        why = f" Trial {failed.number} {failed.state}: {failed.note}" if failed else ""
        return UserError(f"No trial of the study is done.{why}")
    unknown = [name for name in limits if not any(name in row.values for row in rows)]
    if unknown and any(row.values for row in rows):
        measured = ", ".join(name for name in QUANTITIES if any(name in row.values for row in rows))
        return UserError(
            f"This study has not measured {', '.join(unknown)}, only {measured}. What is to be chosen by must be among "
            "the objectives or limits of its config."
        )
    parts = []
    for name in limits:
        known = [row for row in rows if name in row.values]
        if known:
            least = min(known, key=lambda row: row.values[name])
            parts.append(f"{name} {QUANTITIES[name].write(least.values[name])} (trial {least.number})")
    seen = f" The least that was seen: {', '.join(parts)}." if parts else ""
    return UserError(
        f"None of {len(rows)} trials meets the limits: {write_limits(limits)}.{seen} Choose wider limits, a space with "
        "smaller networks, or more trials."
    )


def columns(objectives: Sequence[str], limits: Mapping[str, float], rows: Sequence[Row]) -> list[str]:
    """The quantities that a table shows: those that count first, then others that are known of all."""
    first = list(dict.fromkeys([*objectives, *limits]))
    return [*first, *(name for name in QUANTITIES if name not in first and all(name in row.values for row in rows))]


def front_table(front: Sequence[Row], objectives: Sequence[str], limits: Mapping[str, float]) -> Table:
    """The front, to be read in a terminal."""
    names = columns(objectives, limits, front)
    table = Table(title="Trials that no other beats", title_justify="left")
    table.add_column("trial", justify="right")
    for name in names:
        table.add_column(" ".join([name.split("_")[0], QUANTITIES[name].unit]).strip(), justify="right")
    table.add_column("options")
    for row in front:
        cells = [QUANTITIES[name].text(row.values[name]) for name in names]
        table.add_row(str(row.number), *cells, write_options(row.options))
    return table


def front_markdown(front: Sequence[Row], objectives: Sequence[str], limits: Mapping[str, float]) -> str:
    """The front as a table in Markdown."""
    names = columns(objectives, limits, front)
    head = ["trial", *(" ".join([name.split("_")[0], QUANTITIES[name].unit]).strip() for name in names), "options"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in front:
        cells = [str(row.number), *(QUANTITIES[name].text(row.values[name]) for name in names)]
        lines.append(f"| {' | '.join([*cells, write_options(row.options)])} |")
    return "\n".join(lines) + "\n"


def rows_csv(rows: Sequence[Row]) -> str:
    """Trials as CSV: quantities in their own units, and a column for each option."""
    options = list(dict.fromkeys(name for row in rows for name in row.options))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["trial", "state", *QUANTITIES, "epochs", *options, "note", "folder"])
    for row in rows:
        values = [row.values.get(name, "") for name in QUANTITIES]
        chosen = ["" if name not in row.options else _cell(row.options[name]) for name in options]
        writer.writerow([row.number, row.state, *values, row.epochs, *chosen, row.note, row.folder])
    return buffer.getvalue()


def rows_from_csv(text: str) -> list[Row]:
    """The trials that :func:`rows_csv` has written; of options, numbers are numbers again, all else is text.

    Raises:
        ValueError: it is another table.
        KeyError: a column is missing.
    """
    reader = csv.DictReader(io.StringIO(text))
    own = ("trial", "state", *QUANTITIES, "epochs", "note", "folder")
    names = reader.fieldnames or ()
    missing = [name for name in own if name not in names]
    if missing:
        # A table without trials has its columns all the same.
        raise KeyError(missing[0])
    options = [name for name in names if name not in own]
    return [
        Row(
            number=int(line["trial"]),
            state=line["state"],
            values={name: float(line[name]) for name in QUANTITIES if line[name]},
            options={name: _option(line[name]) for name in options if line[name]},
            epochs=int(line["epochs"]),
            note=line["note"],
            folder=line["folder"],
        )
        for line in reader
    ]


def _option(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _cell(value: Any) -> Any:
    return "none" if value is None else " ".join(map(str, value)) if isinstance(value, list) else value


def write_text(path: Path, text: str) -> None:
    """Writes a file, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
