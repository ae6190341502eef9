"""What a user types, brought to what Lightning's CLI understands.

Lightning's CLI knows classes and paths. Here the names that people use are resolved: configs
by bare name, networks of the zoo, optimizers and schedules. The result is again a list of
arguments, so that order and precedence stay the user's.
"""

import contextlib
import inspect
import json
from collections.abc import Iterable
from typing import Any

import yaml

from hps_lightning import zoo
from hps_lightning.config_files import checked_config, find_config, read_config, replaced_whole_by
from hps_lightning.errors import UserError
from hps_lightning.names import no_name, no_network
from hps_lightning.yaml_files import check_structure, parse_yaml

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

_OF_CLASSES = ("--model.", "--optimizer.", "--lr_scheduler.")

_PAPER_RECIPE = "hps.yaml"

_LINKED = {
    "--model.num_classes": "--data.dataset",
    "--model.optimizer": "--optimizer",
    "--model.lr_scheduler": "--lr_scheduler",
}
"""Arguments of networks that follow other options; the parser would drop what is given for them, without a word."""

_PATHS = ("--ckpt_path", "--init_weights")


def is_null(text: str | None) -> bool:
    """Whether an option is not given, or given as what people write for nothing."""
    return text in (None, "null", "none", "None")


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


def with_recipe(argv: list[str]) -> list[str]:
    """The arguments of `hps fit`, as typed; the paper's recipe before them where they name a network alone.

    With it goes the data set that the network was published for, where that is not the recipe's.

    Raises:
        UserError: they name neither a network nor a checkpoint.
    """
    options = dict(option_values(argv))
    if not is_null(options.get("--ckpt_path")) or {"--config", "-c"} & set(options):
        return argv
    if "--model" in options:
        variant = zoo.ZOO.get(options["--model"])
        other = variant is not None and "cifar10" not in variant.datasets
        return ["--config", _PAPER_RECIPE, *(["--data.dataset", variant.datasets[0]] if other else []), *argv]
    if not asks_for_help(options):
        raise UserError(
            "`hps fit` needs a network: --config hps.yaml, or --model NAME with a name that `hps models` lists."
        )
    return argv


def asks_for_help(options: Iterable[str]) -> bool:
    """Whether options, as :func:`option_values` splits them, ask for a text instead of a run."""
    return any(option in ("-h", "--help", "--print_config") or option.endswith(".help") for option in options)


def expand(tokens: list[str]) -> list[str]:
    """Resolves the names in the arguments that follow a subcommand.

    Raises:
        UserError: a name is unknown.
    """
    pairs: list[tuple[str, Any]] = []
    # `--optimizer.lr 0.1 --optimizer Adam` means Adam's rate, whatever comes first.
    details: list[tuple[str, Any]] = []
    collecting: list[str] | None = None
    # The class that the arguments so far name; beside a checkpoint, whose network counts, no matter.
    network: str | None = None
    continues = not is_null(dict(option_values(tokens)).get("--ckpt_path"))
    for option, value in option_values(tokens):
        if option == "" and collecting is not None:
            collecting.append(value)
            continue
        collecting = None
        if value is not None:
            # The parser takes any value for YAML; what is none stays a text.
            with contextlib.suppress(yaml.YAMLError, ValueError):
                check_structure(value, option)
        if value is None:
            if option.startswith(_OF_CLASSES) and not option.endswith(".help"):
                raise UserError(f"{option} needs a value.")
            pairs.append((option, value))
        elif option in ("--config", "-c"):
            expanded, named = _expand_config(value, None if continues else network)
            pairs += expanded
            network = named or network
        elif option == "--model":
            pairs += _expand_model(value)
            network = _class_named(pairs)
        elif option in _SWAPPED:
            pairs += _expand_swap(option, value)
        elif option in _PATHS and is_null(value):
            # The parser would take some of these for the name of a file.
            pairs.append((option, "null"))
        elif option in ("--images", "--data.images"):
            collecting = _images(value)
            pairs.append(("--data.images", collecting))
        elif option.replace(".init_args.", ".") in _LINKED:
            raise UserError(f"{option} has no value of its own: {_LINKED[option.replace('.init_args.', '.')]} sets it.")
        elif option.startswith(_OF_CLASSES):
            details.append((option, value))
        else:
            pairs.append((option, value))
    return join_options(
        (option, json.dumps(value) if isinstance(value, list) else value) for option, value in pairs + details
    )


def _images(value: str) -> list[Any]:
    if value.startswith("["):
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return [value]


def _expand_config(value: str, network: str | None) -> tuple[list[tuple[str, str | None]], str | None]:
    """A config's options, and the class of the network that it names, if it names one.

    Args:
        value: a config's name or path, or its content.
        network: the class that is named before.
    """
    if value.lstrip().startswith("{"):
        content = checked_config(parse_yaml(value, "--config"), "--config")
    else:
        path = find_config(value)
        content, value = read_config(path), str(path)
    pairs: list[tuple[str, str | None]] = [(f"--{key}", "null") for key in replaced_whole_by(content)]
    named = _last_part(content.get("model"))
    if network is not None and named not in (None, network):
        family = next((family for family, name in CLASSIFIER_NAMES.items() if name == named), None)
        pairs += [("--model", "null")] if family is None else _family(family, {})
    return [*pairs, ("--config", value)], named


def _class_named(pairs: list[tuple[str, Any]]) -> str | None:
    """The class that the last of the options names that name a network."""
    value = next(value for option, value in reversed(pairs) if option == "--model")
    return _last_part(parse_yaml(value, "--model") if value.lstrip().startswith("{") else value)


def _last_part(model: Any) -> str | None:
    """The name of the class that is given for a network, without its module."""
    path = model.get("class_path") if isinstance(model, dict) else model
    return path.rpartition(".")[2] if isinstance(path, str) else None


def option_text(value: Any) -> str:
    """A plain value as the parser reads it; a text goes as it is: within quotes a choice of texts would not know it."""
    return value if isinstance(value, str) else json.dumps(value)


def _expand_model(value: str) -> list[tuple[str, str | None]]:
    if value in zoo.ZOO:
        return _family(zoo.ZOO[value].family, zoo.ZOO[value].arguments)
    for family, name in CLASSIFIER_NAMES.items():
        if value in (family, name):
            return _family(family, {})
    if "." in value or value.lstrip().startswith("{"):
        # A config's arguments are another network's, whatever they are called.
        return [("--model", "null"), ("--model", value)]
    names = [*zoo.ZOO, *CLASSIFIER_NAMES, *CLASSIFIER_NAMES.values()]
    raise UserError(no_network(value, names))


def _family(family: str, arguments: dict[str, Any]) -> list[tuple[str, str | None]]:
    # jsonargparse keeps the arguments of the class before where both share a name: a config's stages or dropout would
    # become those of another network. How it is trained (label_smoothing and the like) is the config's word.
    parameters = inspect.signature(zoo.FAMILIES[family]).parameters.values()
    own = {parameter.name: parameter.default for parameter in parameters if parameter.name != "num_classes"}
    return [
        ("--model", CLASSIFIER_NAMES[family]),
        *((f"--model.{name}", option_text(given)) for name, given in {**own, **arguments}.items()),
    ]


def _expand_swap(option: str, value: str) -> list[tuple[str, str | None]]:
    folder, known = _SWAPPED[option]
    if is_null(value):
        return [(option, "null")]
    by_file = {name.lower(): name for name in known.values()} | {"sgd_nesterov": "sgd_nesterov"}
    name = known.get(value) or by_file.get(value.lower())
    if folder == "lr_schedulers":
        by_file.pop("sgd_nesterov")
    if name in by_file.values():
        return _expand_config(f"{folder}/{name}.yaml", None)[0]
    if value.endswith((".yaml", ".yml")):
        return _expand_config(value, None)[0]
    if "." in value or value.lstrip().startswith("{"):
        return [(option, "null"), (option, value)]
    raise UserError(no_name(option[2:], value, known))
