import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hps_lightning.data.photos import read_photo

from .conftest import load_board_file


@pytest.fixture
def classify(board_file):
    return board_file("classify")


@pytest.fixture
def run(classify, bundle, capsys):
    """Runs the command line; returns status, output and errors."""

    def call(*arguments):
        status = classify.main([*map(str, arguments), "--bundle", str(bundle)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def picture(rows=20, columns=30, channels=3):
    return np.random.RandomState(rows).randint(0, 256, (rows, columns, channels)).astype(np.uint8)


def save(path, mode="RGB", **options):
    channels = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    array = picture(channels=channels)
    Image.fromarray(array[:, :, 0] if channels == 1 else array, mode=None).save(path, **options)
    return path


def test_a_copied_bundle_classifies_from_anywhere(bundle, tmp_path, bundles, frames):
    save(tmp_path / "photo.png")
    command = [sys.executable, str(bundle / "classify.py"), "photo.png", "--top-k", "3"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    expected = bundles.Bundle(str(bundle)).probabilities(frames.resize(picture(), 32, 32)[None])[0]
    names = np.array(["bird", "cat", "dog"])[np.argsort(-expected)]
    entries = [f"{name} {value:.4f}" for name, value in zip(names, sorted(expected, reverse=True), strict=True)]
    assert result.stdout == "\t".join(["photo.png", *entries]) + "\n"


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("photo.png", "RGB", {}),
        ("grey.png", "L", {}),
        ("clear.png", "RGBA", {}),
        ("photo.bmp", "RGB", {}),
        ("photo.jpg", "RGB", {"quality": 95}),
        ("photo.ppm", "RGB", {}),
        ("grey.pgm", "L", {}),
        ("photo.gif", "RGB", {}),
    ],
)
def test_files_are_seen_as_hps_predict_sees_them(classify, frames, tmp_path, name, mode, options):
    path = save(tmp_path / name, mode, **options)
    image = classify.read_image(str(path))
    assert image.dtype == np.uint8
    assert image.shape == (20, 30, 3)
    expected = read_photo(path).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(frames.resize(image, 32, 32) - expected).max() <= 1


def test_a_photo_that_was_taken_sideways(classify, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(classify.read_image(str(tmp_path / "photo.png")), np.rot90(picture(), -1))


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1), (20, 30, 3), (20, 30, 4)])
def test_numpy_files(classify, tmp_path, shape):
    array = picture(*shape[:2], channels=(*shape, 1)[2]).reshape(shape)
    np.save(tmp_path / "frame.npy", array)
    image = classify.read_image(str(tmp_path / "frame.npy"))
    expected = array[:, :, :3] if len(shape) == 3 and shape[2] > 1 else np.stack([array.reshape(20, 30)] * 3, 2)
    assert np.array_equal(image, expected)


def test_a_ppm_with_comments(classify, tmp_path):
    content = b"P6 # by hand\n#more\n30\t20\n# and more\n255\n" + picture().tobytes()
    (tmp_path / "photo.ppm").write_bytes(content)
    assert np.array_equal(classify.read_image(str(tmp_path / "photo.ppm")), picture())


def test_netpbm_and_numpy_need_no_pillow(classify, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    (tmp_path / "photo.ppm").write_bytes(b"P6 30 20 255\n" + picture().tobytes())
    assert np.array_equal(classify.read_image(str(tmp_path / "photo.ppm")), picture())
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(classify.FrameError, match="Pillow is not installed"):
        classify.read_image(str(tmp_path / "photo.png"))


def numpy_file(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


# The header alone says that it is of 3 terabytes.
SHAPE = b"(20, 30, 3), }" + 20 * b" "
HUGE = numpy_file(np.zeros((20, 30, 3), np.uint8)).replace(SHAPE, b"(1000000, 1000000, 3), }".ljust(len(SHAPE)))
BROKEN = {
    "text.png": (b"not a picture", "Pillow finds no image in it"),
    "empty.png": (b"", "Pillow finds no image in it"),
    "cut.png": (None, "Pillow finds no image in it that it can read ("),
    "cut.ppm": (b"P6 30 20 255\n" + b"1" * 100, "it is cut off"),
    "deep.ppm": (b"P6 30 20 65535\n" + b"1" * 3600, "no PPM or PGM of 8 bits"),
    "nothing.ppm": (b"P6 0 0 255\n", "the frame is empty"),
    "vast.ppm": (b"P6 " + b"9" * 30 + b" 20 255\n123", "it is cut off"),
    "pickled.npy": (numpy_file(np.array([{}], object), allow_pickle=True), "is damaged"),
    "floats.npy": (numpy_file(np.zeros((4, 4, 3))), "float64 values"),
    "five.npy": (numpy_file(np.zeros((4, 4, 5), np.uint8)), "1 to 4 channels"),
    "two.npy": (numpy_file(np.zeros((4, 4, 2), np.uint8)), "it has 2 channels"),
    "cut.npy": (numpy_file(np.zeros((20, 30, 3), np.uint8))[:-5], "is damaged"),
    "huge.npy": (HUGE, "is damaged"),
    "header.npy": (b"\x93NUMPY\x01\x00\x10\x00{'descr': (((((((", "is damaged"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_no_image_is_named_and_the_others_go_on(run, tmp_path, name):
    content, expected = BROKEN[name]
    if content is None:
        content = save(tmp_path / "whole.png").read_bytes()[:400]
    (tmp_path / name).write_bytes(content)
    save(tmp_path / "photo.png")
    status, out, err = run(tmp_path / name, tmp_path / "photo.png")
    assert status == 2
    assert out.startswith(f"{tmp_path / 'photo.png'}\t")
    assert err.startswith(f"classify: error: {tmp_path / name} ")
    assert expected in err
    assert err.count("\n") == 1


def test_sixteen_bits_are_refused(run, tmp_path):
    Image.fromarray(picture(channels=1)[:, :, 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    status, out, err = run(tmp_path / "deep.png")
    assert (status, out) == (2, "")
    assert "more than 8 bits a value" in err


def test_files_that_are_not_there(run, tmp_path):
    for path in (tmp_path / "nowhere.png", tmp_path):
        status, out, err = run(path)
        assert (status, out) == (2, "")
        assert f"{path} cannot be read: " in err


@pytest.mark.parametrize("size", [(1, 1), (8000, 6000)])
def test_the_smallest_and_the_largest(run, tmp_path, size):
    Image.new("RGB", size, "teal").save(tmp_path / "photo.png")
    status, out, err = run(tmp_path / "photo.png")
    assert (status, err) == (0, "")
    assert out.count("\t") == 1


def test_another_size_where_resizing_is_off(run, tmp_path):
    save(tmp_path / "photo.png")
    status, _, err = run(tmp_path / "photo.png", "--resize", "off")
    assert status == 2
    assert "resizing is off" in err


def test_a_damaged_bundle(run, bundle, tmp_path):
    (bundle / "weights.pt").unlink()
    status, out, err = run(save(tmp_path / "photo.png"))
    assert (status, out) == (2, "")
    assert err.startswith(f"classify: error: {bundle / 'weights.pt'} cannot be read: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("classify", "bundle"),
        ("classify", "frames"),
        ("classify", "torch"),
        ("selftest", "bundle"),
        ("selftest", "frames"),
    ],
)
def test_missing_code_is_named(monkeypatch, name, missing, board_file):
    for module in ("bundle", "frames"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as stopped:
        load_board_file(name)
    assert missing in str(stopped.value)
    assert "the whole bundle" in str(stopped.value)


def test_pillow_before_6_turns_nothing_and_reads_all_the_same(classify, tmp_path, monkeypatch):
    from PIL import ImageOps

    monkeypatch.delattr(ImageOps, "exif_transpose")
    assert np.array_equal(classify.read_image(str(save(tmp_path / "photo.png"))), picture())


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_name_that_the_terminal_does_not_know_is_printed_all_the_same(
    classify, bundle, tmp_path, monkeypatch, encoding
):
    path = tmp_path / os.fsdecode(b"caf\xc3\xa9 \xff.png")
    save(path)
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding, write_through=True))
    assert classify.main([str(path), "--bundle", str(bundle)]) == 0
    name = {"ascii": r"caf\xe9 \udcff.png", "utf-8": r"café \udcff.png"}[encoding]
    assert name in printed.getvalue().decode(encoding)
