"""Checkpoints: reading them safely, rebuilding what they hold, and keeping the weights alone."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from hps_lightning.errors import UserError
from hps_lightning.files import replaced_whole
from hps_lightning.modules import CLASSIFIERS, RECORD_FORMAT, RECORD_KEY, ImageClassifier

_CLASSES = {classifier.__name__: classifier for classifier in CLASSIFIERS.values()}

_WEIGHTS_KEYS = ("epoch", "global_step", "pytorch-lightning_version", "state_dict", "hyper_parameters", RECORD_KEY)


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a checkpoint of ours without executing anything that it holds.

    Returns:
        What Lightning saved, on the CPU; :data:`RECORD_KEY` holds our record (see
        :meth:`ImageClassifier.record`).

    Raises:
        UserError: the file does not exist, is damaged, is no checkpoint, or another version's.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}." + _nearby(path))
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it is no checkpoint, or it holds more than weights and plain values, "
            "which could execute code when loaded."
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged or no checkpoint: {error}") from error
    record = checkpoint.get(RECORD_KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(record, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path} was not written by `hps fit`: it does not say which network it holds.")
    if record.get("format") != RECORD_FORMAT:
        raise UserError(
            f"{path} has format {record.get('format')!r}, this version of hps_lightning reads {RECORD_FORMAT}; "
            f"it was written by version {record.get('version')!r}."
        )
    return checkpoint


def _nearby(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    found = sorted(folder.glob("*.ckpt")) if folder.is_dir() else []
    return f" There are: {', '.join(map(str, found))}." if found else ""


def classifier_class(record: dict[str, Any]) -> type[ImageClassifier]:
    """The LightningModule that a record names; nothing but our own can be named.

    Raises:
        UserError: the record names none of ours.
    """
    name = record.get("model", {}).get("class_path")
    if name not in _CLASSES:
        raise UserError(f"The checkpoint names a network {name!r} that is unknown; known are {', '.join(_CLASSES)}.")
    return _CLASSES[name]


def load_classifier(path: str | os.PathLike) -> ImageClassifier:
    """Rebuilds the LightningModule that a checkpoint holds, with its weights, in evaluation mode.

    Raises:
        UserError: see :func:`read_checkpoint`; or the weights do not fit the network.
    """
    checkpoint = read_checkpoint(path)
    record = checkpoint[RECORD_KEY]
    module = classifier_class(record)(**record["model"]["init_args"])
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise UserError(f"{path}: the weights do not fit the network that the checkpoint names.") from error
    return module.eval()


def save_weights(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Writes a checkpoint's weights and record without optimizer, schedule and callback state.

    The result is what `hps test` and `hps predict` need and what belongs into ``checkpoints/``;
    a path of the machine that trained it is left out.

    Raises:
        UserError: see :func:`read_checkpoint`; or the target cannot be written.
    """
    checkpoint = read_checkpoint(source)
    slim = {key: checkpoint[key] for key in _WEIGHTS_KEYS if key in checkpoint}
    data = slim[RECORD_KEY].get("data")
    if data:
        data["root"] = None
    write_whole(slim, Path(target))


def write_whole(content: dict[str, Any], target: Path) -> None:
    """Saves ``content`` beside ``target`` and moves it into place, so that no half of it is ever seen there.

    Raises:
        UserError: the file cannot be written; an earlier one is left as it was.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replaced_whole(target) as aside:
            torch.save(content, aside)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{target} cannot be written: {error}") from error
