"""Whether the RTMaps block holds its memory, threads and files over days: frames without end, and many starts.

    python benchmarks/block_soak.py BUNDLE --output benchmarks/results/block_soak.json

First frames, as a camera's: sizes and channel orders in turn, one in a hundred broken, the reports
taken as the runtime takes them. Then `Birth` to `Death`, with a frame between. At intervals it
prints the process's resident memory, threads and open files, which it reads from /proc (Linux).
The first tenth warms up: kernels and buffers are made once. From there to the end memory may grow
by 4 MB, the noise of the allocator, and threads and files by none. The exit status is 1 where it
does, or where the answer to one frame changed between start and end.
"""

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hps_lightning.bluebox.replay import start
from hps_lightning.bluebox.standin import load_standin
from hps_lightning.errors import UserError
from hps_lightning.files import write_json
from hps_lightning.machine import hardware, versions

INTERVALS = 20
GROWTH = 4_000_000

_ORDERS = {"BGR": 3, "RGB": 3, "BGRA": 4, "GRAY": 1, "YUV": 3, "YUYV": 2}
_SIZES = ((32, 32), (48, 64), (120, 160), (31, 33), (240, 320))


def process() -> dict[str, int]:
    """This process now: resident memory in bytes, threads, open files."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "resident_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "threads": len(os.listdir("/proc/self/task")),
        # One of them is what lists them.
        "files": len(os.listdir("/proc/self/fd")) - 1,
    }


def watched(name: str, count: int, step: Callable[[int], None]) -> list[dict[str, int]]:
    """Calls ``step`` with 0, 1, ... and looks at the process at each interval's end, which it prints."""
    samples = []
    for index in range(count):
        step(index)
        if (index + 1) * INTERVALS // count > index * INTERVALS // count:
            sample = {name: index + 1, **process()}
            samples.append(sample)
            memory = sample["resident_bytes"] / 1e6
            print(
                f"{index + 1:>8} {name}  {memory:8.1f} MB  {sample['threads']} threads  {sample['files']} files",
                flush=True,
            )
    return samples


def grown(samples: list[dict[str, int]]) -> dict[str, int]:
    """By how much each figure's maximum after the warm-up exceeds what it was at the warm-up's end."""
    warm = max(1, INTERVALS // 10)
    first, later = samples[min(warm, len(samples)) - 1], samples[warm - 1 :]
    return {key: max(each[key] for each in later) - first[key] for key in ("resident_bytes", "threads", "files")}


def frames() -> Iterator[tuple[np.ndarray, str]]:
    """Frames and the orders of their channels, in turn, without end."""
    random = np.random.RandomState(0)
    made = [
        (random.randint(0, 256, (rows, columns + columns % 2, channels)).astype(np.uint8), order)
        for rows, columns in _SIZES
        for order, channels in _ORDERS.items()
    ]
    while True:
        yield from made


def soak(bundle: Path, count: int, cycles: int) -> dict[str, Any]:
    """Sends the frames, then starts and stops; returns what was seen.

    Raises:
        UserError: there is no block, or it refuses the bundle.
    """
    standin = load_standin()
    runtime = start(bundle)
    camera = frames()
    left_out = 0

    def one_frame(index: int) -> None:
        nonlocal left_out
        if index % 100 == 99:
            # Never the same mistake twice.
            written = runtime.step(index, data=np.zeros(index + 1, np.uint8) if index % 200 == 99 else f"frame {index}")
        else:
            image, order = next(camera)
            written = runtime.step(index, image, order)
        left_out += not written
        if index % 1000 == 0:
            standin.reports()

    def one_cycle(index: int) -> None:
        runtime.start()
        errors = standin.reports("error")
        written = runtime.step(index, known, "BGR")
        runtime.stop()
        if errors or not written:
            raise UserError(f"Start {index + 1}: {errors or 'the frame was not answered'}.")

    known = next(frames())[0]
    before = runtime.step(0, known, "BGR")["probabilities"][1]
    began = time.perf_counter()
    of_frames = watched("frames", count, one_frame)
    seconds = time.perf_counter() - began
    unchanged = bool(np.array_equal(runtime.step(0, known, "BGR")["probabilities"][1], before))
    runtime.stop()
    standin.reports()
    of_cycles = watched("cycles", cycles, one_cycle)
    growth = {"frames": grown(of_frames), "cycles": grown(of_cycles)}
    flat = all(
        each["resident_bytes"] <= GROWTH and each["threads"] <= 0 and each["files"] <= 0 for each in growth.values()
    )
    return {
        "frames": count,
        "left_out": left_out,
        "left_out_as_expected": left_out == count // 100,
        "frame_seconds": round(seconds, 1),
        "cycles": cycles,
        "answer_unchanged": unchanged,
        "growth": growth,
        "flat": flat,
        "samples": of_frames + of_cycles,
    }


def main() -> int:
    """Runs the command line; returns the exit status: 0, 1 where something grew or changed, 2 for a mistake."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="folder that `hps export` wrote")
    parser.add_argument("--frames", type=int, default=100_000, help="default: %(default)s")
    parser.add_argument("--cycles", type=int, default=1000, help="of Birth and Death; default: %(default)s")
    parser.add_argument("--output", type=Path, help="JSON file for what was seen")
    arguments = parser.parse_args()
    if min(arguments.frames, arguments.cycles) < INTERVALS:
        parser.error(f"--frames and --cycles must be {INTERVALS} or more")
    try:
        seen = soak(arguments.bundle, arguments.frames, arguments.cycles)
    except UserError as error:
        print(f"block_soak: error: {error}", file=sys.stderr)
        return 2
    for part, growth in seen["growth"].items():
        print(
            f"{part}: memory grew by {growth['resident_bytes'] / 1e6:.2f} MB after the warm-up, threads by "
            f"{growth['threads']}, files by {growth['files']}"
        )
    sound = seen["flat"] and seen["answer_unchanged"] and seen["left_out_as_expected"]
    print(f"{seen['left_out']} broken frames left out, the known frame's answer unchanged: {seen['answer_unchanged']}")
    print(f"verdict: {'flat' if sound else 'NOT FLAT'}")
    if arguments.output:
        facts = {
            "bundle": json.loads((arguments.bundle / "manifest.json").read_text(encoding="utf-8"))["network"]["class"],
            "hardware": hardware(torch.device("cpu")),
            "versions": versions(),
            "allowed_growth_bytes": GROWTH,
            **seen,
        }
        write_json(arguments.output, facts)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
