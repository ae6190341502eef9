import numpy as np
import pytest
from PIL import Image

random = np.random.RandomState(5)
PICTURE = random.randint(0, 256, (6, 4, 3)).astype(np.uint8)
OPAQUE = np.full((6, 4, 1), 9, np.uint8)


def noise(rows, columns, channels=3):
    return np.random.RandomState(rows + columns).randint(0, 256, (rows, columns, channels)).astype(np.uint8)


def pillow(frame, side):
    return np.array(Image.fromarray(frame).resize((side, side), Image.Resampling.BILINEAR)).astype(int)


@pytest.mark.parametrize(
    ("order", "frame"),
    [
        ("RGB", PICTURE),
        ("BGR", PICTURE[:, :, ::-1].copy()),
        ("RGBA", np.concatenate([PICTURE, OPAQUE], 2)),
        ("BGRA", np.concatenate([PICTURE[:, :, ::-1], OPAQUE], 2)),
    ],
)
def test_channels_come_in_their_order(frames, order, frame):
    before = frame.copy()
    assert np.array_equal(frames.to_rgb(frame, order), PICTURE)
    assert np.array_equal(frame, before)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1)])
def test_grey_is_the_same_in_each_channel(frames, shape):
    grey = noise(5, 7, 1)
    rgb = frames.to_rgb(grey.reshape(shape), "GRAY")
    assert np.array_equal(rgb, np.concatenate([grey, grey, grey], 2))


def test_yuv_is_pillows(frames):
    yuv = noise(64, 64)
    expected = np.array(Image.merge("YCbCr", [Image.fromarray(yuv[:, :, c]) for c in range(3)]).convert("RGB"))
    assert np.abs(frames.to_rgb(yuv, "YUV").astype(int) - expected).max() <= 1


# Of BT.601's video range, with 4:2:2 chroma: black, white, grey, and the three primaries.
PAIRS = {
    (0, 0, 0): (16, 128, 128),
    (255, 255, 255): (235, 128, 128),
    (128, 128, 128): (126, 128, 128),
    (255, 0, 0): (81, 90, 240),
    (0, 255, 0): (145, 54, 34),
    (0, 0, 255): (41, 240, 110),
}


@pytest.mark.parametrize(("colour", "yuv"), PAIRS.items())
def test_packed_yuv_has_the_standards_colours(frames, colour, yuv):
    y, u, v = yuv
    packed = np.array([[[y, u], [y, v]] * 2] * 3, np.uint8)
    for order, frame in (("YUYV", packed), ("UYVY", packed[:, :, ::-1])):
        rgb = frames.to_rgb(frame, order)
        assert rgb.shape == (3, 4, 3)
        assert np.abs(rgb.astype(int) - colour).max() <= 2, order


def test_neighbours_share_their_colour_but_not_their_brightness(frames):
    row = frames.to_rgb(np.array([[[16, 90], [81, 240], [235, 128], [16, 128]]], np.uint8), "YUYV")[0].astype(int)
    assert row[0][0] < row[1][0]
    assert row[1][0] > 250
    assert row[2].tolist() == [255] * 3
    assert row[3].tolist() == [0] * 3


def test_a_frame_without_the_channels_of_its_order_is_refused(frames):
    with pytest.raises(frames.FrameError, match="a BGR frame has 3 channels, this one 4"):
        frames.to_rgb(noise(4, 4, 4), "BGR")
    with pytest.raises(frames.FrameError, match="a YUYV frame has an even number of columns, this one 3"):
        frames.to_rgb(noise(4, 3, 2), "YUYV")


@pytest.mark.parametrize(
    ("frame", "match"),
    [
        (None, "no image: NoneType"),
        ("frame", "no image: str"),
        (np.zeros((4, 4, 3), np.float32), "float32 values instead of uint8"),
        (np.zeros((4, 4, 3), object), "object values"),
        (np.array(3, np.uint8), "this one is a single value"),
        (np.zeros(4, np.uint8), "this one is 4$"),
        (np.zeros((4, 4, 5), np.uint8), "this one is 4 x 4 x 5"),
        (np.zeros((2, 4, 4, 3), np.uint8), "this one is 2 x 4 x 4 x 3"),
        (np.zeros((0, 4, 3), np.uint8), "empty: 0 x 4 x 3"),
        (np.zeros((4, 0), np.uint8), "empty: 4 x 0"),
        (np.broadcast_to(np.uint8(1), (40000, 4, 3)), "larger than 32768 pixels"),
        (np.broadcast_to(np.uint8(1), (9000, 9000, 3)), "more than 64 million pixels: 9000 x 9000 x 3"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(frames, frame, match):
    for call in (lambda: frames.check(frame), lambda: frames.to_square(frame, "RGB", 32)):
        with pytest.raises(frames.FrameError, match=match) as error:
            call()
        assert "\n" not in str(error.value)


SIZES = [
    (75, 100),
    (480, 640),
    (1080, 1920),
    (33, 31),
    (1, 1),
    (1, 100),
    (100, 1),
    (2, 3),
    (31, 64),
    (32, 64),
    (64, 32),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_resizing_is_within_a_grey_level_of_pillows(frames, size, channels):
    frame = noise(*size, channels)
    resized = frames.resize(frame, 32, 32)
    assert resized.shape == (32, 32, channels)
    assert resized.dtype == np.uint8
    for channel in range(channels):
        off = np.abs(resized[:, :, channel] - pillow(frame[:, :, channel], 32))
        assert off.max() <= 1
        assert off.mean() < 0.3


def test_an_image_of_48_million_pixels(frames):
    ramp = np.linspace(0, 255, 8000).astype(np.uint8)
    frame = np.broadcast_to(ramp[np.newaxis, :, np.newaxis], (6000, 8000, 3))
    square = frames.to_square(frame, "BGR", 32)
    assert np.abs(square - pillow(np.repeat(ramp[np.newaxis], 32, 0), 32)[:, :, np.newaxis]).max() <= 1


def views():
    frame = noise(90, 70)
    wide = noise(180, 140)
    fixed = frame.copy()
    fixed.setflags(write=False)
    return {
        "every other pixel": wide[::2, ::2],
        "upside down": frame[::-1],
        "mirrored": frame[:, ::-1],
        "channels swapped": frame[:, :, ::-1],
        "Fortran's order": np.asfortranarray(frame),
        "cut out": noise(200, 200)[7:97, 5:75],
        "transposed": noise(70, 90).transpose(1, 0, 2),
        "not to be written": fixed,
        "one row": np.broadcast_to(frame[:1], frame.shape),
    }


@pytest.mark.parametrize("name", views())
@pytest.mark.parametrize("how", ["stretch", "crop"])
def test_frames_that_are_not_in_one_piece(frames, name, how):
    frame = views()[name]
    before = frame.copy()
    assert np.array_equal(frames.to_square(frame, "BGR", 32, how), frames.to_square(before, "BGR", 32, how))
    assert np.array_equal(frame, before)


@pytest.mark.parametrize(("order", "channels"), [("GRAY", 1), ("RGB", 3), ("BGR", 3), ("RGBA", 4), ("BGRA", 4)])
@pytest.mark.parametrize("how", ["stretch", "crop"])
def test_the_cheaper_sequence_gives_the_same(frames, order, channels, how):
    frame = noise(50, 70, channels)
    expected = frames.fit(frames.to_rgb(frame, order), 32, how)
    assert np.array_equal(frames.to_square(frame, order, 32, how), expected)


@pytest.mark.parametrize(("order", "channels"), [("YUV", 3), ("YUYV", 2), ("UYVY", 2)])
def test_yuv_is_converted_before_it_is_reduced(frames, order, channels):
    frame = noise(50, 70, channels)
    expected = frames.resize(frames.to_rgb(frame, order), 32, 32)
    assert np.array_equal(frames.to_square(frame, order, 32), expected)


@pytest.mark.parametrize(("order", "channels"), [("YUV", 3), ("YUYV", 2), ("UYVY", 2)])
def test_yuv_of_many_rows_is_converted_in_bands(frames, order, channels):
    frame = noise(150, 6, channels)
    rows = [frames.to_rgb(frame[row : row + 1], order) for row in range(150)]
    assert np.array_equal(frames.to_rgb(frame, order), np.concatenate(rows))


@pytest.mark.parametrize("kind", [np.matrix, np.ma.MaskedArray, np.recarray])
def test_a_subclass_counts_as_the_array_that_it_is(frames, kind):
    frame = noise(40, 50, 1)[:, :, 0]
    assert type(frames.check(frame.view(kind))) is np.ndarray
    assert np.array_equal(frames.to_square(frame.view(kind), "GRAY", 32), frames.to_square(frame, "GRAY", 32))


@pytest.mark.parametrize(
    ("size", "part"),
    [((50, 70), np.s_[:, 10:60]), ((70, 50), np.s_[10:60]), ((5, 8), np.s_[:, 1:6]), ((50, 50), np.s_[:])],
)
def test_the_middle_square(frames, size, part):
    frame = noise(*size)
    assert np.abs(frames.fit(frame, 32, "crop") - pillow(frame[part].copy(), 32)).max() <= 1


def test_another_size_is_refused_where_resizing_is_off(frames):
    assert np.array_equal(frames.fit(noise(32, 32), 32, "off"), noise(32, 32))
    with pytest.raises(frames.FrameError, match="32 x 33 instead of 32 x 32, and resizing is off"):
        frames.fit(noise(32, 33), 32, "off")


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("BGR", "BGR"),
        ("bgr", "BGR"),
        (b"RGBA", "RGBA"),
        ("BGR\0", "BGR"),
        (" GREY ", "GRAY"),
        ("MONO", "GRAY"),
        ("YUY2", "YUYV"),
        ("", None),
        (None, None),
        (3, None),
        ("LAB", None),
        (b"\xff", None),
    ],
)
def test_names_of_channel_orders(frames, name, order):
    assert frames.channel_order(name) == order
