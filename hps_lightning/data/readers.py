"""Read a data set into memory, from either of its layouts."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import pickle
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image

from hps_lightning.cache import cache_dir
from hps_lightning.data.catalog import IMAGE_SIDE, SPLITS, DatasetInfo, dataset_info
from hps_lightning.data.checksums import digest, stated_sha256
from hps_lightning.data.locate import find_dataset
from hps_lightning.errors import UserError
from hps_lightning.files import remove_leftovers, replaced_whole

logger = logging.getLogger(__name__)

_IMAGE_SHAPE = (3, IMAGE_SIDE, IMAGE_SIDE)
_ROWS = 64
_DIGITS_SEED = 0
_DIGITS_TEST_FRACTION = 0.2


@dataclass(frozen=True, eq=False)
class Images:
    """One split of a data set in memory.

    Args:
        images: uint8, N x 3 x 32 x 32 (RGB), contiguous.
        labels: int64, N, indices of classes.
    """

    images: torch.Tensor
    labels: torch.Tensor


def load_images(
    name: str | DatasetInfo, split: str, root: str | os.PathLike[str] | None = None, download: bool = True
) -> Images:
    """Load one split of a data set.

    Args:
        name: The data set, such as "cifar10".
        split: "train" or "test".
        root: The data set's folder, or a folder that holds it; see ``find_dataset``.
        download: Whether to download a data set that is found nowhere.

    Returns:
        All the split's images and labels, in the official order.

    Raises:
        UserError: The data set or split is unknown, is not found, or a file is damaged.
    """
    info = dataset_info(name)
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; known are: {', '.join(SPLITS)}")
    location = find_dataset(info, root, download)
    if location.layout == "scikit-learn":
        images, labels = _read_digits(split)
    elif location.layout == "parquet":
        images, labels = _read_parquet(info, split, location.path / info.hub.file_name(split))
    else:
        images, labels = _read_batches(info, split, location.path)
    return Images(torch.from_numpy(images), torch.from_numpy(labels))


def _damaged(info: DatasetInfo, path: Path, problem: str) -> UserError:
    if info.can_be_downloaded:
        way_out = "delete it and run again to have the data set downloaded to the cache"
    else:
        way_out = "write it anew from images of 32 x 32 in RGB"
    return UserError(
        f"{path}: {problem}. The file is damaged or is not of {info.title}.\n"
        f"Ways out: {way_out}; or set --data.root or HPS_DATA_DIR to a folder that holds a sound copy."
    )


def _check_size(info: DatasetInfo, split: str, path: Path, found: int) -> None:
    size = info.size(split)
    if found != size:
        raise _damaged(info, path, f"it holds {found} {split} images where {info.title} has {size}")


def _checked_labels(info: DatasetInfo, split: str, path: Path, labels: np.ndarray) -> np.ndarray:
    """Labels as int64 (N), after their number and range have been checked."""
    _check_size(info, split, path, labels.size)
    classes = len(info.classes)
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if outside.size:
        row = outside[0]
        raise _damaged(info, path, f"row {row} has the label {labels[row]}, which is not in 0..{classes - 1}")
    return labels.astype(np.int64)


# --- The hub's parquet files -------------------------------------------------------------------


def _read_parquet(info: DatasetInfo, split: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (uint8, N x 3 x 32 x 32) and labels (int64, N) of one parquet file."""
    with _parquet_file(info, split, path, info.hub.label_column) as file:
        column = file.read(columns=[info.hub.label_column]).column(info.hub.label_column)
    if column.null_count or not pyarrow.types.is_integer(column.type):
        raise _damaged(info, path, f"the column {info.hub.label_column!r} does not hold an integer in each row")
    labels = _checked_labels(info, split, path, column.to_numpy())
    copy = _decoded_copy(info, split, path)
    images = None if copy is None else _load_decoded(copy, labels)
    if images is None:
        _compare_checksum(info, path)
        images = _decode_images(info, split, path)
        if copy is not None:
            _save_decoded(copy, images, labels)
    return images, labels


def _compare_checksum(info: DatasetInfo, path: Path) -> None:
    expected = stated_sha256(path)
    if expected is None:
        return
    try:
        found = digest(path, hashlib.sha256())
    except OSError as error:
        raise _damaged(info, path, f"it cannot be read ({error.strerror})") from None
    if found != expected:
        raise _damaged(info, path, f"its SHA-256 is {found}, not {expected}, which is stated for it")


@contextlib.contextmanager
def _parquet_file(info: DatasetInfo, split: str, path: Path, name: str) -> Iterator[pyarrow.parquet.ParquetFile]:
    """A parquet file of as many rows as the split has images, with one column of that name."""
    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            present = file.schema_arrow.names
            if present.count(name) != 1:
                found = f"has several columns {name!r}" if name in present else f"has no column {name!r}"
                raise _damaged(info, path, f"it {found}, only {', '.join(present)}")
            # Before anything is read: a small file can hold any number of equal values.
            _check_size(info, split, path, file.metadata.num_rows)
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise _damaged(info, path, f"it cannot be read as parquet ({reason})") from None


def _decode_images(info: DatasetInfo, split: str, path: Path) -> np.ndarray:
    """Decode the encoded images of a parquet file: uint8, N x 3 x 32 x 32."""
    with _parquet_file(info, split, path, "img") as file:
        if not _holds_encoded_images(file.schema_arrow.field("img").type):
            raise _damaged(info, path, "the column 'img' does not hold encoded images (a struct with binary 'bytes')")
        logger.info("Decoding the %d %s images of %s", info.size(split), split, info.title)
        images = np.empty((info.size(split), *_IMAGE_SHAPE), np.uint8)
        row = 0
        # A few at a time: all rows may stand for one value of any size.
        for batch in file.iter_batches(_ROWS, columns=["img"]):
            for encoded in batch.column("img").field("bytes"):
                images[row] = _decode_image(info, path, row, encoded.as_py())
                row += 1
    return images


def _holds_encoded_images(kind: pyarrow.DataType) -> bool:
    field = kind.get_field_index("bytes") if pyarrow.types.is_struct(kind) else -1
    return field >= 0 and kind.field(field).type in (pyarrow.binary(), pyarrow.large_binary())


def _decode_image(info: DatasetInfo, path: Path, row: int, encoded: bytes | None) -> np.ndarray:
    """Decode one image: uint8, 3 x 32 x 32."""
    try:
        image = Image.open(io.BytesIO(encoded or b""), formats=("PNG", "WEBP", "JPEG"))
        if image.size != (IMAGE_SIDE, IMAGE_SIDE) or image.mode != "RGB":
            width, height = image.size
            raise _damaged(info, path, f"image {row} is {width}x{height} {image.mode}, not 32x32 RGB")
        return np.asarray(image).transpose(2, 0, 1)
    # Pillow reports a broken file as any of these, depending on the format.
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise _damaged(info, path, f"image {row} cannot be decoded ({error})") from None


# --- The decoded copy in the cache ---------------------------------------------------------------
# Decoding 50,000 images takes seconds at each start; reading the decoded array takes a fraction of one.

# After which a copy that nobody has read is removed.
_UNUSED_SECONDS = 30 * 24 * 3600


def _decoded_copy(info: DatasetInfo, split: str, path: Path) -> Path | None:
    """Where the decoded images of a file are kept; the name changes when the file does."""
    try:
        status = path.stat()
        source = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
        folder = cache_dir() / "decoded"
    except (OSError, UserError):
        return None
    return folder / f"{info.name}-{split}-{source}-{status.st_size}-{status.st_mtime_ns}.npy"


def _load_decoded(copy: Path, labels: np.ndarray) -> np.ndarray | None:
    """The decoded images (uint8, N x 3 x 32 x 32) of a file with these labels, or None if there is no sound copy."""
    try:
        with open(copy, "rb") as file:
            images = np.lib.format.read_array(file, allow_pickle=False)
            checksums = file.read()
    except Exception:  # whatever is wrong with it, decoding again puts it right
        return None
    sound = images.dtype == np.uint8 and images.shape == (len(labels), *_IMAGE_SHAPE)
    if not sound or checksums != _checksums(images, labels):
        return None
    with contextlib.suppress(OSError):
        # Of use still: see `_save_decoded`.
        os.utime(copy)
    return np.ascontiguousarray(images)


def _checksums(images: np.ndarray, labels: np.ndarray) -> bytes:
    """What ends a decoded copy: of its images, and of the labels, which are read from the file itself each time."""
    return struct.pack("<II", zlib.crc32(np.ascontiguousarray(images)), zlib.crc32(np.ascontiguousarray(labels)))


def _save_decoded(copy: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Keep decoded images for the next start, if the cache can be written."""
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(copy.parent)
        with replaced_whole(copy) as aside, open(aside, "wb") as file:
            np.save(file, images)
            file.write(_checksums(images, labels))
        # Copies of former states of the same file are of no more use, nor are those of files in a job's own folder.
        former = set(copy.parent.glob(f"{copy.name.rsplit('-', 2)[0]}-*.npy"))
        for old in copy.parent.glob("*.npy"):
            if old != copy and (old in former or time.time() - old.stat().st_mtime > _UNUSED_SECONDS):
                old.unlink(missing_ok=True)
    except OSError as error:
        logger.info("The decoded images are not kept for the next start: %s", error)


# --- torchvision's pickled batches ----------------------------------------------------------------


class _Inert:
    """Stands for a numpy object in a pickle and only records what it was given."""

    def __init__(self, *arguments):
        self.arguments = arguments
        self.state = None

    def __setstate__(self, state):
        self.state = state


class _PickledArray(_Inert):
    """``numpy.core.multiarray._reconstruct`` and the array that it returns."""

    def to_numpy(self) -> np.ndarray:
        """The array (uint8), for that is the only type in a batch.

        Raises:
            ValueError: The state is not that of an array of uint8.
        """
        _, shape, dtype, fortran_order, data = self.state
        if not isinstance(dtype, _PickledDtype) or dtype.arguments[:1] not in (("u1",), ("uint8",)):
            raise ValueError("its array is not of type uint8")
        # Python 2's strings arrive as text.
        raw = data.encode("latin1") if isinstance(data, str) else data
        return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran_order else "C")


class _PickledDtype(_Inert):
    """``numpy.dtype``."""


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy._core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy", "ndarray"): _Inert,
    ("numpy", "dtype"): _PickledDtype,
}


class _BatchUnpickler(pickle.Unpickler):
    """An unpickler that calls nothing of what a file names: plain containers and inert stand-ins."""

    def find_class(self, module: str, name: str) -> type[_Inert]:
        """The stand-in for a name, of which only numpy's for arrays are known."""
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which no batch needs") from None


def _read_batches(info: DatasetInfo, split: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (uint8, N x 3 x 32 x 32) and labels (int64, N) of a split's batches."""
    batches = [_read_batch(info, folder / name, md5) for name, md5 in info.archive.batches(split)]
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    return images, _checked_labels(info, split, folder, labels)


def _read_batch(info: DatasetInfo, path: Path, md5: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (uint8, n x 3 x 32 x 32) and labels (int64, n) of one batch."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _damaged(info, path, f"it cannot be read ({error.strerror})") from None
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise _damaged(info, path, f"its MD5 is not the official {md5}")
    # A pickle can fail with about any exception.
    try:
        batch = _BatchUnpickler(io.BytesIO(content), encoding="latin1").load()
        images = batch["data"].to_numpy()
        labels = np.array(batch[info.archive.label_key])
    except Exception as error:
        raise _damaged(info, path, f"it is not a batch of images ({type(error).__name__}: {error})") from None
    if images.shape != (len(images), int(np.prod(_IMAGE_SHAPE))):
        raise _damaged(info, path, f"its images are of shape {images.shape}, not N x 3072")
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise _damaged(info, path, f"it does not hold one integer label for each of its {len(images)} images")
    return images.reshape(-1, *_IMAGE_SHAPE), labels


# --- scikit-learn's handwritten digits -------------------------------------------------------------


def _read_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (uint8, N x 3 x 32 x 32) and labels (int64, N) of scikit-learn's digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = _digits_rows(digits.target, split)
    # Each of the 8 x 8 values 0..16 becomes a square of 4 x 4 pixels, the same in each channel.
    grey = np.rint(digits.images[rows] * (255 / 16)).astype(np.uint8)
    factor = IMAGE_SIDE // grey.shape[-1]
    grey = grey.repeat(factor, axis=1).repeat(factor, axis=2)
    return np.repeat(grey[:, np.newaxis], 3, axis=1), digits.target[rows].astype(np.int64)


def _digits_rows(labels: np.ndarray, split: str) -> np.ndarray:
    """The rows of a split, in order: of each class, a fixed random 20 % are for test."""
    # RandomState, for numpy promises that its numbers never change.
    random = np.random.RandomState(_DIGITS_SEED)
    test = []
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        test.append(rows[: round(len(rows) * _DIGITS_TEST_FRACTION)])
    in_test = np.isin(np.arange(len(labels)), np.concatenate(test))
    return np.flatnonzero(in_test == (split == "test"))
