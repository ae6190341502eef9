"""The search space: which options of `hps fit` differ from trial to trial, and in what.

In YAML a parameter is called as the option that it sets. What may stand behind it::

    model.activation: [relu, elu]                    # one of a list
    model.width: {low: 0.25, high: 1.0, step: 0.05}  # a range; `log: true` spreads it by factors
    model.stages: {each: [{low: 1, high: 2}, 1]}     # a list, each of whose items is a range, a list or a value
    optimizer:                                       # one of several, with parameters of its own
      SGD: {optimizer.lr: {low: 0.02, high: 0.5, log: true}}
      AdamW: {optimizer.lr: {low: 1.0e-4, high: 1.0e-2, log: true}}

In the study, a parameter that belongs to one choice carries it in its name, as ``SGD:optimizer.lr``,
and an item of a list its place, as ``model.stages[0]``.
"""

import contextlib
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from hps_lightning.errors import UserError

_RANGE_KEYS = {"low", "high", "step", "log"}

# No option takes more; beyond, the samplers count wrong.
_LARGEST_NUMBER = 1e15
_MOST_STEPS = 1e9


class Suggests(Protocol):
    """What draws values: one of Optuna's trials, or :class:`Corner`."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """One of ``choices``."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """A whole number from ``low`` to ``high``."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number from ``low`` to ``high``."""


class Corner:
    """Draws the highest of every range and the last of every list: the largest network of most spaces."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """The last one."""
        return choices[-1]

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """The highest one."""
        return low + (high - low) // step * step

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """The highest one."""
        return high


class _Values(ABC):
    """What a parameter may be."""

    @abstractmethod
    def suggest(self, trial: Suggests, name: str) -> Any:
        """Draws one."""

    @abstractmethod
    def count(self) -> float:
        """How many there are; infinite in a range without steps."""


@dataclass(frozen=True)
class _Constant(_Values):
    value: Any

    def suggest(self, trial: Suggests, name: str) -> Any:
        return self.value

    def count(self) -> float:
        return 1


@dataclass(frozen=True)
class _Choice(_Values):
    values: list[Any]

    def suggest(self, trial: Suggests, name: str) -> Any:
        # Optuna keeps plain values alone.
        chosen = trial.suggest_categorical(name, [_plain(value) for value in self.values])
        return next(value for value in self.values if _same(_plain(value), chosen))

    def count(self) -> float:
        return len(self.values)


@dataclass(frozen=True)
class _Range(_Values):
    low: float
    high: float
    step: float | None
    log: bool

    @property
    def whole(self) -> bool:
        return all(isinstance(value, int) for value in (self.low, self.high, 1 if self.step is None else self.step))

    def suggest(self, trial: Suggests, name: str) -> Any:
        if self.whole:
            step = 1 if self.step is None else int(self.step)
            return trial.suggest_int(name, int(self.low), int(self.high), step=step, log=self.log)
        value = trial.suggest_float(name, float(self.low), float(self.high), step=self.step, log=self.log)
        # Steps of 0.05 add up to 0.15000000000000002.
        return round(value, 10) if self.step is not None else value

    def count(self) -> float:
        if self.low == self.high:
            return 1
        step = 1 if self.whole and self.step is None else self.step
        return math.inf if step is None else math.floor((self.high - self.low) / step + 1e-9) + 1


@dataclass(frozen=True)
class _Each(_Values):
    items: list[_Values]

    def suggest(self, trial: Suggests, name: str) -> Any:
        return [item.suggest(trial, f"{name}[{index}]") for index, item in enumerate(self.items)]

    def count(self) -> float:
        return math.prod((item.count() for item in self.items), start=1.0)


@dataclass(frozen=True)
class Space:
    """A search space.

    Attributes:
        plain: as YAML has it.
    """

    plain: dict[str, Any]
    _parameters: list[tuple[str, _Values, "dict[Any, Space]"]]

    @classmethod
    def parse(cls, plain: Any) -> "Space":
        """A space as YAML has it; see the module.

        Raises:
            UserError: there is nothing to choose in it, or a parameter has no form that we know.
        """
        if not isinstance(plain, Mapping) or not plain:
            raise UserError(
                "The search space has nothing in it; name at least one option of `hps fit` under `space:`, "
                "such as `model.width: [0.25, 0.5]`."
            )
        space = cls._parse(plain)
        if space.count() <= 1:
            raise UserError(
                "The search space holds one single point, so that there is nothing to explore; `hps fit` trains it."
            )
        return space

    @classmethod
    def _parse(cls, plain: Mapping[str, Any]) -> "Space":
        parameters: list[tuple[str, _Values, dict[Any, Space]]] = []
        for name, given in plain.items():
            if not isinstance(name, str) or not re.fullmatch(r"\w[\w.]*\+?", name):
                raise UserError(f"A parameter is called as an option of `hps fit`, without dashes; got {name!r:.80}.")
            if isinstance(given, Mapping) and not set(given) & {*_RANGE_KEYS, "each"}:
                branches = {choice: cls._branch(name, choice, below) for choice, below in given.items()}
                parameters.append((name, _choice(name, list(given)), branches))
            else:
                parameters.append((name, _values(name, given), {}))
        return cls(dict(plain), parameters)

    @classmethod
    def _branch(cls, name: str, choice: Any, below: Any) -> "Space":
        if below is not None and not isinstance(below, Mapping):
            raise UserError(
                f"{name}: {choice!s:.80}: must map options of `hps fit` to their values, got {below!r:.120}."
            )
        return cls._parse(below or {})

    def suggest(self, trial: Suggests) -> dict[str, Any]:
        """Draws a point of the space: options of `hps fit`, without dashes, with their values."""
        return self._suggest(trial, "")

    def _suggest(self, trial: Suggests, prefix: str) -> dict[str, Any]:
        options: dict[str, Any] = {}
        for name, values, branches in self._parameters:
            chosen = values.suggest(trial, prefix + name)
            options[name] = chosen
            if branches:
                options.update(branches[chosen]._suggest(trial, f"{prefix}{chosen}:"))
        return options

    def count(self) -> float:
        """How many points there are; infinite where a range has no steps."""
        total = 1.0
        for _, values, branches in self._parameters:
            total *= sum(branch.count() for branch in branches.values()) if branches else values.count()
        return total


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _same(one: Any, other: Any) -> bool:
    # True equals 1 in Python.
    return type(one) is type(other) and one == other


def _choice(name: str, values: list[Any]) -> _Choice:
    if not values:
        raise UserError(f"{name}: the list of its values is empty.")
    plain = [_plain(value) for value in values]
    if any(_same(value, other) for index, value in enumerate(plain) for other in plain[:index]):
        raise UserError(f"{name}: a value is listed twice: {values!r:.120}.")
    bad = [value for value in plain if value is not None and not isinstance(value, bool | int | float | str)]
    # NaN is not even equal to itself.
    bad += [value for value in plain if isinstance(value, float) and not math.isfinite(value)]
    if bad:
        raise UserError(f"{name}: {bad[0]!r:.120} is no value of an option.")
    return _Choice(values)


def _values(name: str, given: Any) -> _Values:
    if isinstance(given, list):
        return _choice(name, given)
    if not isinstance(given, Mapping):
        raise UserError(
            f"{name}: a parameter is a list of values, a range such as {{low: 0.1, high: 0.5}}, {{each: [...]}}, or "
            f"choices with their own parameters; got {given!r:.80}. What never differs belongs under `base: options:`."
        )
    if "each" in given:
        items = given["each"]
        if set(given) != {"each"} or not isinstance(items, list) or not items:
            raise UserError(f"{name}: `each` stands alone and lists what each item may be, got {dict(given)!r:.120}.")
        return _Each([_item(f"{name}[{index}]", item) for index, item in enumerate(items)])
    return _range(name, given)


def _item(name: str, given: Any) -> _Values:
    return _values(name, given) if isinstance(given, list | Mapping) else _Constant(given)


def _range(name: str, given: Mapping[str, Any]) -> _Range:
    unknown = sorted(set(given) - _RANGE_KEYS, key=str)
    if unknown or "low" not in given or "high" not in given:
        raise UserError(f"{name}: a range has low and high, and perhaps step or log; got {dict(given)!r:.120}.")
    numbers = {key: _number(f"{name}: {key}", given[key]) for key in ("low", "high", "step") if key in given}
    low, high, step, log = numbers["low"], numbers["high"], numbers.get("step"), given.get("log", False)
    if not isinstance(log, bool):
        raise UserError(f"{name}: log is true or false, got {log!r:.120}.")
    if low > high:
        raise UserError(f"{name}: there is nothing from {low} to {high}; low is the smaller one.")
    if step is not None and step > 0 and (high - low) / step > _MOST_STEPS:
        raise UserError(
            f"{name}: a range of more than {_MOST_STEPS:g} steps; leave the step out, got {dict(given)!r:.120}."
        )
    if step is not None and (log or step <= 0):
        raise UserError(f"{name}: a step must be greater than 0, and goes without log; got {dict(given)!r:.120}.")
    if log and low <= 0:
        raise UserError(f"{name}: a range with log must begin above 0, got {low}.")
    if step is not None:
        # Optuna would end the range there too, with a warning.
        steps = math.floor((high - low) / step + 1e-9)
        high = round(low + steps * step, 10)
    return _Range(low, high, step, log)


def _number(name: str, value: Any) -> float:
    number = value
    if isinstance(value, str):
        # PyYAML reads 1e-4 as a text.
        with contextlib.suppress(ValueError):
            number = float(value)
    if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) <= _LARGEST_NUMBER:
        raise UserError(f"{name} must be a number, of at most {_LARGEST_NUMBER:g}; got {value!r:.80}.")
    return number
