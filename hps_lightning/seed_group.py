"""Trainings that differ in their seed alone, as they lie on disk: ``runs/NAME/seeds_K``.

Each seed's run is ``seed_S`` in there, ``config.yaml`` is what they have in common, and ``seeds.json`` says
which seeds there are and what came out.
"""

import contextlib
import json
import math
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hps_lightning.directory_lock import LOCK_FILE, locked
from hps_lightning.errors import UserError
from hps_lightning.files import write_text

GROUP_FILE = "seeds.json"
GROUP_FORMAT = 1

Figures = dict[str, float | None]
"""Values by their names in TensorBoard; None where one is no number, as a loss that has diverged."""


def finite(values: Mapping[str, float | None]) -> Figures:
    """``values`` as JSON can hold them: None instead of what is no finite number."""
    return {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}


def summarise(figures: Sequence[Figures]) -> dict[str, dict[str, Any]]:
    """What several runs' figures come to.

    Args:
        figures: of each run, at least one.

    Returns:
        For each name that all runs have: ``mean``, ``std`` (sample standard deviation, n - 1; None of a
        single value), ``min``, ``max``, and ``values`` in the runs' order. Where a value is None, so is
        all that would be computed from it.
    """
    summary = {}
    for name in figures[0]:
        if not all(name in run for run in figures):
            continue
        values = [run[name] for run in figures]
        known = None not in values
        summary[name] = {
            "mean": statistics.fmean(values) if known else None,
            "std": statistics.stdev(values) if known and len(values) > 1 else None,
            "min": min(values) if known else None,
            "max": max(values) if known else None,
            "values": values,
        }
    return summary


@dataclass
class SeedGroup:
    """Trainings that differ in their seed alone.

    Attributes:
        directory: where they lie, ``runs/NAME/seeds_K``.
        arguments: those of `hps fit` that began it, as typed.
        seeds: in the order of their training.
        figures: of the last epoch of each training that is finished, by seed.
        test: what `hps test` measured: ``arguments``, ``figures`` and ``summary``; None before.
    """

    directory: Path
    arguments: list[str]
    seeds: list[int]
    figures: dict[int, Figures] = field(default_factory=dict)
    test: dict[str, Any] | None = None
    # The folders that did not exist before, innermost first.
    _made: list[Path] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def load(cls, directory: Path) -> "SeedGroup":
        """Reads the group that lies in ``directory``.

        Raises:
            UserError: there is none, or it is damaged, or another version's.
        """
        path = directory / GROUP_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is damaged: it is no JSON ({error}).") from error
        if isinstance(content, dict) and content.get("format", GROUP_FORMAT) != GROUP_FORMAT:
            raise UserError(f"{path} has format {content['format']!r:.80}; this version reads {GROUP_FORMAT}.")
        if not _is_group(content):
            raise UserError(f"{path} is damaged: it does not hold what `hps fit --seeds` writes.")
        figures = {int(seed): values for seed, values in content["figures"].items()}
        return cls(directory, content["arguments"], content["seeds"], figures, content["test"])

    @classmethod
    def create(cls, folder: Path, arguments: list[str], seeds: list[int], config: str) -> "SeedGroup":
        """Makes the next ``seeds_K`` in ``folder``, without a training yet.

        Args:
            folder: of all runs of the network, ``runs/NAME``; made where it is missing.
            arguments: those of `hps fit`, as typed.
            seeds: in the order of their training.
            config: what the trainings have in common, as YAML.

        Raises:
            UserError: it cannot be written.
        """
        number = max((_number(path) for path in _directories(folder)), default=-1) + 1
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            while True:
                group = cls(folder / f"seeds_{number}", list(arguments), list(seeds))
                try:
                    group.directory.mkdir()
                    break
                except FileExistsError:
                    # That of another command, begun at the same moment.
                    number += 1
            group._made = [group.directory, *made]
            group.config_path.write_text(config, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {error}") from error
        # Last, since without it there is no group to find.
        group.save()
        return group

    @classmethod
    def find_unfinished(cls, folder: Path, seeds: list[int], config: str) -> "SeedGroup | None":
        """The newest group in ``folder`` of the same seeds and configuration that is not finished; None without one.

        Args:
            folder: of all runs of the network, ``runs/NAME``.
            seeds: in their order.
            config: what the trainings have in common, as YAML.
        """
        wanted = yaml.safe_load(config)
        for group, found in _readable(folder):
            if group.seeds == seeds and found == wanted and group.unfinished:
                return group
        return None

    @classmethod
    def find_changed(cls, folder: Path, arguments: list[str], config: str) -> tuple["SeedGroup", list[str]] | None:
        """The newest unfinished group that the same command began when it meant another configuration.

        Another machine may have chosen another precision, a newer version another default.

        Args:
            folder: of all runs of the network, ``runs/NAME``.
            arguments: of `hps fit`, as typed.
            config: what they mean now, as YAML.

        Returns:
            The group, and each setting that differs, in words; None without such a group.
        """
        now = _settings(yaml.safe_load(config))
        for group, found in _readable(folder):
            if group.arguments == arguments and group.unfinished:
                then = _settings(found)
                both = [name for name in then if name in now and then[name] != now[name]]
                return group, [
                    *(f"{name} was {then[name]!r}, is {now[name]!r}" for name in both),
                    *(f"{name} is gone" for name in then if name not in now),
                    *(f"{name} is new" for name in now if name not in then),
                ]
        return None

    @property
    def config_path(self) -> Path:
        """The configuration that all trainings have in common."""
        return self.directory / "config.yaml"

    def config(self) -> str:
        """What all trainings have in common, as YAML.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            return self.config_path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.config_path} cannot be read: {error}") from error

    @property
    def unfinished(self) -> list[int]:
        """The seeds that are still to be trained, in their order."""
        return [seed for seed in self.seeds if seed not in self.figures]

    def run_directory(self, seed: int) -> Path:
        """Where the training of a seed lies."""
        return self.directory / f"seed_{seed}"

    def last_checkpoint(self, seed: int) -> Path:
        """The newest state of a seed's training, whether it exists or not."""
        return self.run_directory(seed) / "checkpoints" / "last.ckpt"

    def summary(self) -> dict[str, dict[str, Any]] | None:
        """What the trainings come to (see :func:`summarise`); None before all are finished."""
        return None if self.unfinished else summarise([self.figures[seed] for seed in self.seeds])

    def save(self) -> None:
        """Writes ``seeds.json``, whole.

        Raises:
            UserError: it cannot be written; an earlier one is left as it was.
        """
        content = {
            "format": GROUP_FORMAT,
            "arguments": self.arguments,
            "seeds": self.seeds,
            "figures": self.figures,
            "summary": self.summary(),
            "test": self.test,
        }
        path = self.directory / GROUP_FILE
        try:
            write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[int | None]:
        """Keeps other processes from training the group, and takes up what they had written before.

        Yields:
            A file descriptor: who inherits it keeps the lock, even if this process is killed. None on Windows,
            which has no such locks.

        Raises:
            UserError: another process trains the group.
        """
        with contextlib.ExitStack() as held:
            try:
                descriptor = held.enter_context(locked(self.directory))
            except OSError as error:
                raise UserError(f"{self.directory} cannot be written: {error.strerror or error}.") from error
            newest = SeedGroup.load(self.directory)
            self.figures, self.test = newest.figures, newest.test
            yield descriptor

    def discard_if_empty(self) -> bool:
        """Removes what :meth:`create` made, if no training has left anything there; whether it did.

        To be called by whoever has the lock.
        """
        ours = [self.directory / GROUP_FILE, self.config_path, self.directory / LOCK_FILE]
        if not self._made or not set(self.directory.iterdir()) <= set(ours):
            return False
        for path in ours:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            for directory in self._made:
                directory.rmdir()
        return True


def _is_group(content: Any) -> bool:
    """Whether a file's content is what :meth:`SeedGroup.save` writes."""
    if not isinstance(content, dict) or not {"format", "arguments", "seeds", "figures", "test"} <= set(content):
        return False
    arguments, seeds, figures, test = (content[key] for key in ("arguments", "seeds", "figures", "test"))
    if not isinstance(arguments, list) or not all(isinstance(argument, str) for argument in arguments):
        return False
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        return False
    if not isinstance(figures, dict) or not {*figures} <= {*map(str, seeds)}:
        return False
    if not all(isinstance(values, dict) and all(map(_is_figure, values.values())) for values in figures.values()):
        return False
    return len(set(seeds)) == len(seeds) and isinstance(test, dict | None)


def _is_figure(value: Any) -> bool:
    # NaN is less than nothing.
    return value is None or (type(value) in (int, float) and abs(value) <= sys.float_info.max)


def _readable(folder: Path) -> Iterator[tuple[SeedGroup, Any]]:
    """The groups in a folder with their configurations, the newest first; what cannot be read is none to go on with."""
    for directory in sorted(_directories(folder), key=_number, reverse=True):
        try:
            group = SeedGroup.load(directory)
            found = yaml.safe_load(group.config())
        except (UserError, ValueError, yaml.YAMLError):
            continue
        yield group, found


def _settings(config: Any, name: str = "") -> dict[str, Any]:
    """A configuration's values by their dotted names."""
    if not isinstance(config, dict) or not config:
        return {name: config}
    parts = (_settings(value, f"{name}.{key}" if name else str(key)) for key, value in config.items())
    return {key: value for part in parts for key, value in part.items()}


def _directories(folder: Path) -> list[Path]:
    return [path for path in folder.glob("seeds_*") if re.fullmatch(r"seeds_\d+", path.name)]


def _number(directory: Path) -> int:
    return int(directory.name.removeprefix("seeds_"))
