"""Writes what goes onto the board: weights with their manifest, or a bundle that runs by itself."""

import ast
import hashlib
import inspect
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hps_lightning.bluebox.board.bundle import Bundle, BundleError
from hps_lightning.bluebox.folded import TOLERANCE, answers, folded_network
from hps_lightning.bluebox.manifest import MANIFEST_FILE, MANIFEST_FORMAT, WEIGHTS_FILE, describe, refuse_other_images
from hps_lightning.bluebox.staging import destination, refuse_others, staged_directory, write_file
from hps_lightning.bluebox.weights import bare_network, board_weights, legacy_file, restored
from hps_lightning.data.batches import normalise
from hps_lightning.errors import UserError, say_trouble

# Set where a bundle is tried, for a network's file that would export one.
_CHECKING = "HPS_BUNDLE_IS_TRIED"
_TRIED = "tried"
_PATIENCE_S = 120

BOARD_FOLDER = Path(__file__).with_name("board")
"""What is copied into every bundle as it stands."""

BOARD_FILES = ("bundle.py", "classify.py", "folding.py", "frames.py", "rtmaps_block.py", "selftest.py")
GOLDEN_FILE = "golden.npz"
ONNX_FILE = "network.onnx"
INT8_FILE = "network-int8.onnx"
README_FILE = "README.md"

_ON_X86 = f"""\
On x86, give sessions of `{INT8_FILE}` options with
`options.add_session_config_entry("session.x64quantprecision", "1")`, as the self-test does: on processors without VNNI
sums in 8 bits overflow without it, and the answers are wrong. On those with AMX, answers in 8 bits that several threads
compute are wrong before ONNX Runtime 1.25: have it, or set `options.intra_op_num_threads = 1`. Arm processors need
nothing."""
# Of the standard library, what a board's Python 3.5 may not have yet.
_NEWER_THAN_THE_BOARD = {"annotationlib", "compression", "contextvars", "dataclasses", "graphlib", "secrets", "tomllib"}
_NEWER_THAN_THE_BOARD |= {"importlib.metadata", "importlib.resources", "zoneinfo"}
_GOLDEN_IMAGES = 8
_GOLDEN_FRAME = (75, 100)


def export_weights(
    weights: Mapping[str, Tensor],
    directory: str | os.PathLike,
    manifest: Mapping[str, Any],
    network: nn.Module | None = None,
) -> Path:
    """Writes weights with their manifest, both or neither.

    An earlier export in ``directory`` stays as it is until the new one is complete. Should the
    process be killed in the instant in which one takes the other's place, the earlier one is
    found, complete, in a folder ``.<directory>.<letters>.previous`` beside it.

    Args:
        weights: a state dict; see :func:`board_weights` for what becomes of it.
        directory: where ``weights.pt`` and ``manifest.json`` are put; made if missing.
        manifest: what :func:`describe` returns.
        network: whose weights they are; see :func:`board_weights`.

    Returns:
        The directory.

    Raises:
        UserError: a weight is not finite, the directory cannot be written, or it holds other
            files, which replacing it would delete.
    """
    content = legacy_file(board_weights(weights, network))
    manifest = {**manifest, "weights": {"file": WEIGHTS_FILE, **_identity(content)}}
    return _write({WEIGHTS_FILE: content}, manifest, directory)


def export_bundle(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    directory: str | os.PathLike,
    record: Mapping[str, Any],
    metric: str | None = None,
    folded: bool = True,
    models: Mapping[str, bytes] | None = None,
    formats: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Writes a folder that runs on the board: numpy and PyTorch 1.1 are all that it needs there.

    Of the network's code it holds the file of its class alone, and warns where that file imports more than those.

    Args:
        network: whose class and arguments are exported, wrapped or bare.
        weights: a state dict of it, not necessarily its present one.
        directory: made if missing; an earlier export is replaced as :func:`export_weights` does.
        record: see :func:`describe`.
        metric: see :func:`describe`.
        folded: whether the board folds batch norms into convolutions, and leaves out what no layer
            reads, when it loads the network.
        models: the network as ONNX, by file name: :data:`ONNX_FILE`, :data:`INT8_FILE`.
        formats: what was measured of the files; see ``formats.compare_formats``.

    Returns:
        The directory.

    Raises:
        UserError: as :func:`describe` and :func:`export_weights`; or the network takes images that
            no bundle does, cannot be run on them, or its answers are not finite; or its file is called as one of
            the bundle's own; or the bundle, run from its folder, would not give the network's answers.
    """
    manifest = describe(network, record, metric)
    refuse_other_images(manifest)
    manifest["network"]["folded"] = folded
    manifest["formats"] = list(formats)
    weights = board_weights(weights, network)
    content = legacy_file(weights)
    exported = restored(network, weights)
    if folded:
        folded_network(exported, manifest)
    source = Path(inspect.getfile(type(bare_network(network))))
    if source.name in BOARD_FILES:
        raise UserError(f"A bundle has a {source.name} of its own, which {source} would replace; rename it.")
    files = {name: (BOARD_FOLDER / name).read_bytes() for name in BOARD_FILES}
    try:
        files[source.name] = source.read_bytes()
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error.strerror}.") from error
    _warn_of_imports(source.name, files[source.name])
    files[WEIGHTS_FILE] = content
    files.update(models or {})
    golden = _golden(exported, manifest, models or {})
    files[GOLDEN_FILE] = _archive(golden)
    files[README_FILE] = _readme(manifest).encode()
    manifest["weights"] = {"file": WEIGHTS_FILE, **_identity(content)}
    manifest["files"] = {name: _identity(files[name]) for name in sorted(files)}
    if type(bare_network(network)).__module__.startswith("hps_lightning."):
        return _write(files, manifest, directory, partial(_check_bundle, manifest=manifest, golden=golden))
    return _write(files, manifest, directory, partial(_check_bundle_apart, manifest=manifest))


def _warn_of_imports(name: str, source: bytes) -> None:
    """Says what a network's file needs beyond the bundle, where it would be found missing on the board alone."""
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError):
        # Changed since it was imported.
        raise UserError(f"{name} has been changed and is no Python any more; mend it, and export again.") from None
    needed: list[str] = []
    for statement in statements:
        if isinstance(statement, ast.Import):
            needed += [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            needed.append("." * statement.level + (statement.module or ""))
    held = {"numpy", "torch", *sys.stdlib_module_names} - _NEWER_THAN_THE_BOARD
    missing = sorted(
        {module for module in needed if module.split(".")[0] not in held or module in _NEWER_THAN_THE_BOARD}
    )
    if missing:
        say_trouble(
            f"{name} imports {', '.join(missing)}, which this bundle does not hold; without them on the board it does "
            "not run there. A network's file that needs PyTorch and numpy alone runs everywhere."
        )


def refuse_full_directory(directory: str | os.PathLike) -> None:
    """Refuses a folder that holds something.

    Raises:
        UserError: it does, or it cannot be read, or it is no folder; or see
            :func:`~hps_lightning.bluebox.staging.destination`.
    """
    path = _folder(directory)
    try:
        full = path.exists() and any(path.iterdir())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if full:
        raise UserError(f"{path} is not empty; choose another folder, or replace an earlier export: --replace.")


def refuse_other_files(directory: str | os.PathLike, network: nn.Module) -> None:
    """Refuses a folder with files that no export of ``network`` may replace.

    Raises:
        UserError: it holds such, or it cannot be read; or see
            :func:`~hps_lightning.bluebox.staging.destination`.
    """
    path = _folder(directory)
    refuse_others(
        path, _replaceable(path, [os.path.basename(inspect.getfile(type(bare_network(network))))]), "an export"
    )


def _folder(directory: str | os.PathLike) -> Path:
    path = destination(directory)
    try:
        is_file = path.exists() and not path.is_dir()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if is_file:
        raise UserError(f"{path} is a file; an export is a folder. Choose another name.")
    return path


def _replaceable(directory: Path, names: Iterable[str]) -> set[str]:
    """What an export of files of these names may replace: an export, and no folder that has files of such names."""
    earlier = _earlier_names(directory)
    return set() if earlier is None else {*_exported_names(), *names, *earlier}


def _identity(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _write(
    files: Mapping[str, bytes],
    manifest: Mapping[str, Any],
    directory: str | os.PathLike,
    check: Callable[[Path], None] = lambda folder: None,
) -> Path:
    text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with staged_directory(directory, _replaceable(destination(directory), files)) as folder:
        for name, content in files.items():
            write_file(folder / name, content)
        write_file(folder / MANIFEST_FILE, text.encode())
        check(folder)
    return Path(directory)


def _check_bundle(folder: Path, manifest: Mapping[str, Any], golden: Mapping[str, np.ndarray]) -> None:
    """Runs the bundle of a network of ours from its folder, as a board does.

    Its network is built from what the classifier and the network call alike: one that is given more is another there.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.autocast("cpu", enabled=False):
            bundle = Bundle(str(folder))
            logits = np.concatenate([bundle.logits(image[np.newaxis]).numpy() for image in golden["images"]])
    except BundleError as error:
        raise _does_not_run(str(error).replace(f"{folder}{os.sep}", ""), manifest) from error
    off = np.abs(logits - golden["logits"]).max()
    if not off <= TOLERANCE * max(1, np.abs(golden["logits"]).max()):
        raise _is_another(f"gives logits that are {off:.2g} off", manifest)


def _check_bundle_apart(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Runs the bundle of a user's own network in a process of its own: its file may do more than define one.

    And it may have been edited since it was imported.
    """
    if _CHECKING in os.environ:
        raise UserError(_does_more(manifest))
    # What the file imports need not be on the board, of which it is warned; here it is found as it was.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), _CHECKING: "1"}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": ""}
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import selftest; selftest.check({str(folder)!r})"
    code += f"; print({_TRIED!r})"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=_PATIENCE_S
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(_does_more(manifest)) from error
    except OSError as error:
        raise UserError(f"The bundle cannot be tried: {error}") from error
    if done.returncode == 0 and done.stdout.endswith(f"{_TRIED}\n"):
        return
    said = done.stderr.strip().rpartition("\n")[2] or f"it ends with status {done.returncode}, before it has answered"
    reason = said.replace(f"{folder}{os.sep}", "").removeprefix("bundle.BundleError: ")
    raise _is_another(reason, manifest) if "logits are" in reason else _does_not_run(reason, manifest)


def _does_more(manifest: Mapping[str, Any]) -> str:
    return (
        f"{manifest['network']['file']} does more than define a network when it is imported, and would on the board; "
        'have it behind `if __name__ == "__main__":`, or the network in a file of its own.'
    )


def _does_not_run(reason: str, manifest: Mapping[str, Any]) -> UserError:
    return UserError(
        f"The bundle would not run on a board: {reason}. It holds {manifest['network']['file']} alone of the network's "
        "code: have in that file all that it needs, but PyTorch and numpy."
    )


def _is_another(reason: str, manifest: Mapping[str, Any]) -> UserError:
    described = manifest["network"]
    arguments = ", ".join(f"{key}={value!r}" for key, value in described["arguments"].items())
    return UserError(
        f"The bundle would be another network than the one to export: {described['class']}({arguments}), made by "
        f"{described['file']} as it is now, differs ({reason}). Let the LightningModule have each argument of the "
        "network under the network's name for it; and a file that has been edited since the training began must be as "
        "it was."
    )


def _exported_names() -> set[str]:
    """All names that an export may have, of whatever network of ours."""
    networks = Path(__file__).parent.with_name("networks").glob("*.py")
    written = {MANIFEST_FILE, WEIGHTS_FILE, ONNX_FILE, INT8_FILE, GOLDEN_FILE, README_FILE}
    return {*written, *BOARD_FILES, *(path.name for path in networks)}


def _earlier_names(directory: Path) -> set[str] | None:
    """What an export that lies there says that it holds: its network may be out of a user's own file. None without."""
    try:
        manifest = json.loads((directory / MANIFEST_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_FORMAT:
        return None
    files = manifest.get("files")
    return set(files) if isinstance(files, dict) else set()


def _golden(network: nn.Module, manifest: Mapping[str, Any], models: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    """Images with the answers in each format, and a frame with Pillow's reduction of it, for the self-test."""
    side = manifest["input"]["shape"][1]
    # Of seeded noise at several scales: no data set need be at hand, and no image is anybody's.
    random = np.random.RandomState(0)
    images = np.stack([_noise(random, side, side, 2 + scale) for scale in range(_GOLDEN_IMAGES)])
    frame = _noise(random, *_GOLDEN_FRAME, 12)
    resized = np.array(Image.fromarray(frame[:, :, ::-1].copy()).resize((side, side), Image.Resampling.BILINEAR))
    means, stds = manifest["input"]["mean"], manifest["input"]["std"]
    inputs = normalise(torch.from_numpy(images).permute(0, 3, 1, 2), means, stds)
    logits = answers(network, inputs).numpy()
    if not np.isfinite(logits).all():
        raise UserError("The network answers NaN or infinite values: this training has diverged.")
    probabilities = {name: _probabilities(model, images, manifest) for name, model in models.items()}
    return {"images": images, "logits": logits, "frame": frame, "resized": resized, **probabilities}


def _archive(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _probabilities(model: bytes, images: np.ndarray, manifest: Mapping[str, Any]) -> np.ndarray:
    # Not needed, and so not waited for, where weights alone are exported.
    from hps_lightning.bluebox.onnx_export import OnnxNetwork, normalised

    run = OnnxNetwork(model)
    given = run(images if run.takes_pixels else normalised(images, manifest))
    return torch.from_numpy(given).softmax(1).numpy() if run.output == "logits" else given


def _noise(random: np.random.RandomState, rows: int, columns: int, coarse: int) -> np.ndarray:
    noise = Image.fromarray(random.randint(0, 256, (coarse, coarse, 3), dtype=np.uint8))
    return np.array(noise.resize((columns, rows), Image.Resampling.BICUBIC))


def _readme(manifest: Mapping[str, Any]) -> str:
    network, accuracy = manifest["network"], manifest["accuracy"]
    arguments = ", ".join(f"{key}={value!r}" for key, value in network["arguments"].items())
    summary = f"`{network['class']}({arguments})`, trained on {manifest['dataset']} by hps_lightning "
    summary += manifest["versions"]["hps_lightning"]
    summary += f"; {100 * accuracy['value']:.2f} % on {accuracy['measured_on']}." if accuracy else "."
    pixels = manifest["input"]
    return Template((BOARD_FOLDER / README_FILE).read_text(encoding="utf-8")).substitute(
        network=network["class"],
        summary=summary,
        source=network["file"],
        weights=WEIGHTS_FILE,
        formats=_formats(manifest["formats"]),
        preprocessing=f"Images are {' x '.join(map(str, pixels['shape']))} ({pixels['layout']}, RGB). Each value "
        f"becomes {pixels['normalisation']},\nwith mean {pixels['mean']} and std {pixels['std']}.",
    )


def _formats(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return f"`{WEIGHTS_FILE}` alone. `hps export --ckpt_path CHECKPOINT --output FOLDER` writes ONNX files too."
    lines = ["| file | format | bytes | correct test images | one image at the export |", "|---|---|---|---|---|"]
    for row in rows:
        correct = "not measured" if row["images"] is None else f"{row['correct']:,} of {row['images']:,}"
        latency = f"{row['latency_ms']:.3f} ms, {row['threads']} thread{'s' * (row['threads'] > 1)}"
        lines.append(f"| `{row['file']}` | {row['format']} | {row['bytes']:,} | {correct} | {latency} |")
    lines += ["", "The times are those of the machine that wrote the bundle."]
    onnx = [row for row in rows if row["file"] != WEIGHTS_FILE]
    lines += [""] * bool(onnx)
    lines += [f"- `{row['file']}` takes `images` ({row['input']}) and gives `{row['output']}`." for row in onnx]
    if any(row["file"] == INT8_FILE for row in rows):
        lines += ["", _ON_X86]
    return "\n".join(lines)
