"""Shows a bundle's RTMaps block at work without RTMaps, as `hps replay` does.

The block is the bundle's own file, driven by the stand-in of :mod:`hps_lightning.bluebox.standin`. The times are this
machine's.
"""

import contextlib
import math
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hps_lightning.bluebox.frame_sources import Frame
from hps_lightning.bluebox.standin import load_standin
from hps_lightning.errors import UserError

BLOCK_FILE = "rtmaps_block.py"
CHANNEL_ORDERS = ("bgr", "rgb", "bgra", "rgba", "gray")
"""How the frames may come to the block; a camera's are BGR."""


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
