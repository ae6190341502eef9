"""The manifest of an export: which network it is, what it takes, and which files belong to it."""

import hashlib
import inspect
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hps_lightning import __version__
from hps_lightning.bluebox.weights import bare_network
from hps_lightning.errors import UserError
from hps_lightning.state_shapes import state_shapes

MANIFEST_FILE = "manifest.json"
MANIFEST_FORMAT = 1
WEIGHTS_FILE = "weights.pt"

# As board/bundle.py has it: a record gone wrong must not take the memory.
_LARGEST_SIDE = 4096

_NORMALISATION = "(value / 255 - mean) / std, channel by channel, of RGB values from 0 to 255"


def describe(network: nn.Module, record: Mapping[str, Any], metric: str | None = None) -> dict[str, Any]:
    """The manifest of a network, but for what the export adds about its files.

    Args:
        network: the network, wrapped or bare; its weights are not looked at.
        record: what ``ImageClassifier.record()`` returns, or a checkpoint keeps.
        metric: the name in ``record["metrics"]`` that was measured on exactly the weights that
            are exported, such as ``val/accuracy``; None where nothing was.

    Returns:
        Plain JSON: ``format``, ``network`` (``class``, ``file``, ``arguments``), ``input``
        (``shape``, ``layout``, ``channel_order``, ``mean``, ``std``, ``normalisation``),
        ``dataset``, ``classes``, ``accuracy`` (None, or ``metric``, ``value``, ``protocol``,
        ``measured_on``), ``epoch`` (counted from 0) and ``versions``.

    Raises:
        UserError: the record does not describe the data, or as no data can be; or it names
            arguments that do not rebuild the network.
    """
    missing = [key for key in ("dataset", "classes", "mean", "std", "image_size", "protocol") if key not in record]
    if missing:
        raise UserError(
            f"An export needs to know the data, but nothing tells {', '.join(missing)}; "
            "train with hps_lightning.data.ImageDataModule."
        )
    _check_data(record)
    network = bare_network(network)
    arguments = _arguments(network, record["model"]["init_args"])
    classes = list(record["classes"])
    if arguments["num_classes"] != len(classes):
        raise UserError(
            f"The network tells {arguments['num_classes']} classes apart, but {record['dataset']} has {len(classes)}."
        )
    return {
        "format": MANIFEST_FORMAT,
        "network": {
            "class": type(network).__name__,
            "file": _source_file(network),
            "arguments": arguments,
        },
        "input": {
            "shape": list(record["image_size"]),
            "layout": "channels x height x width",
            "channel_order": "RGB",
            "mean": list(record["mean"]),
            "std": list(record["std"]),
            "normalisation": _NORMALISATION,
        },
        "dataset": record["dataset"],
        "classes": classes,
        "accuracy": None if metric is None else _accuracy(metric, record),
        "epoch": record.get("epoch"),
        "versions": {"hps_lightning": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def refuse_other_images(manifest: Mapping[str, Any]) -> None:
    """Refuses a network whose images are not what a bundle makes of a camera's frames: RGB, as high as wide.

    Args:
        manifest: what :func:`describe` returns.

    Raises:
        UserError: the network takes others.
    """
    channels, height, width = manifest["input"]["shape"]
    if channels != 3 or height != width:
        raise UserError(
            f"A bundle takes RGB images that are as high as wide; those of {manifest['dataset']} are "
            f"{channels} x {height} x {width}. Export weights and manifest alone."
        )


def _check_data(record: Mapping[str, Any]) -> None:
    # Whoever made a checkpoint may have put anything there.
    size, mean, std = record["image_size"], record["mean"], record["std"]
    _require(isinstance(record["dataset"], str), record, "dataset", "a name")
    _require(isinstance(record["protocol"], str), record, "protocol", "a name")
    _require(_are(record["classes"], str) and len(record["classes"]) > 0, record, "classes", "a list of names")
    sides = _are(size, int) and len(size) == 3 and all(1 <= side <= _LARGEST_SIDE for side in size)
    _require(sides, record, "image_size", f"channels, height and width from 1 to {_LARGEST_SIDE}")
    for key in ("mean", "std"):
        numbers = _are(record[key], (int, float)) and len(record[key]) == size[0]
        _require(numbers, record, key, f"{size[0]} numbers, one a channel")
    zeros = [0.0] * size[0]
    _require(_normalises(zeros, std), record, "std", "numbers above 0 that images can be divided by")
    # Divided by the std, as on the board.
    _require(_normalises(mean, std), record, "mean", "numbers that can be taken from images")
    _require(isinstance(record.get("metrics", {}), Mapping), record, "metrics", "numbers by their names")
    _require(type(record.get("epoch")) in (int, type(None)), record, "epoch", "a whole number")


def _require(sound: bool, record: Mapping[str, Any], key: str, kind: str) -> None:
    if not sound:
        raise UserError(f"An export needs to know the data, but its {key} is {record[key]!r:.80}, not {kind}.")


def _are(values: Any, kind: type | tuple[type, ...]) -> bool:
    """Whether it is a list of values of a kind; a truth value is no number."""
    if not isinstance(values, list | tuple):
        return False
    return all(isinstance(value, kind) and not isinstance(value, bool) for value in values)


def _normalises(mean: Sequence[float], std: Sequence[float]) -> bool:
    """Whether the board's float32 holds the factors that images are normalised with."""
    try:
        with np.errstate(all="ignore"):
            mean_, std_ = np.array(mean, np.float32), np.array(std, np.float32)
            return bool((std_ > 0).all() and np.isfinite([std_, 1 / (255 * std_), mean_ / std_]).all())
    except OverflowError:
        return False


def _source_file(network: nn.Module) -> str:
    try:
        return os.path.basename(inspect.getfile(type(network)))
    except (OSError, TypeError) as error:
        raise UserError(f"{type(network).__name__} is in no file that could be copied onto a board.") from error


def _arguments(network: nn.Module, init_args: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a classifier's arguments that its network takes, checked to rebuild the network."""
    name = type(network).__name__
    arguments = {key: init_args[key] for key in inspect.signature(type(network)).parameters if key in init_args}
    try:
        rebuilt = state_shapes(type(network), arguments)
        plain = json.loads(json.dumps(arguments, allow_nan=False))
    except Exception as error:  # A network's own code raises what it likes.
        raise UserError(f"{name} cannot be rebuilt from the arguments {arguments}: {error}") from error
    if "num_classes" not in plain or rebuilt != _shapes(network.state_dict()):
        raise UserError(f"{name} with the arguments {plain} is another network than the one to export.")
    return plain


def _shapes(state_dict: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key.replace("_orig_mod.", ""): value.shape for key, value in state_dict.items()}


def _accuracy(metric: str, record: Mapping[str, Any]) -> dict[str, Any]:
    protocol = record["protocol"]
    if metric.startswith("test/") or protocol == "paper":
        measured_on = "the test images"
    elif protocol == "holdout":
        measured_on = "training images that were held out"
    else:
        measured_on = "the validation images"
    value = record["metrics"][metric]
    if not _are([value], (int, float)) or not math.isfinite(value):
        raise UserError(f"{metric} is {value!r:.80}, which is no accuracy.")
    value = float(value)
    return {"metric": metric, "value": value, "protocol": protocol, "measured_on": measured_on}


def load_manifest(directory: str | os.PathLike) -> dict[str, Any]:
    """The manifest of an export, after checking that the weights beside it are those that it describes.

    Raises:
        UserError: either file is missing or damaged, of another format, or belongs to another
            export; the message names the file.
    """
    path = Path(directory, MANIFEST_FILE)
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_FORMAT:
        raise UserError(f"{path} is no manifest of format {MANIFEST_FORMAT}, the one that this version reads.")
    weights = path.with_name(WEIGHTS_FILE)
    try:
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{weights} cannot be read: {error}") from error
    described = manifest.get("weights")
    if not isinstance(described, dict) or digest != described.get("sha256"):
        raise UserError(f"{weights} is damaged or of another export: its SHA-256 is not the one in {MANIFEST_FILE}.")
    return manifest
