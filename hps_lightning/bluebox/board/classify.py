"""Classifies image files from the command line: python3 classify.py photo.ppm another.npy

PPM, PGM (binary) and NumPy files are read as they are, all others where Pillow is installed.
"""

import argparse
import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

part = "numpy"
try:
    import numpy as np

    part = "bundle.py"
    from bundle import Bundle, BundleError

    part = "frames.py"
    from frames import FITS, FrameError, check, to_rgb, to_square
except Exception as error:  # A file that is cut off fails in every way that there is.
    reason = " ".join(str(error).split()) or type(error).__name__
    sys.exit("classify: error: {}: {}; numpy, PyTorch and the whole bundle are needed".format(part, reason))


def read_image(path):
    """An image file as uint8, rows x columns x 3, RGB, as `hps predict` sees it.

    Raises:
        FrameError: it cannot be read as an image; the message names it.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(6)
            file.seek(0)
            if start == b"\x93NUMPY":
                frame = np.load(file, allow_pickle=False)
            elif re.match(rb"P[56]\s", start):
                frame = _netpbm(file.read())
            else:
                frame = _with_pillow(file)
        check(frame)
        orders = {1: "GRAY", 3: "RGB", 4: "RGBA"}
        channels = 1 if frame.ndim == 2 else frame.shape[2]
        if channels not in orders:
            raise FrameError("it has {} channels; 1, 3 or 4 are read".format(channels))
        return to_rgb(frame, orders[channels])
    except (FrameError, EnvironmentError) as error:
        raise FrameError("{} cannot be read: {}".format(path, getattr(error, "strerror", None) or error))
    except Exception as error:  # A broken file fails in every way that there is.
        raise FrameError("{} is damaged: {}".format(path, " ".join(str(error).split()) or type(error).__name__))


def _netpbm(content):
    """A binary PPM or PGM: "P6", columns, rows and 255 with spaces or comments between, one space, the values."""
    space = rb"(?:\s|#[^\n]*\n)+"
    header = re.match(rb"(P[56])" + space + rb"(\d+)" + space + rb"(\d+)" + space + rb"(\d+)\s", content)
    if not header or int(header.group(4)) != 255:
        raise FrameError("it is no PPM or PGM of 8 bits")
    columns, rows, channels = int(header.group(2)), int(header.group(3)), 3 if header.group(1) == b"P6" else 1
    values = np.frombuffer(content, np.uint8)[header.end() :]
    if values.size < rows * columns * channels:
        raise FrameError("it is cut off")
    return values[: rows * columns * channels].reshape(rows, columns, channels)


def _with_pillow(file):
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise FrameError("Pillow is not installed, which reads it; or convert it to PPM")
    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise FrameError("it has more than 8 bits a value; convert it")
            # Pillow before 6 does not turn what a camera held upright.
            image = getattr(ImageOps, "exif_transpose", lambda image: image)(image)
            if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
                image = image.convert("RGBA")
                # What shines through in a viewer is usually white.
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.array(image.convert("RGB"))
    except FrameError:
        raise
    except Exception as error:  # Pillow's plugins raise errors of every kind for a broken file.
        reason = " ".join(str(error).split()) or type(error).__name__
        if reason.startswith("cannot identify"):
            raise FrameError("Pillow finds no image in it")
        raise FrameError("Pillow finds no image in it that it can read ({})".format(reason))


def _print(line):
    """Prints a line, file names with letters that the terminal does not know included."""
    try:
        print(line)
    except UnicodeEncodeError:
        encoding = sys.stdout.encoding or "ascii"
        print(line.encode(encoding, "backslashreplace").decode(encoding))


def main(argv=None):
    """Runs the command line; returns the exit status: 2 where the bundle or an image cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--bundle", default=HERE, help="folder of the bundle (default: this file's)")
    parser.add_argument("--top-k", type=int, default=1, help="how many classes to print (default: 1)")
    parser.add_argument("--resize", choices=FITS, default="stretch", help="how to bring an image to the network's size")
    arguments = parser.parse_args(argv)
    try:
        bundle = Bundle(arguments.bundle)
    except BundleError as error:
        sys.stderr.write("classify: error: {}\n".format(error))
        return 2
    status = 0
    for path in arguments.images:
        try:
            image = to_square(read_image(path), "RGB", bundle.side, arguments.resize)
        except FrameError as error:
            sys.stderr.write("classify: error: {}\n".format(error))
            status = 2
            continue
        probabilities = bundle.probabilities(image[np.newaxis])[0]
        best = np.argsort(-probabilities, kind="mergesort")[: max(1, arguments.top_k)]
        answers = "\t".join("{} {:.4f}".format(bundle.classes[i], probabilities[i]) for i in best)
        _print("{}\t{}".format(path, answers))
    return status


if __name__ == "__main__":
    sys.exit(main())
