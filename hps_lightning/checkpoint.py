"""Checkpoints: reading them safely, rebuilding what they hold, and keeping the weights alone."""

import io
import os
import pickle
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from hps_lightning.checkpoint_scan import false_size, foreign_name, unplain
from hps_lightning.errors import UserError
from hps_lightning.files import replaced_whole
from hps_lightning.installed import published_folder
from hps_lightning.modules import CLASSIFIERS, RECORD_FORMAT, RECORD_KEY, ImageClassifier
from hps_lightning.optim import optimizer_class, schedule_class
from hps_lightning.state_shapes import state_shapes

_CLASSES = {classifier.__name__: classifier for classifier in CLASSIFIERS.values()}

_ZIP_START = b"PK\x03\x04"

# What PyTorch raises of damaged files, and of pickles that were made up; not MemoryError, of which no file is guilty.
_DAMAGED = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError),
    ValueError,
)

_WEIGHTS_KEYS = ("epoch", "global_step", "pytorch-lightning_version", "state_dict", "hyper_parameters", RECORD_KEY)


class DamagedCheckpointError(UserError):
    """A checkpoint is not what was written: cut off, overwritten, or with bits that have changed."""


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a checkpoint of ours without executing anything that it holds.

    Returns:
        What Lightning saved, on the CPU; :data:`RECORD_KEY` holds our record (see
        :meth:`ImageClassifier.record`).

    Raises:
        DamagedCheckpointError: the file is not what was written.
        UserError: it does not exist, is no checkpoint, or another version's.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}." + _nearby(path))
    _refuse_damaged(path)
    foreign = foreign_name(path)
    if foreign is not None:
        raise UserError(f"{path} is refused: {foreign}, and could execute code when loaded.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it is no checkpoint, or it holds more than weights and plain values, "
            "which could execute code when loaded."
        ) from error
    except _DAMAGED as error:
        raise DamagedCheckpointError(f"{path} is damaged or no checkpoint: {error}") from error
    record = checkpoint.get(RECORD_KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(record, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path} was not written by `hps fit`: it does not say which network it holds.")
    reason = unplain(record)
    if reason is not None:
        raise UserError(f"{path} is refused: what it says of its network holds {reason}.")
    for key in ("data", "metrics"):
        if not isinstance(record.get(key) or {}, dict):
            raise UserError(f"{path} is refused: what it says of its {key} is no mapping.")
    if not all(isinstance(value, int | float) for value in (record.get("metrics") or {}).values()):
        raise UserError(f"{path} is refused: a metric that it tells of is no number.")
    if record.get("format") != RECORD_FORMAT:
        raise UserError(
            f"{path} has format {record.get('format')!r}, this version of hps_lightning reads {RECORD_FORMAT}; "
            f"it was written by version {record.get('version')!r}."
        )
    return checkpoint


def _refuse_damaged(path: Path) -> None:
    """Compares the file with its checksums: PyTorch writes them, and reads weights without looking at them.

    Raises:
        DamagedCheckpointError: the two do not agree.
    """
    damaged = f"{path} is damaged or no checkpoint"
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(len(_ZIP_START))
        if not start:
            raise DamagedCheckpointError(f"{damaged}: it is empty.")
        if start != _ZIP_START:
            raise DamagedCheckpointError(f"{damaged}: it does not begin as one.")
        if not zipfile.is_zipfile(path):
            raise DamagedCheckpointError(f"{damaged}: its end is missing, it has {size:,} bytes.")
        excess = false_size(path)
        if excess is not None:
            raise DamagedCheckpointError(f"{damaged}: {excess}.")
        with zipfile.ZipFile(path) as archive:
            changed = archive.testzip()
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    # What zipfile raises where bits have changed in what describes the contents; NotImplementedError where they name a
    # compression that it does not know.
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise DamagedCheckpointError(f"{damaged}: {error}") from error
    if changed is not None:
        raise DamagedCheckpointError(f"{damaged}: the checksum of {changed} in it does not agree.")


def _nearby(path: Path) -> str:
    published = published_folder() / f"{path.name.removesuffix('.ckpt')}.ckpt"
    if published.is_file():
        return f" The published network of that name is {published}."
    folder = path if path.is_dir() else path.parent
    found = sorted(folder.glob("*.ckpt")) if folder.is_dir() else []
    return f" There are: {', '.join(map(str, found))}." if found else ""


def classifier_class(record: dict[str, Any]) -> type[ImageClassifier]:
    """The LightningModule that a record names: one of ours, or of those that the program has imported itself.

    Nothing is imported here, so that a record cannot choose what is executed.

    Raises:
        UserError: the record names neither.
    """
    model = record.get("model")
    name = model.get("class_path") if isinstance(model, dict) else None
    found = (_CLASSES.get(name) or _imported(name)) if isinstance(name, str) else None
    if found is None:
        raise UserError(
            f"The checkpoint names a network {name!r:.200} that is unknown; known are {', '.join(_CLASSES)}. "
            "If it is a class of your own that you trust, name it: --model MODULE.CLASS; a program imports it before."
        )
    return found


def _imported(path: str) -> type[ImageClassifier] | None:
    module, _, name = path.rpartition(".")
    # Not the name by getattr, for which a module may have code of its own.
    found = getattr(sys.modules.get(module), "__dict__", {}).get(name)
    return found if isinstance(found, type) and issubclass(found, ImageClassifier) else None


def check_network(path: str | os.PathLike, checkpoint: dict[str, Any]) -> None:
    """Refuses a checkpoint that names another network than the one whose weights it holds, or foreign classes.

    The network is laid out without memory for its values: a few numbers of a stranger's can make it as large as they
    like, and only weights that are there show how large it is.

    Args:
        path: of the checkpoint, for messages.
        checkpoint: what :func:`read_checkpoint` gave.

    Raises:
        UserError: the network cannot be built, or the weights do not fit it, or are more than the file has
            bytes; or its optimizer or schedule is neither torch's nor this project's.
    """
    record, weights = checkpoint[RECORD_KEY], checkpoint["state_dict"]
    classifier = classifier_class(record)
    if not isinstance(weights, dict):
        raise UserError(f"{path}: its weights are no mapping of names to tensors.")
    arguments = record["model"].get("init_args")
    if not isinstance(arguments, dict) or not all(isinstance(name, str) for name in arguments):
        raise UserError(f"{path} does not say with which arguments its network {classifier.__name__} was made.")
    for key, find in (("optimizer", optimizer_class), ("lr_scheduler", schedule_class)):
        spec = arguments.get(key)
        if spec is not None:
            try:
                find(spec["class_path"])
            except (KeyError, TypeError, UserError) as error:
                raise UserError(f"{path} is refused: it names an {key} of its own. {error}") from error
    # Each block has weights, so that no network has more blocks than tensors.
    if any(sum(blocks for blocks in value if isinstance(blocks, int)) > len(weights) for value in _lists(arguments)):
        raise UserError(f"{path}: the weights do not fit the network that the checkpoint names.")
    try:
        expected = state_shapes(classifier, arguments)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # Arguments of any kind may reach any line of a network.
        raise UserError(f"{path}: its network {classifier.__name__} cannot be built: {error}") from error
    if expected != {key: getattr(value, "shape", None) for key, value in weights.items()}:
        raise UserError(f"{path}: the weights do not fit the network that the checkpoint names.")
    # One value in the file may stand for all of a tensor's, and the network would take the memory of all.
    claimed = sum(value.numel() * value.element_size() for value in weights.values())
    size = Path(path).stat().st_size
    if claimed > size:
        raise UserError(f"{path} is refused: its weights would take {claimed:,} bytes, and it has {size:,}.")


def _lists(arguments: dict[str, Any]) -> list[list[Any]]:
    return [list(value) for value in arguments.values() if isinstance(value, list | tuple)]


def load_classifier(path: str | os.PathLike) -> ImageClassifier:
    """Rebuilds the LightningModule that a checkpoint holds, with its weights, in evaluation mode.

    Raises:
        UserError: see :func:`read_checkpoint`; or the weights do not fit the network.
    """
    return rebuilt(path, read_checkpoint(path))


def rebuilt(path: str | os.PathLike, checkpoint: dict[str, Any]) -> ImageClassifier:
    """As :func:`load_classifier`, from what :func:`read_checkpoint` gave.

    Whoever looks at a checkpoint's record too reads it once, since a training may replace the file meanwhile.

    Args:
        path: of the checkpoint, for messages.
        checkpoint: what was read.

    Raises:
        UserError: the weights do not fit the network.
    """
    check_network(path, checkpoint)
    record = checkpoint[RECORD_KEY]
    module = classifier_class(record)(**record["model"]["init_args"])
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        # Of the right shape, but of no kind that can be copied, as sparse ones.
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


def serialised(content: dict[str, Any]) -> memoryview:
    """What :func:`torch.save` makes of ``content``, in memory.

    Written to a file by itself, it says on a full disk neither that nor which file it is.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def write_whole(content: dict[str, Any], target: Path) -> None:
    """Saves ``content`` beside ``target`` and moves it into place, so that no half of it is ever seen there.

    Raises:
        UserError: the file cannot be written; an earlier one is left as it was.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replaced_whole(target) as aside:
            aside.write_bytes(serialised(content))
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}.") from error
