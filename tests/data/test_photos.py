import os
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torch.utils.data import DataLoader

from hps_lightning.data.batches import normalise
from hps_lightning.data.photos import Photos, _to_rgb, find_photos, read_photo
from hps_lightning.errors import UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
# A picture whose quarters tell every rotation and mirroring apart.
QUARTERS = np.kron(np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20, np.ones((16, 16, 1), np.uint8))


def _save(path, mode, color, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (20, 30), color).save(path, **options)
    return path


def _save_array(path, values):
    Image.fromarray(values).save(path)
    return path


def _color(path):
    """The colour of a picture that has one."""
    pixels = read_photo(path)
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == torch.uint8
    (color,) = {tuple(color) for color in pixels.flatten(1).T.tolist()}
    return color


def _palette_image(index, transparency=None):
    image = Image.new("P", (20, 30), index)
    image.putpalette([10, 20, 30, 200, 100, 50])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


@pytest.mark.parametrize(
    ("mode", "color", "suffix", "expected"),
    [
        ("1", 1, ".png", (255, 255, 255)),
        ("1", 0, ".png", (0, 0, 0)),
        ("L", 77, ".png", (77, 77, 77)),
        ("LA", (77, 255), ".png", (77, 77, 77)),
        ("LA", (77, 0), ".png", (255, 255, 255)),
        ("RGB", (10, 20, 30), ".png", (10, 20, 30)),
        ("RGB", (10, 20, 30), ".bmp", (10, 20, 30)),
        ("RGB", (10, 20, 30), ".ppm", (10, 20, 30)),
        ("RGBA", (10, 20, 30, 255), ".png", (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), ".png", (255, 255, 255)),
        ("RGBA", (0, 100, 200, 51), ".png", (204, 224, 244)),  # a fifth of the colour on white
        ("CMYK", (0, 0, 0, 0), ".tif", (255, 255, 255)),
        ("CMYK", (255, 0, 0, 0), ".tif", (0, 255, 255)),
        ("YCbCr", (77, 128, 128), ".tif", (77, 77, 77)),
        ("I;16", 65535, ".png", (255, 255, 255)),
        ("I;16", 32768, ".png", (128, 128, 128)),
        ("I;16", 257 * 40, ".tif", (40, 40, 40)),
        ("I;16B", 257 * 40, ".tif", (40, 40, 40)),
        ("I", 65535, ".tif", (255, 255, 255)),
        ("I", 257 * 40, ".tif", (40, 40, 40)),
        ("F", 1.0, ".tif", (255, 255, 255)),
        ("F", 0.2, ".tif", (51, 51, 51)),
        ("F", 255.0, ".tif", (255, 255, 255)),
        ("F", -5.0, ".tif", (0, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb(mode, color, suffix, expected, tmp_path):
    path = _save(tmp_path / f"photo{suffix}", mode, color)
    with Image.open(path) as image:
        if (mode, image.mode) == ("YCbCr", "RGB"):
            pytest.skip("Pillow before 13 takes this file for another, and cannot read it")
        assert image.mode == mode
    assert _color(path) == expected


def test_a_cmyk_jpeg(tmp_path):
    assert _color(_save(tmp_path / "photo.jpg", "CMYK", (0, 0, 0, 0))) == (255, 255, 255)


def test_a_ycbcr_jpeg(tmp_path):
    assert np.allclose(_color(_save(tmp_path / "photo.jpg", "RGB", (200, 100, 50), quality=95)), (200, 100, 50), atol=3)


def test_hsv_becomes_rgb():
    # No file format holds it.
    image = Image.new("RGB", (2, 2), (255, 0, 0)).convert("HSV")
    assert _to_rgb(image).getpixel((0, 0)) == (255, 0, 0)


def test_lab_becomes_rgb(tmp_path):
    lab = ImageCms.createProfile("LAB")
    srgb = ImageCms.createProfile("sRGB")
    image = ImageCms.profileToProfile(Image.new("RGB", (20, 30), (200, 100, 50)), srgb, lab, outputMode="LAB")
    image.save(tmp_path / "photo.tif")
    assert np.allclose(_color(tmp_path / "photo.tif"), (200, 100, 50), atol=3)


@pytest.mark.parametrize("suffix", [".png", ".gif"])
@pytest.mark.parametrize(
    ("index", "transparency", "expected"),
    [
        (1, None, (200, 100, 50)),
        (1, 1, (255, 255, 255)),
        (1, 0, (200, 100, 50)),
    ],
)
def test_palettes(index, transparency, expected, suffix, tmp_path):
    path = tmp_path / f"photo{suffix}"
    _palette_image(index, transparency).save(path)
    assert _color(path) == expected


def test_a_palette_with_half_transparent_colours(tmp_path):
    _palette_image(1, bytes([255, 51])).save(tmp_path / "photo.png")
    assert _color(tmp_path / "photo.png") == (244, 224, 214)


@pytest.mark.parametrize(("mode", "color"), [("L", 77), ("RGB", (10, 20, 30))])
def test_a_colour_that_stands_for_transparency_becomes_white(mode, color, tmp_path):
    assert _color(_save(tmp_path / "photo.png", mode, color, transparency=color)) == (255, 255, 255)


def test_16_bits_keep_their_gradient(tmp_path):
    values = np.repeat(np.linspace(0, 65535, 32).astype(np.uint16)[None], 32, axis=0)
    pixels = read_photo(_save_array(tmp_path / "photo.png", values))
    expected = torch.linspace(0, 255, 32)
    assert (pixels.float() - expected).abs().max() <= 1


def test_a_dark_picture_of_16_bits_stays_dark(tmp_path):
    assert max(_color(_save_array(tmp_path / "photo.png", np.full((20, 30), 200, np.uint16)))) <= 1


@pytest.mark.parametrize(("dtype", "brightest"), [(np.int32, 200), (np.float32, 200)])
def test_a_picture_is_not_stretched_to_white(dtype, brightest, tmp_path):
    # Values up to 255 are those of 8 bits, whatever type holds them.
    assert _color(_save_array(tmp_path / "photo.tif", np.full((20, 30), brightest, dtype))) == (brightest,) * 3


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (31, 33), (32, 32), (3000, 2000)])
def test_any_size_becomes_a_square(size, tmp_path):
    path = tmp_path / "photo.png"
    Image.new("RGB", size, (10, 20, 30)).save(path)
    assert _color(path) == (10, 20, 30)


def test_the_side_can_be_chosen(tmp_path):
    pixels = read_photo(_save(tmp_path / "photo.png", "RGB", (1, 2, 3)), size=48)
    assert pixels.shape == (3, 48, 48)
    assert pixels.is_contiguous()


def test_a_picture_of_the_right_size_is_left_as_it_is(tmp_path):
    pixels = read_photo(_save_array(tmp_path / "photo.png", QUARTERS))
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), QUARTERS)


def test_reduction_averages_instead_of_skipping_pixels(tmp_path):
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    pixels = read_photo(_save_array(tmp_path / "photo.png", board)).float()
    assert (pixels - 127.5).abs().max() <= 2


# How a picture is stored that a viewer turns upright by each value of EXIF's orientation.
STORED = {
    1: QUARTERS,
    2: QUARTERS[:, ::-1],
    3: QUARTERS[::-1, ::-1],
    4: QUARTERS[::-1],
    5: QUARTERS.transpose(1, 0, 2),
    6: np.rot90(QUARTERS),
    7: QUARTERS[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(QUARTERS, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_followed(orientation, tmp_path):
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(read_photo(tmp_path / "photo.png").permute(1, 2, 0).numpy(), QUARTERS)


def _broken(folder, kind):
    path = folder / f"broken.{kind}"
    if kind == "png":  # a text file in disguise
        path.write_text("This is no image.\n")
    elif kind == "jpg":  # cut off
        whole = _save(folder / "whole.jpg", "RGB", (1, 2, 3)).read_bytes()
        (folder / "whole.jpg").unlink()
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "gif":
        path.write_bytes(b"")
    elif kind == "blp":  # Pillow raises an error of its own kind for what it has not implemented.
        path.write_bytes(b"BLP2" + struct.pack("<ibbbbII", 99, 1, 0, 0, 0, 4, 4) + bytes(4096))
    return path


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "blp"])
def test_a_broken_file_is_the_user_s_to_mend(kind, tmp_path):
    path = _broken(tmp_path, kind)
    with pytest.raises(UserError, match=rf"broken\.{kind}"):
        read_photo(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"There is no image .*missing\.png"):
        read_photo(tmp_path / "missing.png")


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(UserError, match="cannot be read as an image"):
        read_photo(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_forbidden_file(tmp_path):
    path = _save(tmp_path / "photo.png", "L", 1)
    path.chmod(0)
    with pytest.raises(UserError, match="cannot be read as an image"):
        read_photo(path)


def test_a_picture_too_large_to_be_honest(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match="cannot be read as an image"):
        read_photo(_save(tmp_path / "photo.png", "L", 1))


def test_folders_are_searched_deeply_in_order_and_whatever_the_case_of_suffixes(tmp_path):
    names = ["a.JPG", "b/c/d.Png", "b/e.tiff", "f.webp"]
    for name in names:
        _save(tmp_path / name, "RGB", (1, 2, 3))
    (tmp_path / "notes.txt").write_text("none")
    (tmp_path / "g.png").mkdir()
    assert find_photos([tmp_path]) == [tmp_path / name for name in names]


def test_files_and_folders_keep_the_order_they_are_given_in(tmp_path):
    last, first = _save(tmp_path / "a" / "x.png", "L", 1), _save(tmp_path / "y.png", "L", 1)
    assert find_photos([str(first), tmp_path / "a"]) == [first, last]


def test_a_file_given_by_name_may_have_any_suffix(tmp_path):
    path = _save(tmp_path / "photo", "L", 7, format="PNG")
    assert find_photos([path]) == [path]
    assert _color(path) == (7, 7, 7)


def test_a_path_that_does_not_exist(tmp_path):
    with pytest.raises(UserError, match=r"no image or folder .*missing"):
        find_photos([tmp_path / "missing"])


def test_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match=rf"No images in {tmp_path}; give image files"):
        find_photos([tmp_path])


def test_no_paths_at_all():
    with pytest.raises(UserError, match="No images in nothing"):
        Photos([], MEAN, STD)


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "blp"])
def test_a_broken_file_in_a_folder_does_not_cost_the_others(kind, tmp_path):
    good = [_save(tmp_path / name, "RGB", (1, 2, 3)) for name in ("a.png", "z.png")]
    _broken(tmp_path, kind)
    with pytest.warns(UserWarning, match=rf"Left out: .*broken\.{kind}"):
        photos = Photos([tmp_path], MEAN, STD)
    assert photos.files == good
    assert len(photos) == 2


def test_a_broken_file_given_by_name_is_an_error(tmp_path):
    good = _save(tmp_path / "a.png", "RGB", (1, 2, 3))
    with pytest.raises(UserError, match=r"broken\.png is not an image"):
        Photos([good, _broken(tmp_path, "png")], MEAN, STD)


def test_a_folder_of_nothing_but_broken_files(tmp_path):
    _broken(tmp_path, "png")
    with (
        pytest.warns(UserWarning, match="Left out"),
        pytest.raises(UserError, match=r"None of the files in .* can be read"),
    ):
        Photos([tmp_path], MEAN, STD)


def test_photos_come_normalised_with_their_paths(tmp_path):
    paths = [_save(tmp_path / f"{value}.png", "L", value) for value in (10, 20, 30)]
    photos = Photos([tmp_path], MEAN, STD, size=16)
    image, path = photos[1]
    assert path == str(paths[1])
    expected = torch.full((1, 3, 16, 16), 20, dtype=torch.uint8)
    torch.testing.assert_close(image, normalise(expected, MEAN, STD)[0], rtol=0, atol=0)


def test_photos_make_batches(tmp_path):
    for value in (10, 20, 30):
        _save(tmp_path / f"{value}.png", "L", value)
    (first, second), paths = zip(*DataLoader(Photos([tmp_path], MEAN, STD), batch_size=2), strict=True)
    assert (first.shape, second.shape) == ((2, 3, 32, 32), (1, 3, 32, 32))
    assert [len(names) for names in paths] == [2, 1]
