"""What a user types, brought to what Lightning's CLI understands.

Lightning's CLI knows classes and paths. Here the names that people use are resolved: configs
by bare name, networks of the zoo, optimizers and schedules, ``--ckpt_path last``. The
result is again a list of arguments, so that order and precedence stay the user's.
"""

import difflib
import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from hps_lightning import zoo
from hps_lightning.errors import UserError

SUBCOMMANDS = ("fit", "validate", "test", "predict")

OPTIMIZER_CONFIGS: dict[str, str] = {
    "SGD": "sgd",
    "Adam": "adam",
    "AdamW": "adamw",
    "Adamax": "adamax",
    "Adagrad": "adagrad",
    "Rprop": "rprop",
    "RMSprop": "rmsprop",
    "AdaBound": "adabound",
    "MuonWithAuxAdam": "muon",
}
"""The file in ``configs/optimizers`` that each class name stands for."""

SCHEDULE_CONFIGS: dict[str, str] = {
    "MultiStepLR": "multi_step",
    "StepLR": "step",
    "ExponentialLR": "exponential",
    "CosineAnnealingLR": "cosine",
    "CosineAnnealingWarmRestarts": "cosine_warm_restarts",
    "CyclicLR": "cyclic",
    "OneCycleLR": "one_cycle",
    "ReduceLROnPlateau": "reduce_on_plateau",
}
"""The file in ``configs/lr_schedulers`` that each class name stands for."""

CLASSIFIER_NAMES: dict[str, str] = {
    "squeezenet": "SqueezeNetClassifier",
    "squeezed_cnn": "SqueezedCNNClassifier",
    "mobilenet": "MobileNetClassifier",
    "squeezenext": "SqueezeNextClassifier",
    "modified_squeezenext": "ModifiedSqueezeNextClassifier",
    "shallow_squeezenext": "ShallowSqueezeNextClassifier",
    "hps": "HPSClassifier",
}
"""The class of each family; by name, since `hps models` must not wait for Lightning."""

_SWAPPED = {"--optimizer": ("optimizers", OPTIMIZER_CONFIGS), "--lr_scheduler": ("lr_schedulers", SCHEDULE_CONFIGS)}

_NULL = ("null", "none", "None")


def config_dirs() -> list[Path]:
    """The folders in which a config is looked up, in this order."""
    return [Path(), Path("configs"), Path(str(resources.files("hps_lightning.configs")))]


def find_config(name: str) -> Path:
    """The config that ``name`` stands for: a path, or a name below one of :func:`config_dirs`.

    Raises:
        UserError: there is none; the message lists what there is.
    """
    names = [name] if name.endswith((".yaml", ".yml", ".json")) else [name, f"{name}.yaml"]
    for folder in config_dirs():
        for candidate in names:
            if (folder / candidate).is_file():
                return folder / candidate
    installed = config_dirs()[-1]
    known = sorted(path.relative_to(installed).as_posix() for path in installed.rglob("*.yaml"))
    near = difflib.get_close_matches(name, known, n=1)
    raise UserError(
        f"There is no config {name!r} in {Path.cwd()}, in its configs/, or among the installed ones."
        + (f" Did you mean {near[0]}?" if near else "")
        + f" Installed: {', '.join(known)}."
    )


def option_values(tokens: list[str]) -> Iterable[tuple[str, str | None]]:
    """Splits arguments into (option, value); a value without an option comes as ("", value)."""
    position = 0
    while position < len(tokens):
        token = tokens[position]
        position += 1
        if not token.startswith("-") or token == "-":
            yield "", token
        elif token.startswith("--") and "=" in token:
            option, value = token.split("=", 1)
            yield option, value
        elif position < len(tokens) and not _is_option(tokens[position]):
            yield token, tokens[position]
            position += 1
        else:
            yield token, None


def _is_option(token: str) -> bool:
    # A number may start with a minus too.
    return len(token) > 1 and token[0] == "-" and not token[1].isdigit() and token[1] != "."


def join_options(pairs: Iterable[tuple[str, str | None]]) -> list[str]:
    """The arguments that :func:`option_values` splits; each value in one token with its long option."""
    tokens: list[str] = []
    for option, value in pairs:
        if value is None:
            tokens.append(option)
        elif option.startswith("--"):
            tokens.append(f"{option}={value}")
        elif option:
            tokens += [option, value]
        else:
            tokens.append(value)
    return tokens


def expand(tokens: list[str]) -> list[str]:
    """Resolves the names in the arguments that follow a subcommand.

    Raises:
        UserError: a name is unknown.
    """
    pairs: list[tuple[str, Any]] = []
    # `--optimizer.lr 0.1 --optimizer Adam` means Adam's rate, whatever comes first.
    details: list[tuple[str, Any]] = []
    collecting: list[str] | None = None
    for option, value in option_values(tokens):
        if option == "" and collecting is not None:
            collecting.append(value)
            continue
        collecting = None
        if value is None:
            pairs.append((option, value))
        elif option in ("--config", "-c"):
            pairs += _expand_config(value)
        elif option == "--model":
            pairs += _expand_model(value)
        elif option in _SWAPPED:
            pairs += _expand_swap(option, value)
        elif option in ("--images", "--data.images"):
            collecting = json.loads(value) if value.startswith("[") else [value]
            pairs.append(("--data.images", collecting))
        elif option.startswith(("--model.", "--optimizer.", "--lr_scheduler.")):
            details.append((option, value))
        else:
            pairs.append((option, value))
    return join_options(
        (option, json.dumps(value) if isinstance(value, list) else value) for option, value in pairs + details
    )


def _load_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The config {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"The config {path} is not valid YAML: {error}") from error


def _expand_config(value: str) -> list[tuple[str, str | None]]:
    if value.lstrip().startswith("{"):
        return [("--config", value)]
    path = find_config(value)
    content = _load_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"The config {path} must hold keys with values, such as `model:`; it holds {content!r:.60}.")
    # jsonargparse keeps the arguments of the class before where both share a name: SGD's rate
    # would become Adam's. A config that names a class replaces the whole entry.
    cleared = [
        (f"--{key}", "null")
        for key in ("optimizer", "lr_scheduler")
        if isinstance(content.get(key), dict) and "class_path" in content[key]
    ]
    return [*cleared, ("--config", str(path))]


def _expand_model(value: str) -> list[tuple[str, str | None]]:
    if value in zoo.ZOO:
        variant = zoo.ZOO[value]
        # A text goes as it is: within quotes a choice of texts would not know it.
        arguments = [
            (f"--model.{name}", given if isinstance(given, str) else json.dumps(given))
            for name, given in variant.arguments.items()
        ]
        return [("--model", CLASSIFIER_NAMES[variant.family]), *arguments]
    if value in CLASSIFIER_NAMES:
        return [("--model", CLASSIFIER_NAMES[value])]
    if value in CLASSIFIER_NAMES.values() or "." in value or value.lstrip().startswith("{"):
        return [("--model", value)]
    names = [*zoo.ZOO, *CLASSIFIER_NAMES, *CLASSIFIER_NAMES.values()]
    near = difflib.get_close_matches(value, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise UserError(f"There is no network called {value!r}.{hint} `hps models` lists them.")


def _expand_swap(option: str, value: str) -> list[tuple[str, str | None]]:
    folder, known = _SWAPPED[option]
    if value in _NULL:
        return [(option, "null")]
    by_file = {name.lower(): name for name in known.values()} | {"sgd_nesterov": "sgd_nesterov"}
    name = known.get(value) or by_file.get(value.lower())
    if folder == "lr_schedulers":
        by_file.pop("sgd_nesterov")
    if name in by_file.values():
        return _expand_config(f"{folder}/{name}.yaml")
    if value.endswith((".yaml", ".yml")):
        return _expand_config(value)
    if "." in value or value.lstrip().startswith("{"):
        return [(option, "null"), (option, value)]
    near = difflib.get_close_matches(value, known, n=1)
    raise UserError(
        f"There is no {option[2:]} called {value!r}.{f' Did you mean {near[0]}?' if near else ''} "
        f"Known: {', '.join(known)}."
    )
