import contextlib
import hashlib
import io
import os
import pickle
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from hps_lightning.data import readers
from hps_lightning.data.catalog import DATASETS
from hps_lightning.data.checksums import write_checksums
from hps_lightning.data.readers import load_images
from hps_lightning.errors import UserError

from .made_cifar import batch_bytes, made_dataset, md5


@pytest.fixture(autouse=True)
def no_data_but_the_tests(monkeypatch, tmp_path):
    monkeypatch.delenv("HPS_DATA_DIR", raising=False)
    monkeypatch.setenv("HPS_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(params=["cifar10", "cifar100"])
def made(request):
    return made_dataset(request.param)


@pytest.fixture
def decodings(monkeypatch):
    """How many times the images of a file were decoded: the length of this list."""
    calls = []
    decode = readers._decode_images

    def count(*arguments):
        calls.append(arguments)
        return decode(*arguments)

    monkeypatch.setattr(readers, "_decode_images", count)
    return calls


def decoded_copies(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "decoded").iterdir())


def with_batch(made, content: bytes):
    """The info of a data set whose test batch has another, official content."""
    name = made.info.archive.test_batches[0][0]
    return replace(made.info, archive=replace(made.info.archive, test_batches=((name, md5(content)),)))


@pytest.mark.parametrize("layout", ["parquet", "batches"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_both_layouts_give_the_same_arrays(tmp_path, made, layout, split):
    root = getattr(made, f"write_{layout}")(tmp_path / "root")
    loaded = load_images(made.info, split, root)
    assert loaded.images.dtype == torch.uint8
    assert loaded.labels.dtype == torch.int64
    assert loaded.images.is_contiguous()
    assert np.array_equal(loaded.images.numpy(), made.images[split])
    assert np.array_equal(loaded.labels.numpy(), made.labels[split])


@pytest.mark.parametrize("layout", ["parquet", "batches"])
def test_what_is_loaded_can_be_written_to(tmp_path, layout):
    made = made_dataset()
    loaded = load_images(made.info, "test", getattr(made, f"write_{layout}")(tmp_path / "root"))
    loaded.images.zero_()
    loaded.labels.zero_()
    assert loaded.images.sum() + loaded.labels.sum() == 0


def test_a_name_is_looked_up_in_the_catalogue(tmp_path, monkeypatch):
    made = made_dataset()
    monkeypatch.setitem(DATASETS, "cifar10", made.info)
    made.write_parquet(tmp_path / "cache" / "cifar10")
    assert np.array_equal(load_images("cifar10", "test", download=False).images.numpy(), made.images["test"])


def test_lossless_webp_is_read(tmp_path):
    made = made_dataset()
    root = made.write_parquet(tmp_path / "root")
    (root / "test-00000-of-00001.parquet").write_bytes(made.parquet("test", image_format="WEBP"))
    assert np.array_equal(load_images(made.info, "test", root).images.numpy(), made.images["test"])


def test_an_unknown_split_is_refused():
    with pytest.raises(UserError, match=r"'validation'.*train, test"):
        load_images("cifar10", "validation")


# --- Damaged parquet files ---


@pytest.fixture
def refused(tmp_path):
    """Check that a parquet file of this content is refused by name, saying why."""

    def check(made, content: bytes, why: str) -> None:
        root = made.write_parquet(tmp_path / "root")
        path = root / made.info.hub.file_name("test")
        path.write_bytes(content)
        with pytest.raises(UserError, match=why) as caught:
            load_images(made.info, "test", root)
        assert str(path) in str(caught.value)
        assert "Ways out: delete it" in str(caught.value)

    return check


def test_nobody_is_told_to_delete_data_of_his_own(tmp_path):
    made = made_dataset("cifar10")
    info = replace(made.info, title="My pets", hub=replace(made.info.hub, repo_id=""), archive=None)
    path = made.write_parquet(tmp_path) / info.hub.file_name("test")
    path.write_bytes(b"")
    with pytest.raises(
        UserError, match=r"is not of My pets\.\nWays out: write it anew from images of 32 x 32 in RGB; or"
    ):
        load_images(info, "test", tmp_path)


@pytest.mark.parametrize("length", [0, 3, 100, 4000, -1])
def test_a_truncated_parquet_file_is_refused(refused, length):
    made = made_dataset()
    refused(made, made.parquet("test")[:length], "cannot be read as parquet")


def test_an_altered_parquet_file_is_refused(refused):
    made = made_dataset()
    content = bytearray(made.parquet("test"))
    middle = content.index(b"IDAT") + 500
    content[middle] ^= 0xFF
    refused(made, bytes(content), "cannot be")


def test_wrong_number_of_images_is_refused(refused):
    made = made_dataset()
    content = made.parquet("test", images=made.images["test"][1:], labels=made.labels["test"][1:])
    refused(made, content, "holds 7 test images where CIFAR-10 has 8")


@pytest.mark.parametrize("size", [(31, 32), (32, 33), (64, 64)])
def test_wrong_image_size_is_refused(refused, size):
    made = made_dataset()
    content = made.parquet("test", images=np.zeros((8, 3, *size), np.uint8))
    refused(made, content, f"image 0 is {size[1]}x{size[0]} RGB")


def test_grey_images_are_refused(refused):
    made = made_dataset()
    grey_and_alpha = np.zeros((8, 2, 32, 32), np.uint8)
    refused(made, made.parquet("test", images=grey_and_alpha), "image 0 is 32x32 LA")


@pytest.mark.parametrize("label", [-1, 10, 1 << 40])
def test_label_out_of_range_is_refused(refused, label):
    made = made_dataset()
    labels = made.labels["test"].copy()
    labels[5] = label
    refused(made, made.parquet("test", labels=labels), f"row 5 has the label {label}, which is not in 0..9")


def test_the_file_of_the_other_data_set_is_refused(refused):
    refused(
        made_dataset("cifar10"), made_dataset("cifar100").parquet("test"), "no column 'label', only img, fine_label"
    )


def test_two_columns_of_a_name_are_refused(refused):
    made = made_dataset()
    table = pyarrow.parquet.read_table(io.BytesIO(made.parquet("test")))
    file = io.BytesIO()
    pyarrow.parquet.write_table(table.append_column("label", table.column("label")), file)
    refused(made, file.getvalue(), "several columns 'label', only img, label, label")


def test_more_rows_than_images_are_refused_before_they_are_read(refused, monkeypatch):
    made = made_dataset()
    labels = np.zeros(1_000_000, np.int64)
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"label": labels, "img": [None] * len(labels)}), file)
    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read", lambda *arguments, **options: pytest.fail("read"))
    refused(made, file.getvalue(), f"it holds 1000000 test images where CIFAR-10 has {made.info.test_size}")


@pytest.mark.parametrize("where", ["SHA256SUMS", "the hub's cache"])
def test_a_file_that_is_not_what_its_checksum_says_is_refused(tmp_path, where, tally):
    made = made_dataset()
    root = made.write_parquet(tmp_path / "root")
    path = root / made.info.hub.file_name("test")
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    if where == "SHA256SUMS":
        write_checksums(root, {path.name: checksum})
    else:
        blob = tmp_path / "blobs" / checksum
        blob.parent.mkdir()
        path.rename(blob)
        path.symlink_to(blob)
    load_images(made.info, "test", root)
    path.resolve().write_bytes(made.parquet("test", images=255 - made.images["test"]))
    os.utime(path.resolve(), ns=(0, path.stat().st_mtime_ns + 10**9))
    with pytest.raises(UserError, match="its SHA-256 is") as caught:
        load_images(made.info, "test", root)
    assert str(path) in str(caught.value)
    tally("bad inputs tried")


class Trace:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_parquet_file_with_a_pickled_type_executes_nothing(tmp_path, tally):
    made = made_dataset()
    path = made.write_parquet(tmp_path / "root") / made.info.hub.file_name("test")
    table = pyarrow.parquet.read_table(path)
    # pyarrow before 14.0.1 unpickled such a type where it met one.
    pickled = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Trace(tmp_path / "trace")),
    }
    fields = [field.with_metadata(pickled) for field in table.schema]
    pyarrow.parquet.write_table(table.cast(pyarrow.schema(fields)), path)
    with contextlib.suppress(UserError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_images(made.info, "test", path.parent)
    assert not (tmp_path / "trace").exists()
    tally("malicious files refused")
    pickle.loads(pickled[b"ARROW:extension:metadata"]).close()
    assert (tmp_path / "trace").exists(), "it would have"


# --- The decoded copy ---


def test_a_second_start_does_not_decode_again(tmp_path, decodings):
    made = made_dataset()
    root = made.write_parquet(tmp_path / "root")
    for _ in range(2):
        assert np.array_equal(load_images(made.info, "train", root).images.numpy(), made.images["train"])
    assert len(decodings) == 1
    assert [path.suffix for path in decoded_copies(tmp_path)] == [".npy"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"junk" * 100, "cut off", "a bit altered"])
def test_a_broken_decoded_copy_is_remade(tmp_path, decodings, content, tally):
    made = made_dataset()
    root = made.write_parquet(tmp_path / "root")
    load_images(made.info, "train", root)
    (copy,) = decoded_copies(tmp_path)
    sound = copy.read_bytes()
    middle = len(sound) // 2
    altered = sound[:middle] + bytes([sound[middle] ^ 1]) + sound[middle + 1 :]
    copy.write_bytes({"cut off": sound[:-1], "a bit altered": altered}.get(content, content))
    assert np.array_equal(load_images(made.info, "train", root).images.numpy(), made.images["train"])
    assert len(decodings) == 2
    assert copy.read_bytes() == sound
    tally("bad inputs tried")


def test_a_decoded_copy_of_another_shape_is_remade(tmp_path, decodings):
    made = made_dataset()
    root = made.write_parquet(tmp_path / "root")
    load_images(made.info, "train", root)
    (copy,) = decoded_copies(tmp_path)
    with open(copy, "wb") as file:
        np.save(file, made.images["test"])
        # Its sums fit, so that nothing but the shape tells.
        file.write(readers._checksums(made.images["test"], made.labels["train"]))
    assert np.array_equal(load_images(made.info, "train", root).images.numpy(), made.images["train"])
    assert len(decodings) == 2


def test_a_changed_file_is_decoded_again_and_its_old_copy_removed(tmp_path, decodings):
    made = made_dataset()
    root = made.write_parquet(tmp_path / "root")
    load_images(made.info, "test", root)
    load_images(made.info, "train", root)
    path = root / "test-00000-of-00001.parquet"
    path.write_bytes(made.parquet("test", images=255 - made.images["test"]))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))
    assert np.array_equal(load_images(made.info, "test", root).images.numpy(), 255 - made.images["test"])
    assert len(decodings) == 3
    assert len(decoded_copies(tmp_path)) == 2


def test_copies_that_nobody_reads_any_more_are_removed(tmp_path, decodings):
    made = made_dataset()
    roots = [made.write_parquet(tmp_path / name) for name in ("read", "unread", "new")]
    load_images(made.info, "test", roots[0])
    (read,) = decoded_copies(tmp_path)
    load_images(made.info, "test", roots[1])
    for copy in decoded_copies(tmp_path):
        os.utime(copy, (0, 0))
    load_images(made.info, "test", roots[0])
    load_images(made.info, "test", roots[2])
    assert len(decodings) == 3
    assert len(decoded_copies(tmp_path)) == 2
    assert read in decoded_copies(tmp_path)


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch, decodings):
    made = made_dataset()
    root = made.write_parquet(tmp_path / "root")
    (tmp_path / "file").touch()
    monkeypatch.setenv("HPS_CACHE_DIR", str(tmp_path / "file" / "cache"))
    for _ in range(2):
        assert np.array_equal(load_images(made.info, "train", root).images.numpy(), made.images["train"])
    assert len(decodings) == 2


def test_a_full_disk_is_no_error_and_leaves_nothing(tmp_path, monkeypatch):
    def no_space(file, array):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    made = made_dataset()
    root = made.write_parquet(tmp_path / "root")
    monkeypatch.setattr(np, "save", no_space)
    assert np.array_equal(load_images(made.info, "train", root).images.numpy(), made.images["train"])
    assert decoded_copies(tmp_path) == []


def test_batches_are_not_copied(tmp_path):
    made = made_dataset()
    load_images(made.info, "train", made.write_batches(tmp_path / "root"))
    assert not (tmp_path / "cache").exists()


# --- Damaged and malicious batches ---


class Malicious:
    """Makes a folder when it is unpickled by an ordinary unpickler."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_malicious_pickle_is_refused_without_being_run(tmp_path, tally):
    trace = tmp_path / "trace"
    content = pickle.dumps({"data": Malicious(trace), "labels": []})
    made = made_dataset()
    root = made.write_batches(tmp_path / "root")
    (root / "test_batch").write_bytes(content)
    with pytest.raises(UserError, match=r"test_batch: it is not a batch of images .*mkdir, which no batch needs"):
        load_images(with_batch(made, content), "test", root)
    assert not trace.exists()
    pickle.load(io.BytesIO(content))
    assert trace.exists(), "the pickle is harmless, so that the test shows nothing"
    tally("malicious files refused")


@pytest.mark.parametrize(
    "name", [b"builtins\neval", b"builtins\ngetattr", b"os\nsystem", b"numpy\nload", b"numpy.core.multiarray\nscalar"]
)
def test_a_pickle_that_names_anything_else_is_refused(tmp_path, name):
    content = b"\x80\x02c" + name + b"\n."
    made = made_dataset()
    root = made.write_batches(tmp_path / "root")
    (root / "test_batch").write_bytes(content)
    with pytest.raises(UserError, match="which no batch needs"):
        load_images(with_batch(made, content), "test", root)


def test_a_batch_with_another_checksum_is_refused(tmp_path):
    made = made_dataset()
    root = made.write_batches(tmp_path / "root")
    content = bytearray((root / "data_batch_4").read_bytes())
    content[-100] ^= 1
    (root / "data_batch_4").write_bytes(content)
    with pytest.raises(UserError, match=r"data_batch_4: its MD5 is not the official (?s:.*)Ways out: delete it"):
        load_images(made.info, "train", root)


def test_a_truncated_pickle_is_refused(tmp_path):
    made = made_dataset()
    root = made.write_batches(tmp_path / "root")
    content = (root / "test_batch").read_bytes()[:-2000]
    (root / "test_batch").write_bytes(content)
    with pytest.raises(UserError, match="it is not a batch of images"):
        load_images(with_batch(made, content), "test", root)


@pytest.mark.parametrize(
    ("images", "labels", "why"),
    [
        (np.zeros((8, 3, 31, 32), np.uint8), [0] * 8, r"shape \(8, 2976\)"),
        (np.zeros((8, 3, 32, 32), np.uint8), [0] * 7, "one integer label for each of its 8 images"),
        (np.zeros((8, 3, 32, 32), np.uint8), [0] * 7 + [10], r"row 7 has the label 10"),
        (np.zeros((9, 3, 32, 32), np.uint8), [0] * 9, "holds 9 test images where CIFAR-10 has 8"),
    ],
)
def test_a_batch_of_wrong_content_is_refused(tmp_path, images, labels, why):
    made = made_dataset()
    root = made.write_batches(tmp_path / "root")
    content = batch_bytes("labels", images, np.array(labels))
    (root / "test_batch").write_bytes(content)
    with pytest.raises(UserError, match=why):
        load_images(with_batch(made, content), "test", root)


@pytest.mark.parametrize("protocol", [3, 4])
def test_a_batch_pickled_by_python_3_is_read(tmp_path, protocol):
    made = made_dataset()
    root = made.write_batches(tmp_path / "root")
    data = made.images["test"].reshape(8, -1)
    content = pickle.dumps({"data": data, "labels": made.labels["test"].tolist()}, protocol)
    (root / "test_batch").write_bytes(content)
    loaded = load_images(with_batch(made, content), "test", root)
    assert np.array_equal(loaded.images.numpy(), made.images["test"])


def test_an_array_of_another_type_is_refused(tmp_path):
    made = made_dataset()
    root = made.write_batches(tmp_path / "root")
    content = pickle.dumps({"data": np.zeros((8, 3072), np.float32), "labels": [0] * 8}, 4)
    (root / "test_batch").write_bytes(content)
    with pytest.raises(UserError, match="not of type uint8"):
        load_images(with_batch(made, content), "test", root)


# --- Digits ---


def test_digits_are_split_once_and_for_all():
    train, test = load_images("digits", "train"), load_images("digits", "test")
    assert train.images.shape == (1438, 3, 32, 32)
    assert test.images.shape == (359, 3, 32, 32)
    assert train.images.dtype == torch.uint8
    assert train.labels.dtype == torch.int64
    assert train.images.is_contiguous()
    assert torch.equal(load_images("digits", "test").images, test.images)
    # The rows never change: results on digits would not compare.
    assert test.labels[:12].tolist() == [3, 7, 3, 9, 0, 8, 7, 0, 8, 0, 3, 3]
    share = test.labels.bincount() / (train.labels.bincount() + test.labels.bincount())
    assert share.tolist() == pytest.approx([0.2] * 10, abs=0.01)


def test_digits_are_the_original_values_enlarged():
    datasets = pytest.importorskip("sklearn.datasets")
    original = datasets.load_digits()
    loaded = torch.cat([load_images("digits", split).images for split in ("train", "test")])
    assert loaded.max() == 255
    assert torch.equal(loaded[:, 0], loaded[:, 2])
    small = loaded[:, 0, ::4, ::4]
    assert torch.equal(small.repeat_interleave(4, 1).repeat_interleave(4, 2), loaded[:, 0])
    back = (small.double() * (16 / 255)).round().flatten(1)
    assert sorted(back.tolist()) == sorted(original.data.tolist())
