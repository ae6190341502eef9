"""Tiny made data sets in both layouts that CIFAR comes in, for the tests."""

import gzip
import hashlib
import io
import struct
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from hps_lightning.data.catalog import DATASETS, SPLITS, DatasetInfo


@dataclass(frozen=True)
class MadeDataset:
    """A data set of random images with the names, folders and classes of a real one.

    Args:
        info: As of the real one, but for the sizes and checksums.
        images: For each split, uint8, N x 3 x 32 x 32.
        labels: For each split, int64, N.
    """

    info: DatasetInfo
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]

    def parquet(self, split: str, **replaced) -> bytes:
        """A split as the hub's parquet file; see ``parquet_bytes`` for what can be replaced."""
        return parquet_bytes(
            **{"info": self.info, "images": self.images[split], "labels": self.labels[split]} | replaced
        )

    def hub_files(self) -> dict[str, bytes]:
        """The content of each file of the hub's repository, by its path there."""
        return {self.info.hub.train_file: self.parquet("train"), self.info.hub.test_file: self.parquet("test")}

    def write_parquet(self, folder: Path) -> Path:
        """Write both splits directly into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in self.hub_files().items():
            (folder / PurePosixPath(path).name).write_bytes(content)
        return folder

    def batch_files(self) -> dict[str, bytes]:
        """The content of each pickled batch and of the meta file, by file name."""
        files = {self.info.archive.meta_file: meta_bytes(self.info)}
        for split in SPLITS:
            files |= _batches(self.info, split, self.images[split], self.labels[split])
        return files

    def write_batches(self, folder: Path) -> Path:
        """Write the pickled batches directly into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.batch_files().items():
            (folder / name).write_bytes(content)
        return folder

    def archive(self) -> bytes:
        """The university's archive of the batches."""
        return archive_bytes({f"{self.info.archive.folder}/{name}": data for name, data in self.batch_files().items()})


def made_dataset(name: str = "cifar10", train_size: int = 20, test_size: int = 8) -> MadeDataset:
    """A made data set; the training size is a multiple of the number of batches (5 in CIFAR-10)."""
    info = replace(DATASETS[name], train_size=train_size, test_size=test_size)
    random = np.random.default_rng(0)
    images, labels, checksums = {}, {}, {}
    for split in SPLITS:
        images[split] = random.integers(0, 256, (info.size(split), 3, 32, 32), np.uint8)
        labels[split] = random.integers(0, len(info.classes), info.size(split))
        files = _batches(info, split, images[split], labels[split])
        checksums[f"{split}_batches"] = tuple((file, md5(content)) for file, content in files.items())
    made = MadeDataset(replace(info, archive=replace(info.archive, **checksums)), images, labels)
    archive = replace(made.info.archive, md5=md5(made.archive()))
    return replace(made, info=replace(made.info, archive=archive))


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def parquet_bytes(info: DatasetInfo, images: np.ndarray, labels: np.ndarray, image_format: str = "PNG") -> bytes:
    """A parquet file like the hub's.

    Args:
        info: Names the label column.
        images: uint8, N x 3 x height x width.
        labels: Integers, N.
        image_format: "PNG" or "WEBP" (lossless).
    """
    encoded = [{"bytes": _encoded(image, image_format), "path": None} for image in images]
    columns = {"img": pa.array(encoded, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}
    columns[info.hub.label_column] = pa.array(labels, pa.int64())
    if info.superclass_of:
        columns["coarse_label"] = pa.array(
            [info.superclass_of[label % len(info.classes)] for label in labels], pa.int64()
        )
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, row_group_size=7)
    return buffer.getvalue()


def _encoded(image: np.ndarray, image_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(buffer, image_format, lossless=True)
    return buffer.getvalue()


def _batches(info: DatasetInfo, split: str, images: np.ndarray, labels: np.ndarray) -> dict[str, bytes]:
    names = [name for name, _ in info.archive.batches(split)]
    parts = zip(names, np.split(images, len(names)), np.split(labels, len(names)), strict=True)
    return {name: batch_bytes(info.archive.label_key, part, part_labels) for name, part, part_labels in parts}


def batch_bytes(label_key: str, images: np.ndarray, labels: np.ndarray) -> bytes:
    """A batch, pickled as Python 2 did it.

    Args:
        label_key: The key of the labels.
        images: uint8, N x 3 x 32 x 32.
        labels: Integers, N.
    """
    data = images.reshape(len(images), -1)
    return python2_pickle({"batch_label": "made", label_key: [int(label) for label in labels], "data": data})


def meta_bytes(info: DatasetInfo) -> bytes:
    return python2_pickle({info.archive.meta_key: list(info.classes)})


def python2_pickle(value) -> bytes:
    """Dicts, lists, byte strings, small integers and uint8 arrays, as Python 2's protocol 2.

    Python 3's pickle cannot write it: it has no opcode for Python 2's strings.
    """
    return b"\x80\x02" + _python2_opcodes(value) + b"."


def _python2_opcodes(value) -> bytes:
    if isinstance(value, dict):
        items = b"".join(_python2_opcodes(key) + _python2_opcodes(item) for key, item in value.items())
        return b"}(" + items + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2_opcodes, value)) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_python2_opcodes, value)) + b"t"
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, str):
        value = value.encode("latin1")
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value
    dtype = b"cnumpy\ndtype\n" + _python2_opcodes(("u1", 0, 1)) + b"R"
    dtype += _python2_opcodes((3, "|", None, None, None, -1, -1, 0)) + b"b"
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + _python2_opcodes((0,)) + b"U\x01btR"
    shape = _python2_opcodes(tuple(value.shape))
    return empty + b"(" + _python2_opcodes(1) + shape + dtype + b"\x89" + _python2_opcodes(value.tobytes()) + b"tb"


def archive_bytes(files: dict[str, bytes]) -> bytes:
    """A gzipped tar of files, by path inside it."""
    buffer = io.BytesIO()
    # No time stamp, for the archive's MD5 has to be the same each time.
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

    return gzip.compress(buffer.getvalue(), mtime=0)
