"""What we measured: the published networks, and the result files of the benchmarks."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hps_lightning.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Measured:
    """One training of ours.

    Attributes:
        name: of the network in the zoo, or of the folder that holds the result.
        dataset: "cifar10" or "cifar100".
        parameters: of the network.
        size_mb: the whole module as PyTorch before 1.6 saves it, decimal megabytes; None where it
            cannot.
        protocol: which images trained and validated.
        teacher: name of the network that it was distilled from; empty without one.
        epochs: of the training.
        correct: right answers on the test images for each seed, the published one first; empty
            where the result does not hold a test.
        images: number of test images; None likewise.
        seeds: as ``correct``.
        validation: accuracy of the last epoch on held-out images, in percent; None without any.
        validates: whether its epochs validate, on whatever images.
        epoch_seconds: median of an epoch, training and validation.
        hardware: that it was timed on, in words.
        command: that repeats it; empty where the result does not hold one.
        source: the file that says so.
    """

    name: str
    dataset: str
    parameters: int
    size_mb: float | None
    protocol: str
    teacher: str
    epochs: int
    correct: tuple[int, ...]
    images: int | None
    seeds: tuple[int, ...]
    validation: float | None
    validates: bool
    epoch_seconds: float
    hardware: str
    command: str
    source: str

    @property
    def how(self) -> str:
        """The protocol, and the teacher where there was one, in words."""
        return f"{self.protocol}, distilled from {self.teacher}" if self.teacher else self.protocol

    @property
    def accuracies(self) -> tuple[float, ...]:
        """In percent of the test images, for each seed; the published one first."""
        return tuple(100 * correct / self.images for correct in self.correct)


@dataclass(frozen=True)
class TrainSpeed:
    """How fast a network trains here, beside the usual loop; from a file of ``benchmarks/train_speed.py``.

    Attributes:
        name: of the network in the zoo.
        dataset: that it was timed on.
        epoch_seconds: of training alone.
        reference_seconds: of the usual PyTorch loop on the same machine.
        hardware: in words.
        source: the file.
    """

    name: str
    dataset: str
    epoch_seconds: float
    reference_seconds: float
    hardware: str
    source: str


@dataclass(frozen=True)
class TimeToAccuracy:
    """How long the paper's accuracy takes; from a file of ``benchmarks/time_to_accuracy.py``.

    Attributes:
        name: of the network in the zoo.
        target: the paper's accuracy, in percent.
        accuracies: of ours, in percent of the test images, for each seed.
        epochs: of ours.
        seconds: of ours, a mean over the seeds.
        reference_seconds: of the paper's epochs by the usual PyTorch loop on the same machine.
        hardware: in words.
        source: the file.
    """

    name: str
    target: float
    accuracies: tuple[float, ...]
    epochs: int
    seconds: float
    reference_seconds: float
    hardware: str
    source: str


def hardware_words(facts: dict[str, Any]) -> str:
    """The machine in a few words, from the ``hardware`` of a result and its precision where it has one."""
    hardware = facts["hardware"]
    if hardware["gpu"]:
        machine = hardware["gpu"]
    else:
        machine = f"{hardware['cpu']}, {hardware['threads']} thread{'s' * (hardware['threads'] != 1)}"
    return f"{machine}, {facts['precision']}" if facts.get("precision") else machine


def published(folder: Path) -> list[Measured]:
    """The published networks, each from its ``NAME-DATASET.json`` in ``folder``.

    Raises:
        UserError: a file is not what ``benchmarks/publish.py`` writes.
    """

    def read(path: Path, facts: dict[str, Any]) -> Measured:
        return _tested(path.stem.removesuffix(f"-{facts['dataset']}"), facts, f"checkpoints/{path.name}")

    return [_read(path, read) for path in sorted(folder.glob("*.json"))]


def trainings(results: Path) -> list[Measured]:
    """The trainings whose ``benchmark.json`` a folder of ``results`` keeps, each under that folder's name.

    Raises:
        UserError: a file is neither what ``hps fit`` writes, nor what ``benchmarks/publish.py`` does.
    """

    def read(path: Path, facts: dict[str, Any]) -> Measured:
        source = f"{path.parent.name}/{path.name}"
        if "test" in facts:
            return _tested(path.parent.name, facts, source)
        return _measured(path.parent.name, facts, source=source)

    return [_read(path, read) for path in sorted(results.glob("*/benchmark.json"))]


def train_speeds(results: Path) -> list[TrainSpeed]:
    """What ``train_speed-*.json`` in ``results`` say.

    Raises:
        UserError: a file is not what ``benchmarks/train_speed.py`` writes.
    """

    def read(path: Path, facts: dict[str, Any]) -> TrainSpeed:
        return TrainSpeed(
            name=facts["arguments"]["model"],
            dataset=facts["arguments"]["dataset"],
            epoch_seconds=facts["engine"]["seconds_per_epoch"],
            reference_seconds=facts["reference"]["seconds_per_epoch"],
            hardware=hardware_words(facts),
            source=path.name,
        )

    return [_read(path, read) for path in sorted(results.glob("train_speed-*.json"))]


def times_to_accuracy(results: Path) -> list[TimeToAccuracy]:
    """What ``time_to_accuracy-*.json`` in ``results`` say of the shortest training that reached the paper's accuracy.

    Raises:
        UserError: a file is not what ``benchmarks/time_to_accuracy.py`` writes.
    """

    def read(path: Path, facts: dict[str, Any]) -> TimeToAccuracy | None:
        shortest = facts.get("shortest")
        if not shortest:
            return None
        counted = [run for run in facts["trainings"] if run["epochs"] == shortest["epochs"]]
        return TimeToAccuracy(
            name=facts["model"],
            target=100 * facts["paper_accuracy"],
            accuracies=tuple(100 * run["accuracy"] for run in counted),
            epochs=shortest["epochs"],
            seconds=shortest["seconds"],
            reference_seconds=facts["reference"]["seconds"],
            hardware=hardware_words(facts),
            source=path.name,
        )

    found = [_read(path, read) for path in sorted(results.glob("time_to_accuracy-*.json"))]
    return [result for result in found if result is not None]


def _read(path: Path, read: Callable[[Path, Any], T]) -> T:
    return read_result(path, lambda path: read(path, json.loads(path.read_text(encoding="utf-8"))))


def read_result(path: Path, read: Callable[[Path], T]) -> T:
    """What ``read`` makes of a file or folder.

    Raises:
        UserError: it holds something else.
    """
    try:
        return read(path)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path} is no result that a report can be made of: {type(error).__name__}: {error}") from error


def _tested(name: str, facts: dict[str, Any], source: str) -> Measured:
    return _measured(
        name,
        facts,
        correct=tuple(seed["correct"] for seed in facts["seeds"]),
        images=facts["test"]["images"],
        seeds=tuple(seed["seed"] for seed in facts["seeds"]),
        command=facts["command"],
        source=source,
    )


def _measured(
    name: str,
    facts: dict[str, Any],
    correct: tuple[int, ...] = (),
    images: int | None = None,
    seeds: tuple[int, ...] = (),
    command: str = "",
    source: str = "",
) -> Measured:
    # Under other protocols it is that of the test images.
    validation = facts["metrics"]["final"].get("val/accuracy") if facts["protocol"] == "holdout" else None
    module_bytes = facts["network"]["module_bytes"]
    return Measured(
        name=name,
        dataset=facts["dataset"],
        parameters=facts["network"]["parameters"],
        size_mb=None if module_bytes is None else module_bytes / 1e6,
        protocol=facts["protocol"],
        # Results of before there was distillation do not speak of it.
        teacher=(facts.get("distillation") or {"teacher": {"name": ""}})["teacher"]["name"],
        epochs=facts["time"]["epochs"],
        correct=correct,
        images=images,
        seeds=seeds,
        validation=None if validation is None else 100 * validation,
        validates=facts["time"].get("val_seconds") is not None,
        epoch_seconds=facts["time"]["epoch_seconds"],
        hardware=hardware_words(facts),
        command=command,
        source=source,
    )
