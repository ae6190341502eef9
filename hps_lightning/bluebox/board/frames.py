"""Camera frames as the network takes them: RGB, of its size, whatever the camera sends.

It needs numpy alone, and keeps to the syntax of Python 3.5.
"""

import functools

import numpy as np

CHANNEL_ORDERS = ("GRAY", "RGB", "BGR", "RGBA", "BGRA", "YUV", "YUYV", "UYVY")
"""What :func:`to_rgb` converts; YUV is 4:4:4 of full range, YUYV and UYVY are 4:2:2 of video range (BT.601)."""

FITS = ("stretch", "crop", "off")
"""How a frame of another shape comes to the network's square: see :func:`fit`."""

_CHANNELS = {"GRAY": 1, "YUYV": 2, "UYVY": 2, "RGB": 3, "BGR": 3, "YUV": 3, "RGBA": 4, "BGRA": 4}
_PLAIN = ("GRAY", "RGB", "BGR", "RGBA", "BGRA")
_SYNONYMS = {"GREY": "GRAY", "MONO": "GRAY", "Y": "GRAY", "YUY2": "YUYV"}
_MOSAICS = ("NV12", "NV21", "I420", "IYUV", "YV12", "YU12", "P010", "YUV4", "YUV_4", "BAYER")
_MOSAICS += ("RGGB", "BGGR", "GRBG", "GBRG")
# No camera's; a header gone wrong is refused before its size takes the memory.
_LARGEST_SIDE = 32768
_MOST_PIXELS = 1 << 26
# Rows that are converted from YUV at a time: in float32 a whole large frame would take gigabytes.
_BAND = 64


class FrameError(ValueError):
    """A frame that cannot be classified; the message says why, in one line."""


def check(frame):
    """Refuses what is no picture of uint8 values.

    Returns:
        The frame as a plain array: a matrix, say, is indexed otherwise.

    Raises:
        FrameError: the frame is no array, empty, too large, or of another type or shape.
    """
    if not isinstance(frame, np.ndarray):
        raise FrameError("the frame is no image: {}".format(type(frame).__name__))
    frame = np.asarray(frame)
    if frame.dtype != np.uint8:
        raise FrameError("the frame holds {} values instead of uint8".format(frame.dtype))
    if frame.ndim not in (2, 3) or (frame.ndim == 3 and not 1 <= frame.shape[2] <= 4):
        raise FrameError("a frame is rows x columns [x 1 to 4 channels], this one is {}".format(_shape(frame)))
    if frame.size == 0:
        raise FrameError("the frame is empty: {}".format(_shape(frame)))
    if max(frame.shape[:2]) > _LARGEST_SIDE:
        raise FrameError("the frame is larger than {} pixels: {}".format(_LARGEST_SIDE, _shape(frame)))
    if frame.shape[0] * frame.shape[1] > _MOST_PIXELS:
        raise FrameError("the frame has more than {} million pixels: {}".format(_MOST_PIXELS >> 20, _shape(frame)))
    return frame


def _shape(frame):
    return " x ".join(str(side) for side in frame.shape) or "a single value"


def channel_order(name):
    """One of :data:`CHANNEL_ORDERS` for what a runtime or a user calls it, or None if it is none."""
    name = _plain(name)
    name = _SYNONYMS.get(name, name)
    return name if name in CHANNEL_ORDERS else None


def is_mosaic(name):
    """Whether a runtime's name of an order means planar YUV or a Bayer pattern: colours in one channel."""
    return _plain(name).startswith(_MOSAICS)


def _plain(name):
    if isinstance(name, bytes):
        name = name.decode("ascii", "replace")
    return name.strip("\0 ").upper() if isinstance(name, str) else ""


def to_rgb(frame, order):
    """A frame in another order of channels as RGB.

    Args:
        frame: uint8, rows x columns [x channels]; it is neither kept nor changed. Alpha is left out.
        order: one of :data:`CHANNEL_ORDERS`.

    Returns:
        uint8, rows x columns x 3.

    Raises:
        FrameError: the frame has not the channels of its order.
    """
    frame = check(frame)
    channels = 1 if frame.ndim == 2 else frame.shape[2]
    if channels != _CHANNELS[order]:
        raise FrameError("a {} frame has {} channels, this one {}".format(order, _CHANNELS[order], channels))
    if order == "GRAY":
        return np.repeat(frame.reshape(frame.shape[:2] + (1,)), 3, axis=2)
    if order in ("RGB", "RGBA"):
        return frame[:, :, :3]
    if order in ("BGR", "BGRA"):
        return frame[:, :, 2::-1]
    if order != "YUV" and frame.shape[1] % 2:
        raise FrameError("a {} frame has an even number of columns, this one {}".format(order, frame.shape[1]))
    rgb = np.empty(frame.shape[:2] + (3,), np.uint8)
    for first in range(0, len(frame), _BAND):
        rgb[first : first + _BAND] = _yuv_to_rgb(frame[first : first + _BAND], order)
    return rgb


def _yuv_to_rgb(frame, order):
    if order == "YUV":
        y, u, v = (frame[:, :, c].astype(np.float32) for c in range(3))
        return _from_yuv(y, u - 128, v - 128)
    luma, chroma = (0, 1) if order == "YUYV" else (1, 0)
    y = (frame[:, :, luma].astype(np.float32) - 16) * (255.0 / 219)
    # Two neighbours share their colour: the first carries U, the second V.
    u = np.repeat(frame[:, 0::2, chroma].astype(np.float32) - 128, 2, axis=1) * (255.0 / 224)
    v = np.repeat(frame[:, 1::2, chroma].astype(np.float32) - 128, 2, axis=1) * (255.0 / 224)
    return _from_yuv(y, u, v)


def to_square(frame, order, side, how="stretch"):
    """What the network takes of a camera's frame: :func:`to_rgb` and :func:`fit`, in the cheaper sequence.

    Args:
        frame: as :func:`to_rgb` takes it.
        order: likewise.
        side: of the result, in pixels.
        how: as :func:`fit` takes it.

    Returns:
        uint8, side x side x 3, RGB; it may be a view of the frame.

    Raises:
        FrameError: as :func:`to_rgb` and :func:`fit`.
    """
    frame = check(frame)
    channels = 1 if frame.ndim == 2 else frame.shape[2]
    if channels == _CHANNELS[order] and order in _PLAIN:
        # Colours that are only put in another place may be reduced first, where they lie in one piece.
        return to_rgb(fit(frame.reshape(frame.shape[:2] + (channels,)), side, how), order)
    return fit(to_rgb(frame, order), side, how)


def _from_yuv(y, u, v):
    # ITU-R BT.601, full range.
    rgb = np.stack([y + 1.402 * v, y - 0.344136 * u - 0.714136 * v, y + 1.772 * u], axis=2)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def fit(frame, side, how="stretch"):
    """A frame as a square of the network's size.

    Args:
        frame: uint8, rows x columns x channels.
        side: of the result, in pixels.
        how: "stretch" squeezes the whole frame into the square, as training and `hps predict`
            do; "crop" takes the largest square in its middle; "off" refuses another size.

    Raises:
        FrameError: the frame is of another size and ``how`` is "off".
    """
    rows, columns = frame.shape[:2]
    if (rows, columns) == (side, side):
        return frame
    if how == "off":
        raise FrameError(
            "the frame is {} x {} instead of {} x {}, and resizing is off".format(rows, columns, side, side)
        )
    if how == "crop":
        square = min(rows, columns)
        top, left = (rows - square) // 2, (columns - square) // 2
        frame = frame[top : top + square, left : left + square]
    return resize(frame, side, side)


def resize(frame, rows, columns):
    """Resizes with a bilinear filter that is antialiased where it reduces.

    The result lies within 1 grey level of Pillow's ``Image.resize(..., Image.BILINEAR)``,
    which rounds once more in between.

    Args:
        frame: uint8, rows x columns x channels.
        rows: of the result.
        columns: likewise.

    Returns:
        uint8, ``rows`` x ``columns`` x channels.
    """
    channels = frame.shape[2]
    if frame.shape[0] != rows:
        width = frame.shape[1] * channels
        reduced = np.empty((rows, frame.shape[1], channels), np.float32)
        for row, (first, weights) in enumerate(_filters(frame.shape[0], rows)):
            # Slice by slice: a whole large frame in float32 would take gigabytes.
            part = frame[first : first + len(weights)].reshape(len(weights), width)
            # In rows however the frame lies, or the sums of the same pixels would be rounded in another order.
            reduced[row] = np.dot(weights, part.astype(np.float32, order="C")).reshape(-1, channels)
    else:
        reduced = frame.astype(np.float32, order="C")
    if frame.shape[1] != columns:
        result = np.empty((rows, columns, channels), np.float32)
        for column, (first, weights) in enumerate(_filters(frame.shape[1], columns)):
            result[:, column] = np.tensordot(weights, reduced[:, first : first + len(weights)], axes=(0, 1))
    else:
        result = reduced
    return np.clip(np.floor(result + 0.5), 0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=16)
def _filters(size, new_size):
    """For each pixel of the result: the first pixel that it is made of, and the weights from there on."""
    scale = size / float(new_size)
    support = max(scale, 1.0)
    filters = []
    for pixel in range(new_size):
        centre = (pixel + 0.5) * scale
        first = max(int(centre - support + 0.5), 0)
        last = min(int(centre + support + 0.5), size)
        distances = (np.arange(first, last) - centre + 0.5) / support
        weights = np.maximum(1 - np.abs(distances), 0)
        filters.append((first, (weights / weights.sum()).astype(np.float32)))
    return filters
