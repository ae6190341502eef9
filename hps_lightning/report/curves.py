"""The curves of a training: read from its TensorBoard logs, kept as CSV."""

import csv
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hps_lightning.errors import UserError
from hps_lightning.files import replaced_whole
from hps_lightning.runs import run_of
from hps_lightning.yaml_files import read_yaml

METRICS = ("accuracy", "loss")
SERIES = tuple(f"{stage}/{metric}" for stage in ("train", "val") for metric in METRICS)
"""The scalars that make the curves, as ``hps fit`` logs them; accuracies lie between 0 and 1."""

_FACTS = ("name", "dataset", "protocol", "seed")
_LOGS = "events.out.tfevents.*"


@dataclass(frozen=True)
class Run:
    """What a training logged once an epoch.

    Attributes:
        name: of the network.
        dataset: that it was trained on.
        protocol: which images trained and validated; see the README.
        seed: of the training, as text; empty where it is not known.
        series: for each of :data:`SERIES`, its value by epoch; epochs count from 1.
    """

    name: str
    dataset: str
    protocol: str
    seed: str
    series: dict[str, dict[int, float]] = field(repr=False)

    @property
    def epochs(self) -> list[int]:
        """The epochs that any series has a value of, in order."""
        return sorted({epoch for values in self.series.values() for epoch in values})


def read_run(path: Path) -> Run:
    """The curves of one training.

    Args:
        path: its folder, ``runs/NAME/version_N``; a folder above it, of whose trainings the newest
            is taken; or a CSV file that :func:`write_csv` made.

    Raises:
        UserError: there is nothing to read; the message says what was looked for.
    """
    if not path.exists():
        raise UserError(f"There is no run {path}; a run is a folder such as runs/NAME/version_0, or a CSV of curves.")
    if path.is_file():
        return _read_csv(path)
    folder = _run_folder(path)
    facts = _facts(folder)
    series = _merged(_read_log(log) for log in _logs(folder))
    if not series:
        raise UserError(f"{folder} has TensorBoard logs without any of {', '.join(SERIES)}; no epoch has ended there.")
    return Run(**facts, series=series)


def _logs(folder: Path) -> list[Path]:
    """The log files of one training, oldest first: a training that is resumed begins another."""

    def started(path: Path) -> tuple[int, str]:
        found = re.search(r"tfevents\.(\d+)\.", path.name)
        return (int(found[1]) if found else 0, path.name)

    return sorted(folder.glob(_LOGS), key=started)


def _run_folder(path: Path) -> Path:
    if _logs(path):
        return path
    # `hps test` logs into a folder inside the run's.
    folders = {log.parent for log in path.rglob(_LOGS) if _is_run(log.parent)}
    if not folders:
        raise UserError(f"{path} holds no TensorBoard logs ({_LOGS}); a run's folder is runs/NAME/version_N.")
    newest = max(folders, key=lambda folder: (max(log.stat().st_mtime for log in _logs(folder)), str(folder)))
    if len(folders) > 1:
        print(f"{path} holds {len(folders)} runs; the newest is taken: {newest}", file=sys.stderr)
    return newest


def _is_run(folder: Path) -> bool:
    # A test of a checkpoint that lies elsewhere logs into a folder like a training's, without its configuration.
    return run_of(folder / "checkpoints" / "last.ckpt") is not None and (folder / "config.yaml").is_file()


def _facts(folder: Path) -> dict[str, str]:
    path = folder / "config.yaml"
    try:
        config = read_yaml(path)
        dataset, protocol = config["data"]["dataset"], config["data"]["protocol"]
        seed = config.get("seed_everything")
    except (UserError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} does not say the data set and the protocol of the run; `hps fit` writes it beside the logs."
        ) from error
    run = run_of(folder / "checkpoints" / "last.ckpt")
    # A copy may lie anywhere.
    name = run.name.removesuffix(f"-{dataset}") if run else folder.absolute().name
    return {"name": name, "dataset": str(dataset), "protocol": str(protocol), "seed": "" if seed is None else str(seed)}


def _read_log(path: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # 0 keeps every scalar; of pictures and the like a single one is held in memory.
    log = EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 1, "tensors": 1})
    log.Reload()
    tags = log.Tags()["scalars"]
    if "epoch" not in tags:
        return {}
    # Lightning logs the epoch, from 0, beside whatever is logged once an epoch.
    epochs = {event.step: int(event.value) + 1 for event in log.Scalars("epoch")}
    return {
        tag: {epochs[event.step]: event.value for event in log.Scalars(tag) if event.step in epochs}
        for tag in SERIES
        if tag in tags
    }


def _merged(logs: Iterable[dict[str, dict[int, float]]]) -> dict[str, dict[int, float]]:
    """One series of what several logs hold: from where a later one begins, the earlier ones do not count.

    A training that was killed may have logged epochs after its last checkpoint; resumed, it
    trains them once more.
    """
    series: dict[str, dict[int, float]] = {}
    for log in logs:
        first = min((epoch for values in log.values() for epoch in values), default=None)
        if first is None:
            continue
        series = {tag: {e: v for e, v in values.items() if e < first} for tag, values in series.items()}
        for tag, values in log.items():
            series.setdefault(tag, {}).update(values)
    return {tag: values for tag, values in series.items() if values}


def write_csv(run: Run, path: Path) -> None:
    """Writes a training's curves as a CSV file, one row an epoch, which :func:`read_run` reads again.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with replaced_whole(path) as aside, open(aside, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*_FACTS, "epoch", *SERIES])
            for epoch in run.epochs:
                # TensorBoard keeps float32, which seven digits tell apart well enough for a curve.
                values = [run.series.get(tag, {}).get(epoch) for tag in SERIES]
                texts = ["" if value is None else f"{value:.7g}" for value in values]
                writer.writerow([*(getattr(run, fact) for fact in _FACTS), epoch, *texts])
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error


def _read_csv(path: Path) -> Run:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        # All rows say the same of the training.
        facts = {tuple(row[fact] for fact in _FACTS) for row in rows}
        (only,) = facts
        epochs = [int(row["epoch"]) for row in rows]
        series = {
            tag: {epoch: float(row[tag]) for epoch, row in zip(epochs, rows, strict=True) if row[tag]} for tag in SERIES
        }
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is no CSV of one training's curves, with the columns {', '.join([*_FACTS, 'epoch', *SERIES])}; "
            "`hps plot RUN --csv FILE` writes one."
        ) from error
    return Run(**dict(zip(_FACTS, only, strict=True)), series={tag: values for tag, values in series.items() if values})
