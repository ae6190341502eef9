"""Shows a bundle's RTMaps block at work without RTMaps: `python -m hps_lightning.bluebox.replay BUNDLE images/`.

The block is the bundle's own file, driven by the stand-in of :mod:`hps_lightning.bluebox.standin`
from image files, a data set's test images, or a made camera. The times are this machine's.
"""

import argparse
import contextlib
import math
import os
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hps_lightning.bluebox.manifest import load_manifest
from hps_lightning.bluebox.standin import load_standin
from hps_lightning.cli.parser import OneLineParser
from hps_lightning.data.photos import find_photos, open_photo
from hps_lightning.errors import UserError

BLOCK_FILE = "rtmaps_block.py"
CHANNEL_ORDERS = ("bgr", "rgb", "bgra", "rgba", "gray")
"""How the frames may come to the block; a camera's are BGR."""

_WEBCAM_FRAMES = 300
# No clock waits much longer, or tells shorter times: the block's time stamps are microseconds.
_SLOWEST_FPS, _FASTEST_FPS = 1e-6, 1e6

Frame = tuple[np.ndarray | None, str | None]
"""A picture (uint8, rows x columns x 3, RGB; None where it cannot be read) and its class, where that is known."""


class FileFrames(Sequence[Frame]):
    """Image files as frames; one is of the class that ``labels`` or else its folder's name says.

    A file given by name that cannot be read is an error; one found in a folder has no picture.

    Args:
        paths: image files, and folders that hold some at any depth.
        classes: the bundle's.
        labels: a file with a line "image class" for each, image paths being relative to it.

    Raises:
        UserError: there are no images, or ``labels`` cannot be used.
    """

    def __init__(self, paths: Sequence[Path], classes: Sequence[str], labels: Path | None = None) -> None:
        self._named = set(paths)
        self._files = find_photos(paths)
        self._classes = classes
        self._labels = None if labels is None else _read_labels(labels, classes)
        if self._labels is not None and not any(file.resolve() in self._labels for file in self._files):
            raise UserError(f"{labels} names none of the images; its paths are relative to the folder that it lies in.")

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Frame:
        file = self._files[index]
        if self._labels is not None:
            label = self._labels.get(file.resolve())
        else:
            folder = file.resolve().parent.name
            label = folder if folder in self._classes else None
        try:
            return np.asarray(open_photo(file)), label
        except UserError as error:
            if file in self._named:
                raise
            print(f"replay: left out: {error}", file=sys.stderr)
            return None, label


def _read_labels(path: Path, classes: Sequence[str]) -> dict[Path, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    labels = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        image, _, name = line.rpartition(",") if "," in line else line.strip().replace("\t", " ").rpartition(" ")
        if name.strip() not in classes:
            raise UserError(
                f"{path}, line {number}: {name.strip()!r} is none of the bundle's classes, {', '.join(classes)}."
            )
        labels[Path(path.parent, image.strip()).resolve()] = name.strip()
    return labels


class DatasetFrames(Sequence[Frame]):
    """The test images of a data set as frames.

    Raises:
        UserError: it is not found, or has other classes than the bundle.
    """

    def __init__(self, name: str, classes: Sequence[str], root: Path | None = None) -> None:
        from hps_lightning.data.catalog import dataset_info
        from hps_lightning.data.readers import load_images

        if list(dataset_info(name).classes) != list(classes):
            raise UserError(f"The bundle tells other classes apart than those of {name}: {', '.join(classes)}.")
        split = load_images(name, "test", root)
        self._images = split.images.permute(0, 2, 3, 1).numpy()
        self._labels = [classes[label] for label in split.labels]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Frame:
        return self._images[index], self._labels[index]


class WebcamFrames(Sequence[Frame]):
    """What a camera that turns sees of a made scene: the same frames each time, no two neighbours alike.

    Args:
        columns: of a frame.
        rows: of a frame.
        count: of frames.
    """

    _STEP = 7

    def __init__(self, columns: int, rows: int, count: int = _WEBCAM_FRAMES) -> None:
        random = np.random.RandomState(0)
        patches = random.randint(0, 256, (rows // 16 + 1, 2 * columns // 16 + 1, 3)).astype(np.uint8)
        self._scene = patches.repeat(16, axis=0).repeat(16, axis=1)[:rows]
        self._columns = columns
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Frame:
        if not 0 <= index < self._count:
            raise IndexError(index)
        left = index * self._STEP % self._columns
        return self._scene[:, left : left + self._columns], None


@dataclass
class Outcome:
    """What became of the frames.

    Args:
        sent: by the camera.
        dropped: came while the block was busy.
        left_out: which the block could not use, or which could not be read.
        seconds: from the first frame to the last answer; reading files is not counted.
        latencies: milliseconds that ``Core`` took for each classified frame.
        labelled: classified frames of which the class is known.
        correct: of those.
    """

    sent: int = 0
    dropped: int = 0
    left_out: int = 0
    seconds: float = 0.0
    latencies: array = field(default_factory=lambda: array("d"))
    labelled: int = 0
    correct: int = 0

    @property
    def classified(self) -> int:
        """How many frames the block answered."""
        return len(self.latencies)


class _Camera:
    """A clock that stands still while a file is read, which a camera need not do."""

    def __init__(self, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._clock, self._sleep = clock, sleep
        self._start = clock()

    def now(self) -> float:
        return self._clock() - self._start

    def wait_until(self, moment: float) -> None:
        if moment > self.now():
            self._sleep(moment - self.now())

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        before = self._clock()
        yield
        self._start += self._clock() - before


def play(
    runtime: Any,
    frames: Sequence[Frame],
    classes: Sequence[str],
    fps: float = 0.0,
    limit: float | None = None,
    channel_order: str = "bgr",
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Outcome:
    """Sends frames to a block, as a camera does that waits for nobody.

    A frame that comes while ``Core`` still runs is lost. Ctrl-C ends the replay early.

    Args:
        runtime: the stand-in's ``Runtime``, started.
        frames: sent in their order, and again from the start where ``limit`` is higher.
        classes: the bundle's, in its order.
        fps: frames a second; with 0, each is sent when the block is ready for it.
        limit: how many frames are sent; None for each once, infinity for no end.
        channel_order: one of :data:`CHANNEL_ORDERS`.
        clock: seconds.
        sleep: waits for seconds.

    Returns:
        What became of them.

    Raises:
        UserError: a file given by name cannot be read.
    """
    outcome = Outcome()
    camera = _Camera(clock, sleep)
    index = 0
    last = len(frames) if limit is None else limit
    with contextlib.suppress(KeyboardInterrupt):
        while index < last:
            with camera.standing_still():
                picture, label = frames[index % len(frames)]
                image = None if picture is None else _as_sent(picture, channel_order)
            if fps:
                camera.wait_until(index / fps)
            outcome.sent += 1
            index += 1
            if image is None:
                outcome.left_out += 1
                continue
            started = camera.now()
            stamp = (index - 1) / fps if fps else started
            written = runtime.step(round(1e6 * stamp), image, channel_seq=channel_order.upper())
            outcome.seconds = camera.now()
            if "class_index" in written:
                outcome.latencies.append(1000 * (outcome.seconds - started))
                if label is not None:
                    outcome.labelled += 1
                    outcome.correct += written["class_index"][1] == classes.index(label)
            else:
                outcome.left_out += 1
            if fps:
                # A frame that comes in the very moment in which Core returns is not lost.
                coming = min(math.ceil(outcome.seconds * fps - 1e-6), last)
                lost = max(0, coming - index)
                outcome.sent += lost
                outcome.dropped += lost
                index += lost
    return outcome


def _as_sent(picture: np.ndarray, order: str) -> np.ndarray:
    """An RGB picture as a camera of another channel order sends it; uint8, in one piece."""
    if order == "gray":
        # ITU-R BT.601, as Pillow and OpenCV weigh the colours.
        return np.rint(picture @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    if order.startswith("bgr"):
        picture = picture[:, :, ::-1]
    if order.endswith("a"):
        opaque = np.full((*picture.shape[:2], 1), 255, np.uint8)
        picture = np.concatenate([picture, opaque], axis=2)
    return np.ascontiguousarray(picture)


def start(bundle: Path, properties: Mapping[str, str | int] | None = None) -> Any:
    """The stand-in's ``Runtime`` with a bundle's block, after its ``Birth``.

    Args:
        bundle: the folder.
        properties: values for some of the block's properties; texts are converted.

    Raises:
        UserError: there is no block, it has no such property, or it refuses the bundle.
    """
    standin = load_standin()
    file = bundle / BLOCK_FILE
    if not file.is_file():
        raise UserError(f"{bundle} is no bundle: it holds no {BLOCK_FILE}. `hps export` writes one.")
    standin.reports()
    try:
        runtime = standin.Runtime(standin.load_block(str(file)), strict=False)
    except Exception as error:  # What a damaged file raises, anything.
        raise UserError(f"{file} is damaged: {error}") from error
    for name, value in (properties or {}).items():
        try:
            default = runtime.component.properties[name].default
            runtime.set_property(name, type(default)(value))
        except ValueError as error:
            raise UserError(f"The property {name} of the block cannot be {value!r}.") from error
        except standin.RefusedError as error:
            raise UserError(f"The block refuses {name}={value}: {error}.") from error
    runtime.start()
    errors = standin.reports("error")
    if errors:
        runtime.stop()
        raise UserError(f"The block does not start: {errors[0].removeprefix('hps: ')}.")
    return runtime


def table(outcome: Outcome) -> str:
    """What became of the frames, in a few lines."""
    rows = [
        ("frames sent", f"{outcome.sent}"),
        ("  classified", f"{outcome.classified}"),
        ("  dropped", f"{outcome.dropped}   (came while the block was busy)"),
        ("  left out", f"{outcome.left_out}   (not to be read, or refused by the block)"),
    ]
    if outcome.classified:
        points = np.percentile(outcome.latencies, [50, 95, 99, 100])
        rows.append(
            (
                "latency in ms",
                "   ".join(
                    f"{name} {value:.2f}" for name, value in zip(("p50", "p95", "p99", "max"), points, strict=True)
                ),
            )
        )
        rows.append(("throughput", f"{outcome.classified / outcome.seconds:.1f} frames a second"))
    if outcome.labelled:
        percent = 100 * outcome.correct / outcome.labelled
        rows.append(("accuracy", f"{outcome.correct} of {outcome.labelled} correct   ({percent:.2f} %)"))
    return "\n".join(f"{name:<15}{value}" for name, value in rows)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m hps_lightning.bluebox.replay",
        description="Drives the RTMaps block of a bundle on this machine, and shows times, lost frames and accuracy.",
    )
    parser.add_argument("bundle", type=Path, help="folder that `hps export` wrote")
    parser.add_argument(
        "images", type=Path, nargs="*", help="image files or folders; a folder named as a class gives the accuracy"
    )
    parser.add_argument("--dataset", help="the test images of a data set, such as cifar10, instead of files")
    parser.add_argument("--data.root", dest="root", type=Path, help="folder of the data set (default: as `hps fit`)")
    parser.add_argument("--webcam", action="store_true", help="a made camera instead of files")
    parser.add_argument("--size", default="640x480", help="columns x rows of the made camera (default: %(default)s)")
    parser.add_argument("--labels", type=Path, help="file with a line 'image class' for each image")
    parser.add_argument(
        "--fps", type=float, default=30.0, help="frames a second; 0: as fast as the block is (default: 30)"
    )
    parser.add_argument("--frames", type=int, help="how many frames to send at most (default: each once)")
    parser.add_argument(
        "--loop", action="store_true", help="begin again after the last image, up to --frames or Ctrl-C"
    )
    parser.add_argument("--channel-order", choices=CHANNEL_ORDERS, default="bgr", help="of the frames (default: bgr)")
    parser.add_argument("--threads", type=int, help="of PyTorch; the block's property")
    parser.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[], help="another property of the block: resize=crop"
    )
    arguments = parser.parse_args(argv)
    if sum(map(bool, (arguments.images, arguments.dataset, arguments.webcam))) != 1:
        raise UserError("Give either images or folders of images, or --dataset NAME, or --webcam.")
    if arguments.labels and not arguments.images:
        raise UserError("--labels goes with image files alone.")
    if arguments.fps != 0 and not _SLOWEST_FPS <= arguments.fps <= _FASTEST_FPS:
        raise UserError(f"--fps must be 0, or from {_SLOWEST_FPS:g} to {_FASTEST_FPS:g}, got {arguments.fps}.")
    if arguments.frames is not None and arguments.frames < 1:
        raise UserError(f"--frames must be 1 or more, got {arguments.frames}.")
    return arguments


def _properties(arguments: argparse.Namespace) -> dict[str, str | int]:
    properties: dict[str, str | int] = {}
    for setting in arguments.set:
        name, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--set takes NAME=VALUE, got {setting!r}.")
        if name == "bundle":
            raise UserError(f"--set {setting}: the bundle to replay is the first argument; give that one instead.")
        properties[name] = value
    if arguments.threads is not None:
        properties["threads"] = arguments.threads
    return properties


def _frames(arguments: argparse.Namespace, classes: Sequence[str]) -> tuple[Sequence[Frame], str]:
    if arguments.dataset:
        return DatasetFrames(arguments.dataset, classes, arguments.root), f"the test images of {arguments.dataset}"
    if arguments.webcam:
        sides = arguments.size.lower().split("x")
        if len(sides) != 2 or not all(side.isdecimal() and 0 < int(side) <= 8192 for side in sides):
            raise UserError(f"--size must be columns x rows from 1 to 8192, such as 640x480, got {arguments.size!r}.")
        # With --frames alone the camera goes on; only --loop needs no end.
        count = max(arguments.frames or 0, _WEBCAM_FRAMES)
        return WebcamFrames(*map(int, sides), count), f"a made camera of {arguments.size}"
    return FileFrames(arguments.images, classes, arguments.labels), "image files"


def _limit(arguments: argparse.Namespace, available: int) -> float:
    frames = math.inf if arguments.frames is None else arguments.frames
    return frames if arguments.loop else min(frames, available)


def _run(argv: Sequence[str] | None) -> None:
    arguments = _arguments(argv)
    runtime = start(arguments.bundle, _properties(arguments))
    standin = load_standin()
    try:
        manifest = load_manifest(arguments.bundle)
        frames, source = _frames(arguments, manifest["classes"])
        pace = f"{arguments.fps:g} frames a second" if arguments.fps else "as fast as the block is"
        print(f"{manifest['network']['class']} on {source}, {pace}; PyTorch {torch.__version__}", flush=True)
        limit = _limit(arguments, len(frames))
        outcome = play(
            runtime, frames, manifest["classes"], arguments.fps, limit, channel_order=arguments.channel_order
        )
    finally:
        runtime.stop()
    # Past the output, where a table piped into a file does not hold them.
    for level, text in standin.reports():
        print(f"replay: the block reports ({level}): {text.removeprefix('hps: ')}", file=sys.stderr)
    print(table(outcome))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line with the given arguments (those of the process if None).

    Returns:
        The exit status: 0, or 2 for a mistake in what the user gave.
    """
    try:
        _run(argv)
    except UserError as error:
        if os.environ.get("HPS_DEBUG"):
            raise
        print(f"replay: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        # A name that is too long, a folder that may not be read: either may stand wherever a path does.
        if os.environ.get("HPS_DEBUG"):
            raise
        print(f"replay: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
