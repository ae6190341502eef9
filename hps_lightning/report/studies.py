"""What our studies found: optimizers, activations in place, explorations of the design space."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from hps_lightning.explore.front import Row, rows_from_csv
from hps_lightning.report.measured import hardware_words, read_result

EXPLORATIONS = "exploration-*"
"""Folders below the results, each with what `hps explore` leaves of a study."""

SUGGESTED = ("SGD with Nesterov", "step")
"""What a study calls the optimizer that the paper suggests (section 8), and its schedule (section 7.1.2)."""


@dataclass(frozen=True)
class Trained:
    """An optimizer under a schedule; from a file of ``benchmarks/optimizer_study.py``.

    Attributes:
        optimizer: its name in the study.
        rate: its learning rate, the best of those tried.
        schedule: its name in the study.
        accuracies: of the last epoch on the hold-out, in percent, for each seed.
    """

    optimizer: str
    rate: float
    schedule: str
    accuracies: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """Mean over the seeds, in percent."""
        return mean(self.accuracies)


@dataclass(frozen=True)
class OptimizerStudy:
    """A file of ``benchmarks/optimizer_study.py``.

    Attributes:
        network: in the zoo.
        epochs: of each training.
        trained: every optimizer under every schedule that suits it, as far as the study has come.
        tables: all that it found, as Markdown.
        hardware: in words.
        source: the file.
    """

    network: str
    epochs: int
    trained: tuple[Trained, ...]
    tables: str
    hardware: str
    source: str


@dataclass(frozen=True)
class KeptMemory:
    """What a training step keeps for its backward pass; from a file of ``benchmarks/activation_memory.py``.

    Attributes:
        network: in the zoo.
        batch_size: of the step.
        kept: for each combination ``activation``, ``inplace``, ``dtype``, ``kernels`` and ``bytes``.
        source: the file.
    """

    network: str
    batch_size: int
    kept: tuple[dict[str, Any], ...]
    source: str


@dataclass(frozen=True)
class Exploration:
    """A study of `hps explore`, from its folder.

    Attributes:
        name: of the folder, without "exploration-".
        objectives: names of quantities.
        limits: by the same names.
        rows: its trials.
        source: the folder.
    """

    name: str
    objectives: tuple[str, ...]
    limits: dict[str, float]
    rows: tuple[Row, ...]
    source: str


def optimizer_studies(results: Path) -> list[OptimizerStudy]:
    """What ``optimizers-*.json`` in ``results`` say.

    Raises:
        UserError: a file is not what the benchmark writes.
    """
    return [optimizer_study(path) for path in sorted(results.glob("optimizers-*.json"))]


def optimizer_study(path: Path) -> OptimizerStudy:
    """What a file of ``benchmarks/optimizer_study.py`` says, and the tables beside it.

    Raises:
        UserError: it is not what the benchmark writes.
    """

    def read(path: Path) -> OptimizerStudy:
        facts = json.loads(path.read_text(encoding="utf-8"))
        summary = facts["summary"]
        return OptimizerStudy(
            network=summary["network"],
            epochs=summary["epochs"],
            trained=tuple(
                Trained(one["optimizer"], one["rate"], one["schedule"], tuple(100 * a for a in one["accuracies"]))
                for one in summary["trained"]
            ),
            tables=path.with_suffix(".md").read_text(encoding="utf-8"),
            hardware=hardware_words(facts),
            source=path.name,
        )

    return read_result(path, read)


def kept_memory(results: Path) -> list[KeptMemory]:
    """What ``activation_memory-*.json`` in ``results`` say.

    Raises:
        UserError: a file is not what the benchmark writes.
    """

    def read(path: Path) -> KeptMemory:
        facts = json.loads(path.read_text(encoding="utf-8"))
        names = ("activation", "inplace", "dtype", "kernels", "bytes")
        kept = tuple({name: one[name] for name in names} for one in facts["kept"])
        return KeptMemory(facts["model"], facts["batch_size"], kept, path.name)

    return [read_result(path, read) for path in sorted(results.glob("activation_memory-*.json"))]


def explorations(results: Path) -> list[Exploration]:
    """The studies in ``results``: folders with a study's ``study.json`` and ``trials.csv``.

    Raises:
        UserError: a folder is not what `hps explore` leaves.
    """

    def read(folder: Path) -> Exploration:
        record = json.loads((folder / "study.json").read_text(encoding="utf-8"))
        rows = rows_from_csv((folder / "trials.csv").read_text(encoding="utf-8"))
        name = folder.name.removeprefix(EXPLORATIONS.rstrip("*"))
        return Exploration(name, tuple(record["objectives"]), dict(record["limits"]), tuple(rows), folder.name)

    return [read_result(folder, read) for folder in sorted(results.glob(EXPLORATIONS)) if folder.is_dir()]
