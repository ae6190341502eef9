"""Weights for the board: a state dict in PyTorch's legacy format with a manifest, written as one."""

import contextlib
import hashlib
import inspect
import io
import json
import os
import platform
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hps_lightning import __version__
from hps_lightning.errors import UserError

WEIGHTS_FILE = "weights.pt"
MANIFEST_FILE = "manifest.json"
MANIFEST_FORMAT = 1

_WRAPPERS = ("module.", "model.", "network.")
# What a file manager may leave in any folder that it shows.
_INCIDENTAL = (".DS_Store",)
_NORMALISATION = "(value / 255 - mean) / std, channel by channel, of RGB values from 0 to 255"


def bare_network(network: nn.Module) -> nn.Module:
    """The network inside what ``torch.compile`` and data parallelism wrap around it."""
    while True:
        if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            network = network.module
        elif hasattr(network, "_orig_mod"):
            network = network._orig_mod
        else:
            return network


def board_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of a state dict as PyTorch 1.1 on a CPU takes it.

    Args:
        state_dict: of a network, or of a module that wraps one.

    Returns:
        Contiguous CPU tensors, floating-point ones as float32, under the bare network's names:
        without ``module.``, ``model.`` or ``network.`` in front, and without ``_orig_mod.``.
    """
    weights = {key.replace("_orig_mod.", ""): _board_tensor(value) for key, value in state_dict.items()}
    # A prefix that only some keys have is a part of the network, not a wrapper.
    while weights and (prefix := next((p for p in _WRAPPERS if all(key.startswith(p) for key in weights)), None)):
        weights = {key[len(prefix) :]: value for key, value in weights.items()}
    return weights


def _board_tensor(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    # Training runs channels-last; a clone, since contiguous() keeps the strides of sides of length 1.
    return tensor.detach().to("cpu", dtype).clone(memory_format=torch.contiguous_format)


def describe(network: nn.Module, record: Mapping[str, Any], metric: str | None = None) -> dict[str, Any]:
    """The manifest of a network, but for what :func:`export_weights` adds about the file of weights.

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
        UserError: the record does not describe the data, or names arguments that do not
            rebuild the network.
    """
    missing = [key for key in ("dataset", "classes", "mean", "std", "image_size", "protocol") if key not in record]
    if missing:
        raise UserError(
            f"An export needs to know the data, but nothing tells {', '.join(missing)}; "
            "train with hps_lightning.data.ImageDataModule."
        )
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
        # The meta device holds no values, so that no random number is drawn from a running training.
        with torch.device("meta"):
            rebuilt = type(network)(**arguments).state_dict()
        plain = json.loads(json.dumps(arguments, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} cannot be rebuilt from the arguments {arguments}: {error}") from error
    if "num_classes" not in plain or _shapes(rebuilt) != _shapes(network.state_dict()):
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
    value = float(record["metrics"][metric])
    return {"metric": metric, "value": value, "protocol": protocol, "measured_on": measured_on}


def export_weights(weights: Mapping[str, Tensor], directory: str | os.PathLike, manifest: Mapping[str, Any]) -> Path:
    """Writes weights with their manifest, both or neither.

    An earlier export in ``directory`` stays as it is until the new one is complete. Should the
    process be killed in the instant in which one takes the other's place, the earlier one is
    found, complete, in ``<directory>.previous``.

    Args:
        weights: a state dict; see :func:`board_weights` for what becomes of it.
        directory: where :data:`WEIGHTS_FILE` and :data:`MANIFEST_FILE` are put; made if missing.
        manifest: what :func:`describe` returns.

    Returns:
        The directory.

    Raises:
        UserError: a weight is not finite, the directory cannot be written, or it holds other
            files, which replacing it would delete.
    """
    weights = board_weights(weights)
    for key, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"The weights {key} hold NaN or infinite values: this training has diverged.")
    buffer = io.BytesIO()
    # PyTorch 1.1, the board's, does not read the zip format.
    torch.save(weights, buffer, _use_new_zipfile_serialization=False)
    content = buffer.getvalue()
    file = {"file": WEIGHTS_FILE, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    text = json.dumps({**manifest, "weights": file}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with staged_directory(directory, (WEIGHTS_FILE, MANIFEST_FILE)) as folder:
        _write(folder / WEIGHTS_FILE, content)
        _write(folder / MANIFEST_FILE, text.encode())
    return Path(directory)


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def staged_directory(directory: str | os.PathLike, names: Collection[str]) -> Iterator[Path]:
    """A fresh folder beside ``directory`` that takes its place, whole, when the block ends without an exception.

    Args:
        directory: what to make or replace.
        names: what an earlier ``directory`` may hold, and so may be replaced.

    Raises:
        UserError: ``directory`` cannot be written, or it holds something else.
    """
    directory = Path(directory).expanduser().resolve()
    _refuse_others(directory, names)
    previous = directory.with_name(f"{directory.name}.previous")
    _refuse_others(previous, names)
    aside = directory.with_name(f".{directory.name}.{uuid.uuid4().hex}")
    try:
        aside.mkdir(parents=True)
        yield aside
        _replace(directory, aside, previous)
    except OSError as error:
        raise UserError(f"{directory} cannot be written: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _refuse_others(directory: Path, names: Collection[str]) -> None:
    try:
        others = [path.name for path in directory.iterdir() if path.name not in (*names, *_INCIDENTAL)]
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{directory} cannot be written: {error}") from error
    if others:
        raise UserError(f"{directory} holds {min(others)}, which is no part of an export; choose another directory.")


def _replace(directory: Path, aside: Path, previous: Path) -> None:
    if not directory.exists():
        # Only a process killed between the two renames below leaves `previous` alone; it has served now.
        aside.rename(directory)
    else:
        shutil.rmtree(previous, ignore_errors=True)
        directory.rename(previous)
        try:
            aside.rename(directory)
        except BaseException:
            previous.rename(directory)
            raise
    shutil.rmtree(previous, ignore_errors=True)


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
