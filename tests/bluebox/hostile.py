"""What a camera, a wire or a diagram gone wrong may bring to the block: frames and values of properties, by a seed."""

import array
import decimal
import fractions
from types import SimpleNamespace

import numpy as np
import torch

ORDERS = ["GRAY", "RGB", "BGR", "RGBA", "BGRA", "YUV", "YUYV", "UYVY"]
SIDES = [0, 1, 1, 2, 3, 4, 5, 16, 31, 32, 32, 33, 64, 100]
DTYPES = [
    *(
        "u1",
        "u1",
        "u1",
        "u1",
        "i1",
        "?",
        "<u2",
        ">u2",
        "<i4",
        ">i8",
        "<f2",
        "<f4",
        ">f4",
        "<f8",
        "<c8",
        "O",
        "S3",
        "U2",
    ),
    *("V5", "<M8[s]", "<m8[ns]", [("r", "u1"), ("g\n", "u1")]),
]
TEXTS = [
    *(
        "",
        " ",
        "\0",
        "\n",
        "a\nb\r\nc",
        "\x1b[2J\x1b[31mred",
        "\u2028\u2029\x85\x0b",
        "v\u00f6gel \U0001f426",
        "\ud800",
    ),
    *("../../..", "/dev/null", "/dev/zero", "/proc/self", ".", "//", "~", "C:\\nowhere", "file:///etc", "|", "||||||"),
    *("9|3|auto", "3|-1|stretch|crop|off", "nan", "inf", "-1", "1e400", "0x10", "1_000", "9" * 5000, "x" * 300_000),
    *("%s%n", "{}{0}{name}", "'; DROP TABLE", "RGBARGBA", "stretch\n", "image left out: no", "\r", "\t1\t"),
]


class UnprintableError(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class EndingError(Exception):
    def __str__(self):
        raise SystemExit(3)


FAILURES = [
    *(AttributeError("no"), KeyError("a\nb"), ValueError("x\n" * 100_000), MemoryError(), RecursionError("deep")),
    *(StopIteration(), OSError(28, "No space\nleft"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), UserWarning()),
    *(
        UnprintableError(),
        EndingError(),
        SystemExit(1),
        SystemExit("bye"),
        GeneratorExit(),
        Exception(),
        AssertionError(),
    ),
    *(type("A\nB", (Exception,), {})(), Exception("\ud800\x1b[2J"), ZeroDivisionError(), RuntimeError("\0")),
]


class Raising:
    """Raises however it is used."""

    def __init__(self, error):
        self.__dict__["error"] = error

    def _raise(self, *arguments):
        raise self.__dict__["error"]

    __getattr__ = __str__ = __repr__ = __len__ = __iter__ = __getitem__ = __bool__ = __eq__ = __hash__ = _raise
    __int__ = __float__ = __index__ = __fspath__ = __array__ = _raise


class RaisingField:
    """An image or an element, or one of a property, of which one field raises."""

    def __init__(self, field, error, **others):
        object.__getattribute__(self, "__dict__").update(others, _field=field, _error=error)

    def __getattribute__(self, name):
        state = object.__getattribute__(self, "__dict__")
        if name == state["_field"]:
            raise state["_error"]
        return object.__getattribute__(self, name)


class OwnArray(np.ndarray):
    """A subclass whose methods and attributes are lies."""

    def __getitem__(self, key):
        raise IndexError("mine\nonly")

    def reshape(self, *shape):
        return None

    shape = property(lambda self: ("wide", "high"))
    ndim = property(lambda self: 3)
    dtype = property(lambda self: np.dtype("u1"))

    def __array_function__(self, *arguments):
        raise TypeError("no function")


def _sides(random, count):
    return tuple(random.choice(SIDES) for _ in range(count))


def plain_array(random):
    """Any type, any number of dimensions, any layout in memory."""
    dimensions = random.choice([0, 1, 2, 2, 3, 3, 3, 3, 4, 6])
    shape = _sides(random, min(dimensions, 2)) + tuple(
        random.choice([1, 2, 3, 3, 4, 4, 5, 0]) for _ in range(dimensions - 2)
    )
    dtype = np.dtype(random.choice(DTYPES))
    count = int(np.prod(shape, dtype=np.int64))
    if dtype.kind in "fc":
        special = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, 255.0, 1e-42]
        with np.errstate(all="ignore"):
            values = np.array([random.choice(special) for _ in range(min(count, 50))] or [0]).astype(dtype)
    elif dtype.kind == "O":
        values = np.array([None], dtype)
    else:
        values = np.frombuffer(random.randbytes(dtype.itemsize * 64), dtype)
    result = np.resize(values, shape)
    layout = random.randrange(8)
    if layout == 1:
        result = np.asfortranarray(result)
    elif layout == 2 and result.ndim:
        result = result[:: random.choice([-1, 2, -3])]
    elif layout == 3 and result.ndim > 1:
        result = result[:, ::-1]
    elif layout == 4:
        result = result.T
    elif layout == 5:
        result.flags.writeable = False
    elif layout == 6 and result.size:
        result = np.broadcast_to(result.reshape(-1)[0], result.shape)
    return result


def subclass(random):
    """A matrix, a masked array, records, or one of its own."""
    base = np.resize(np.frombuffer(random.randbytes(64), np.uint8), (*_sides(random, 2), random.choice([1, 3, 4])))
    kind = random.randrange(5)
    if kind == 0:
        return base[:, :, 0].view(np.matrix)
    if kind == 1:
        return np.ma.masked_array(base, mask=random.random() < 0.5)
    if kind == 2:
        return base.view(np.recarray)
    if kind == 3:
        return np.ma.masked
    return base.view(OwnArray)


def huge(random):
    """Shapes that no memory holds, and thin ones that are just not too large."""
    value = np.uint8(random.randrange(256))
    shape = random.choice(
        [(2**40, 2**20), (2**31, 3, 3), (32769, 4, 3), (32768, 1, 3), (1, 32768, 4), (2, 32768), (9000, 9000, 3)]
    )
    return np.broadcast_to(value, shape)


def other_object(random):
    """What is no array at all."""
    return random.choice(
        [
            *(
                0,
                -1,
                2**70,
                10**5000,
                1.5,
                float("nan"),
                float("inf"),
                True,
                1j,
                Ellipsis,
                NotImplemented,
                object(),
                type,
            ),
            *(
                b"",
                b"\xff" * 3072,
                bytearray(3072),
                memoryview(bytes(3072)),
                array.array("B", bytes(12)),
                [],
                [[1, 2], [3]],
            ),
            *((), {}, {"image_data": 1}, set(), range(5), iter(()), len, np.uint8(3), np.dtype("u1"), np.ndarray),
            *(torch.zeros(3, 4, 3, dtype=torch.uint8), decimal.Decimal("sNaN"), fractions.Fraction(1, 3), slice(None)),
            *(random.choice(TEXTS), Raising(random.choice(FAILURES)), SimpleNamespace(image_data=None)),
        ]
    )


def any_data(random):
    """A frame's data of any of these kinds."""
    kinds = [plain_array, plain_array, plain_array, subclass, huge, other_object]
    return random.choice(kinds)(random)


def structure(random):
    """An image whose fields lie, contradict each other, or raise."""
    from rtmaps.types import IplImage

    named = random.choice(
        [*ORDERS, *ORDERS, *TEXTS, None, b"BGR", b"\xff", 5, float("nan"), [], Raising(random.choice(FAILURES))]
    )
    if random.random() < 0.15:
        field = random.choice(["image_data", "channel_seq", "color_model"])
        return RaisingField(
            field, random.choice(FAILURES), image_data=plain_array(random), channel_seq=named, color_model="COLR"
        )
    image = IplImage(any_data(random), random.choice(["COLR", "MONO", "", None, 7]), named)
    for field in ("width", "height", "depth", "nChannels", "widthStep", "imageSize", "origin", "align"):
        if random.random() < 0.5:
            setattr(image, field, random.choice([0, -1, 1, 8, 16, 2**31, 2**70, None, "8", float("nan"), b"\0"]))
    return image


def frame(random):
    """What comes to the input ``image``: data alone or in a structure."""
    return (structure if random.random() < 0.6 else any_data)(random)


def stamp(random):
    """A time; most are one."""
    return random.choice([0, 1, 2**62, 5, 7, 123456, -1, None, 1.5, "now", 2**200, Raising(random.choice(FAILURES))])


def element(random):
    """A whole element of the stream that is none, or whose fields raise."""
    kind = random.randrange(4)
    if kind == 0:
        return other_object(random)
    if kind == 1:
        return SimpleNamespace(ts=stamp(random))
    return RaisingField(random.choice(["ts", "data"]), random.choice(FAILURES), ts=0, data=plain_array(random))


def value(random):
    """A property's value."""
    return random.choice(
        [
            *(
                None,
                True,
                False,
                0,
                1,
                2,
                3,
                -1,
                1000,
                1001,
                2**31,
                2**70,
                -(2**70),
                10**5000,
                1.5,
                -0.0,
                1e-300,
                1e308,
            ),
            *(
                float("nan"),
                float("inf"),
                1j,
                decimal.Decimal("NaN"),
                fractions.Fraction(1, 2),
                b"1",
                b"\xff\xfe",
                b"RGB",
            ),
            *(
                [],
                [1],
                {},
                (),
                object(),
                type,
                np.float32(0.5),
                np.array([1, 2]),
                np.array(3),
                Raising(random.choice(FAILURES)),
            ),
            *(random.choice(TEXTS) for _ in range(20)),
            *(
                "".join(chr(random.choice([random.randrange(128), random.randrange(0x11000)])) for _ in range(12))
                for _ in range(5)
            ),
            *(str(random.uniform(-1, 2)), str(random.randrange(-2, 4)), random.choice(ORDERS), "crop", "Off"),
        ]
    )
