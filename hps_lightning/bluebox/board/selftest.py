"""Checks this bundle on the machine that it lies on: python3 selftest.py

Every file against the manifest, the network's answers against those at the export, and the
resizing of a frame against Pillow's there; then how long one image takes.
"""

import io
import os
import platform
import sys
import time

import numpy as np
import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

try:
    from bundle import Bundle, BundleError, read_verified
    from frames import to_square
except ImportError as error:
    sys.exit("selftest: FAILED: {}; numpy, PyTorch and the whole bundle are needed".format(error))

GOLDEN_FILE = "golden.npz"
# Another processor, or another PyTorch, adds in another order.
LOGIT_TOLERANCE = 1e-4
RUNS = 100


def check(directory):
    """The worst deviations of a bundle's answers from those that it was exported with.

    Returns:
        The bundle, the largest difference of a logit, and that of a grey level.

    Raises:
        BundleError: the bundle cannot be used, or answers otherwise than it should.
    """
    bundle = Bundle(directory)
    content = read_verified(directory, bundle.manifest, GOLDEN_FILE)
    try:
        golden = np.load(io.BytesIO(content), allow_pickle=False)
        images, answers, frame, reduced = [golden[name] for name in ("images", "logits", "frame", "resized")]
    except Exception as error:
        raise BundleError("{} is damaged: {}".format(os.path.join(directory, GOLDEN_FILE), error))
    logits = np.abs(bundle.logits(images).numpy() - answers).max()
    if not logits <= LOGIT_TOLERANCE:
        raise BundleError("the logits are {:.2g} off, more than {:g}".format(logits, LOGIT_TOLERANCE))
    resized = to_square(frame, "BGR", bundle.side).astype(int)
    levels = np.abs(resized - reduced).max()
    if levels > 1:
        raise BundleError("a resized frame is {} grey levels off, more than 1".format(levels))
    return bundle, float(logits), int(levels)


def latencies(bundle, runs=RUNS):
    """Milliseconds that single images take, sorted."""
    image = np.zeros((1, bundle.side, bundle.side, 3), np.uint8)
    times = []
    for _ in range(runs + 10):
        started = time.perf_counter()
        bundle.probabilities(image)
        times.append(1000 * (time.perf_counter() - started))
    return sorted(times[10:])


def main():
    """Runs the self-test; returns the exit status: 0, or 1 where something is wrong."""
    print("Python {}, PyTorch {}, {}".format(platform.python_version(), torch.__version__, platform.machine()))
    try:
        bundle, logits, levels = check(HERE)
    except BundleError as error:
        sys.stderr.write("selftest: FAILED: {}\n".format(error))
        return 1
    print("files: {} as exported".format(len(bundle.manifest["files"])))
    print("logits: at most {:.2g} off".format(logits))
    print("resizing: at most {} grey level off".format(levels))
    times = latencies(bundle)
    middle, late = times[len(times) // 2], times[int(0.95 * len(times))]
    print("one image: {:.2f} ms (median), {:.2f} ms (95 of 100)".format(middle, late))
    print("selftest: passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
