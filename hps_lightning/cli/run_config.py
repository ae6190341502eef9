"""The config beside a checkpoint: what a training that goes on is made of, and what a stranger may have put there.

A config may name any class, which is imported, built and run. What the user types or gives with
``--config`` is his own word. What lies beside the checkpoint that he was sent is not: there, only
classes of this project, torch's optimizers and a few of Lightning's may be named.
"""

import contextlib
import importlib
import re
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal

from lightning.pytorch import Trainer
from torch.optim import Optimizer

from hps_lightning import callbacks
from hps_lightning.checkpoint_scan import unplain
from hps_lightning.cli.arguments import option_values
from hps_lightning.data import ImageDataModule
from hps_lightning.errors import UserError
from hps_lightning.modules import CLASSIFIERS
from hps_lightning.optim import OPTIMIZERS, SCHEDULES, MuonWithAuxAdam
from hps_lightning.yaml_files import parse_yaml, read_yaml

_LIGHTNING = {
    "callbacks": (
        "DeviceStatsMonitor",
        "EMAWeightAveraging",
        "EarlyStopping",
        "GradientAccumulationScheduler",
        "LearningRateMonitor",
        "ModelCheckpoint",
        "ModelSummary",
        "RichModelSummary",
        "RichProgressBar",
        "StochasticWeightAveraging",
        "TQDMProgressBar",
        "ThroughputMonitor",
        "Timer",
        "WeightAveraging",
    ),
    "loggers": ("CSVLogger", "TensorBoardLogger"),
    "plugins": ("AsyncCheckpointIO", "MixedPrecision", "TorchSyncBatchNorm"),
    "profilers": ("AdvancedProfiler", "PyTorchProfiler", "SimpleProfiler"),
    "strategies": ("DDPStrategy", "FSDPStrategy", "SingleDeviceStrategy"),
}
"""Lightning's classes that a run's config may name: those whose plain arguments make them run nothing else."""

_GROUPS: dict[str, type] = {"trainer": Trainer, "data": ImageDataModule, **callbacks.CALLBACK_OPTIONS}
_VALUES = ("seed_everything", "init_weights", "ckpt_path", "weights_only", "verbose", "return_predictions")

# A name in a registry, such as "ddp_find_unused_parameters_true"; neither a path nor a class's, nor YAML.
_WORD = re.compile(r"[\w-]*")
_PLACEHOLDER = re.compile(r"\{[^{}]*\}")
_PLAIN = (str, int, float, bool, NoneType, Path, timedelta)


def read_run_config(path: Path, own: Collection[str] = ()) -> dict[str, Any]:
    """Reads the config of the run that a checkpoint lies in.

    Args:
        path: of ``config.yaml``.
        own: what the user names himself in this command; see :func:`own_words`.

    Returns:
        What it holds: plain values, and no class but those that the module's docstring says.

    Raises:
        UserError: it cannot be read, or names anything else.
    """
    config = read_yaml(path)
    if not isinstance(config, dict):
        raise UserError(f"The config {path} must hold keys with values, such as `model:`.")
    found = foreign(config, own)
    if found is not None:
        raise UserError(
            f"The config {path} is refused: {found}. It lies beside a checkpoint, where whoever made that may have "
            f"put it, so that it may name this project's classes, torch's optimizers and Lightning's usual ones alone. "
            f"If you trust it, say so: --config {path}"
        )
    return config


def foreign(config: Mapping[str, Any], own: Collection[str] = ()) -> str | None:
    """Says what in a config may only stand in one of the user's own; None where there is nothing.

    Args:
        config: as for `hps fit`.
        own: what the user names himself; see :func:`own_words`.
    """
    # First, for what follows is recursive.
    reason = unplain(config)
    if reason is not None:
        return f"it holds {reason}"
    for key, value in config.items():
        if key in _GROUPS:
            # A text would be the path of another config.
            found = _arguments(_GROUPS[key], value, key, own) if isinstance(value, Mapping) else _unnamed(key, value)
        elif key in _VALUES:
            found = _value(value, str, key, own)
        elif key == "config":
            # The path of another one.
            found = f"`{key}` is no part of a training"
        else:
            found = _value(value, object, key, own)
        if found is not None:
            return found
    return None


def own_words(tokens: Sequence[str]) -> set[str]:
    """All texts in the user's arguments, and in the configs that he names.

    Args:
        tokens: the arguments of `hps fit`, names resolved.
    """
    words: set[str] = set()
    for option, value in option_values(list(tokens)):
        if value is None:
            continue
        text = value
        if option in ("--config", "-c") and not value.lstrip().startswith("{"):
            try:
                text = Path(value).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                # Whoever parses it says so.
                continue
        words.add(value)
        with contextlib.suppress(UserError):
            words.update(_texts(parse_yaml(text, option)))
    return words


def foreign_arguments(tokens: Sequence[str], own: Collection[str] = ()) -> str | None:
    """As :func:`foreign`, of arguments of `hps fit` that are not the user's own.

    Args:
        tokens: the arguments.
        own: what the user names himself.
    """
    for option, value in option_values(list(tokens)):
        if value is None:
            continue
        content: Any = value
        with contextlib.suppress(UserError):
            content = parse_yaml(value, option)
        if option in ("--config", "-c"):
            if not isinstance(content, Mapping):
                return f"`{option} {value}` is another file"
        else:
            for key in reversed(option.removeprefix("--").removesuffix("+").split(".")):
                content = {key: content}
        found = foreign(content, own)
        if found is not None:
            return found
    return None


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _unnamed(key: str, value: Any) -> str | None:
    return None if value is None else f"`{key}: {value!r:.60}` holds no arguments"


def _value(value: Any, hint: Any, place: str, own: Collection[str]) -> str | None:
    """What is foreign in the value of an argument.

    Args:
        value: of plain type.
        hint: the argument's type; ``object`` where it is unknown, or may be a class.
        place: for the message.
        own: what the user names himself.
    """
    if isinstance(value, str):
        if value in own or _is_plain(hint) or _WORD.fullmatch(value) or _known_class(value) is not None:
            return None
        return f"`{place}` names {value!r:.200}"
    if isinstance(value, list | tuple):
        return next(filter(None, (_value(item, hint, place, own) for item in value)), None)
    if isinstance(value, Mapping):
        if "class_path" in value:
            return _spec(value, place, own)
        return _arguments(hint, value, place, own)
    return None


def _spec(value: Mapping[str, Any], place: str, own: Collection[str]) -> str | None:
    path = value["class_path"]
    named = _known_class(path) if isinstance(path, str) else None
    if named is None and path not in own:
        return f"`{place}` names the class {path!r:.200}"
    for key, inner in value.items():
        if key == "class_path":
            continue
        described = named if key == "init_args" and named is not None else object
        if isinstance(inner, Mapping):
            found = _arguments(described, inner, f"{place}.{key}", own)
        else:
            found = _value(inner, object, f"{place}.{key}", own)
        if found is not None:
            return found
    return None


def _arguments(described: Any, values: Mapping[str, Any], place: str, own: Collection[str]) -> str | None:
    hints = _hints(described)
    for key, value in values.items():
        found = _value(value, hints.get(str(key), object), f"{place}.{key}", own)
        if found is None and isinstance(value, str) and value not in own and _leads_elsewhere(str(key), value):
            found = f"`{place}.{key}` would have {value!r:.200} written, outside the run's folder"
        if found is not None:
            return found
    return None


def _leads_elsewhere(key: str, value: str) -> bool:
    if key == "filename":
        # That of a checkpoint may hold the names of metrics, such as {val/accuracy}.
        return Path(_PLACEHOLDER.sub("", value)).name != _PLACEHOLDER.sub("", value) or value.endswith("..")
    return key == "dirpath"


def _known_class(path: str) -> type | None:
    """The class that a name or path names, if anyone's config may name it."""
    package, _, name = path.rpartition(".")
    if not package:
        candidates = {**_project_classes(), **SCHEDULES}
        if name in candidates:
            return candidates[name]
        package, _, name = OPTIMIZERS.get(path, "").rpartition(".")
    if package.startswith("lightning.pytorch."):
        kind = package.removeprefix("lightning.pytorch.").split(".")[0]
        if name not in _LIGHTNING.get(kind, ()):
            return None
        # From where Lightning offers it: nothing that the path goes through is imported.
        return _class_of(f"lightning.pytorch.{kind}", name)
    if package.split(".")[:2] in (["hps_lightning", kind] for kind in ("modules", "optim", "callbacks")):
        found = {**_project_classes(), **SCHEDULES, "MuonWithAuxAdam": MuonWithAuxAdam}.get(name)
        if found is None:
            return None
        return found if package in (found.__module__, found.__module__.rpartition(".")[0]) else None
    if package == "torch.optim" or package.startswith("torch.optim.") or path in OPTIMIZERS.values():
        found = _class_of("torch.optim" if package.startswith("torch.optim") else package, name)
        return found if found is not None and issubclass(found, Optimizer) else None
    return None


def _project_classes() -> dict[str, type]:
    classes = {classifier.__name__: classifier for classifier in CLASSIFIERS.values()}
    return {**classes, **{name: getattr(callbacks, name) for name in callbacks.__all__}}


def _class_of(module: str, name: str) -> type | None:
    found = getattr(importlib.import_module(module), name, None)
    return found if isinstance(found, type) else None


def _hints(described: Any) -> dict[str, Any]:
    # A union of a data class and None, as of the data module's augmentation.
    options = typing.get_args(described) or (described,)
    for option in options:
        if isinstance(option, type) and option is not object:
            try:
                return typing.get_type_hints(option.__init__)
            except (NameError, TypeError):
                return {}
    return {}


def _is_plain(hint: Any) -> bool:
    """Whether a text for an argument of this type is nothing but a text."""
    if hint in _PLAIN:
        return True
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return True
    if origin in (typing.Union, UnionType, list, tuple, dict, set) or origin in (Sequence, Iterable, Mapping):
        return all(part is Ellipsis or _is_plain(part) for part in inner)
    return False
