"""What `hps explore` reads: a YAML file that says what is explored, and to what end."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hps_lightning.cli.arguments import option_text
from hps_lightning.config_files import find_config, read_config, replaced_whole_by
from hps_lightning.errors import UserError
from hps_lightning.explore.pruning import PRUNERS, Pruning
from hps_lightning.explore.quantities import ERROR, QUANTITIES
from hps_lightning.explore.samplers import SAMPLERS
from hps_lightning.explore.space import Space
from hps_lightning.yaml_files import read_yaml

_KEYS = ("study", "base", "space", "objectives", "limits", "trials", "sampler", "pruner", "retries", "seed")


@dataclass(frozen=True)
class Exploration:
    """What is explored, and to what end.

    Attributes:
        study: its name, and that of its folder.
        base: arguments of `hps fit` that all trials share; none of them depends on this machine.
        space: what differs from trial to trial.
        objectives: names of :data:`~hps_lightning.explore.quantities.QUANTITIES`, all to be as
            small as possible; the first one decides where one trial has to be chosen.
        limits: what a trial may have at most, by the same names.
        trials: how many, of all workers together.
        sampler: one of :data:`~hps_lightning.explore.samplers.SAMPLERS`.
        pruning: which trials are stopped early.
        retries: how often a trial is begun again whose worker was killed; unless 0, one whose training died where all
            of a worker's do is begun again once.
        seed: of what the sampler draws; that of the trainings is ``seed_everything`` of the base.
    """

    study: str
    base: list[str]
    space: Space
    objectives: list[str]
    limits: dict[str, float] = field(default_factory=dict)
    trials: int = 50
    sampler: str = "tpe"
    pruning: Pruning = field(default_factory=Pruning)
    retries: int = 3
    seed: int = 0

    @property
    def quantities(self) -> list[str]:
        """What has to be measured: objectives, then what is limited besides."""
        return list(dict.fromkeys([*self.objectives, *self.limits]))


def read_exploration(name: str, options: Sequence[str] = (), study: str | None = None) -> Exploration:
    """Reads a config.

    Args:
        name: a path, or a name among the installed configs.
        options: further arguments of `hps fit` for all trials.
        study: takes the place of the config's.

    Raises:
        UserError: the config cannot be read, or something in it cannot be used.
    """
    path = find_config(name)
    content = read_yaml(path)
    if not isinstance(content, dict) or "space" not in content:
        raise UserError(f"{path} describes no exploration: it needs a `space:`, as configs/explore.yaml has one.")
    unknown = sorted(set(content) - set(_KEYS), key=str)
    if unknown:
        raise UserError(f"{path}: unknown key {unknown[0]!r:.120}; an exploration has {', '.join(_KEYS)}.")
    try:
        return _exploration(content, path, list(options), study)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _exploration(content: Mapping[str, Any], path: Path, options: list[str], study: str | None) -> Exploration:
    objectives = content.get("objectives", [ERROR])
    objectives = [objectives] if isinstance(objectives, str) else objectives
    if not isinstance(objectives, list) or not objectives:
        raise UserError(f"`objectives` must list at least one of {', '.join(QUANTITIES)}, got {objectives!r:.120}.")
    known_objectives = [_quantity(name, "objectives") for name in objectives]
    if len(set(known_objectives)) < len(known_objectives):
        raise UserError(f"`objectives` names one of them twice: {', '.join(known_objectives)}.")
    pruning = _pruning(content.get("pruner"), known_objectives)
    sampler = content.get("sampler", "tpe")
    if not isinstance(sampler, str) or sampler not in SAMPLERS:
        raise UserError(f"There is no sampler {sampler!r:.120}; there are {', '.join(SAMPLERS)}.")
    return Exploration(
        study=_study_name(study or content.get("study") or path.stem),
        base=[*_base(content.get("base")), *options],
        space=Space.parse(content["space"]),
        objectives=known_objectives,
        limits=parse_limits(content.get("limits") or {}),
        trials=_whole(content.get("trials", 50), "trials", 1),
        sampler=sampler,
        pruning=pruning,
        retries=_whole(content.get("retries", 3), "retries", 0),
        seed=_whole(content.get("seed", 0), "seed", 0),
    )


def parse_limits(limits: Any) -> dict[str, float]:
    """Limits as numbers.

    Args:
        limits: a mapping of quantities to what a trial may have at most.

    Raises:
        UserError: a quantity is unknown, or a limit is no number above 0.
    """
    if not isinstance(limits, Mapping):
        raise UserError(f"`limits` must map quantities to numbers, such as `size_bytes: 100000`; got {limits!r:.120}.")
    return {_quantity(name, "limits"): _positive(value, f"the limit of {name}") for name, value in limits.items()}


def _quantity(name: Any, key: str) -> str:
    if not isinstance(name, str) or name not in QUANTITIES:
        raise UserError(f"`{key}` names {name!r:.80}; there are {', '.join(QUANTITIES)}.")
    return name


def _positive(value: Any, name: str) -> float:
    # PyYAML reads 1e5 as a text.
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (0 < number < math.inf):
        raise UserError(f"{name} must be a number greater than 0, got {value!r:.120}.")
    return number


def _whole(value: Any, name: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"`{name}` must be a whole number of at least {least}, got {value!r:.120}.")
    return value


def _study_name(name: Any) -> str:
    # It names a folder, and stands in commands that we print.
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise UserError(f"A study's name may have up to 100 letters, digits, '_', '-' and '.', got {name!r:.120}.")
    return name


def _base(base: Any) -> list[str]:
    if not isinstance(base, Mapping) or "config" not in base:
        raise UserError("`base` must say what all trials share: `config:`, as for `hps fit`, and perhaps `options:`.")
    unknown = sorted(set(base) - {"config", "options"}, key=str)
    if unknown:
        raise UserError(f"`base` has `config` and `options`, got {unknown[0]!r:.120}.")
    configs = base["config"] if isinstance(base["config"], list) else [base["config"]]
    options = base.get("options") or {}
    if not isinstance(options, Mapping):
        raise UserError(f"`base: options:` must map options of `hps fit` to values, got {options!r:.80}.")
    return [token for config in configs for token in _config_tokens(str(config))] + option_tokens(options)


def _config_tokens(name: str) -> list[str]:
    # By its content: another machine may have other configs under the same name, or elsewhere.
    content = read_config(find_config(name))
    return [*(f"--{key}=null" for key in replaced_whole_by(content)), f"--config={json.dumps(content)}"]


def option_tokens(options: Mapping[str, Any]) -> list[str]:
    """Options of `hps fit`, by name without dashes, as arguments."""
    return [f"--{name}={option_text(value)}" for name, value in options.items()]


def _pruning(given: Any, objectives: list[str]) -> Pruning:
    default = "median" if objectives == [ERROR] else "dominated" if ERROR in objectives else "none"
    if given is None or isinstance(given, str):
        given = {"name": default if given is None else given}
    if not isinstance(given, Mapping):
        raise UserError(f"`pruner` must be a name or a mapping, got {given!r:.120}.")
    settings = {"name": default, **given}
    unknown = sorted(set(settings) - {"name", "warmup_epochs", "margin"}, key=str)
    if unknown:
        raise UserError(f"`pruner` has name, warmup_epochs and margin, got {unknown[0]!r:.120}.")
    name = settings["name"]
    if not isinstance(name, str) or name not in PRUNERS:
        raise UserError(f"There is no pruner {name!r:.120}; there are {', '.join(PRUNERS)}.")
    if name in ("median", "hyperband") and objectives != [ERROR]:
        raise UserError(f"The pruner {name} compares errors alone; with the objectives {objectives} use dominated.")
    warmup = _whole(settings.get("warmup_epochs", 2), "pruner: warmup_epochs", 0)
    margin = settings.get("margin", 0.05)
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 <= margin < 1:
        raise UserError(f"`pruner: margin` must be an error from 0 to 1, got {margin!r:.120}.")
    return Pruning(name, warmup, float(margin))
