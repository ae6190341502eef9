"""Checks this bundle on the machine that it lies on: python3 selftest.py

Every file against the manifest, the network's answers against those at the export, and the
resizing of a frame against Pillow's there; then how long one image takes. Where ONNX Runtime is
installed, the same for the bundle's ONNX files, which need version 1.14 of it.
"""

import importlib.util
import io
import os
import platform
import re
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

part = "numpy or PyTorch"
try:
    import numpy as np
    import torch

    part = "bundle.py"
    from bundle import Bundle, BundleError, read_verified

    part = "frames.py"
    from frames import to_square
except Exception as error:  # A file that is cut off fails in every way that there is.
    reason = " ".join(str(error).split()) or type(error).__name__
    sys.exit("selftest: FAILED: {}: {}; numpy, PyTorch and the whole bundle are needed".format(part, reason))

GOLDEN_FILE = "golden.npz"
# Another processor, or another PyTorch, adds in another order: as a part of the largest logit, or of 1.
LOGIT_TOLERANCE = 1e-4
# A probability's, in 8 bits: what is rounded to the next step on one processor may not be on another.
INT8_TOLERANCE = 0.05
RUNS = 100
# What the exported files need of it: operators of opset 18.
OLDEST_ONNX_RUNTIME = (1, 14)

# Older ones answer wrongly in 8 bits on Intel processors with AMX, whenever several threads work on an answer.
STEADY_ONNX_RUNTIME = (1, 25)


def check(directory):
    """The worst deviations of a bundle's answers from those that it was exported with.

    Returns:
        The bundle, the largest difference of a logit, and that of a grey level.

    Raises:
        BundleError: the bundle cannot be used, or answers otherwise than it should.
    """
    bundle = Bundle(directory)
    images, answers, frame, reduced = _golden(bundle, "images", "logits", "frame", "resized")
    logits = np.abs(bundle.logits(images).numpy() - answers).max()
    tolerance = LOGIT_TOLERANCE * max(1, np.abs(answers).max())
    if not logits <= tolerance:
        raise BundleError("the logits are {:.2g} off, more than {:.2g}".format(logits, tolerance))
    resized = to_square(frame, "BGR", bundle.side).astype(int)
    levels = np.abs(resized - reduced).max()
    if levels > 1:
        raise BundleError("a resized frame is {} grey levels off, more than 1".format(levels))
    return bundle, float(logits), int(levels)


def _golden(bundle, *names):
    """Arrays of the bundle's golden values."""
    content = read_verified(bundle.directory, bundle.manifest, GOLDEN_FILE)
    try:
        golden = np.load(io.BytesIO(content), allow_pickle=False)
        return [golden[name] for name in names]
    except Exception as error:
        raise BundleError("{} is damaged: {}".format(os.path.join(bundle.directory, GOLDEN_FILE), error))


def _onnx_runtime():
    """ONNX Runtime and None; or None and why it cannot run the exported files, None too where there is none."""
    try:
        import onnxruntime

        if not hasattr(onnxruntime, "InferenceSession"):
            # What an uninstalled one may leave behind is a folder, which can be imported.
            raise ImportError("its folder is empty")
    except Exception as error:  # One that is half installed, or for another numpy, fails in every way that there is.
        if importlib.util.find_spec("onnxruntime") is None:
            return None, None
        reason = " ".join(str(error).split()) or type(error).__name__
        return None, "ONNX Runtime cannot be imported ({})".format(reason)
    if _is_older(onnxruntime, OLDEST_ONNX_RUNTIME):
        return None, "ONNX Runtime {} is too old, {} or newer is needed".format(
            onnxruntime.__version__, ".".join(map(str, OLDEST_ONNX_RUNTIME))
        )
    return onnxruntime, None


def _is_older(onnxruntime, wanted):
    version = re.match(r"(\d+)\.(\d+)", onnxruntime.__version__)
    return version is not None and tuple(map(int, version.groups())) < wanted


def _onnx_files(bundle):
    return [name for name in sorted(bundle.manifest["files"]) if name.endswith(".onnx")]


def onnx_left_out(bundle):
    """Says why the bundle's ONNX files are not tested; None where they are, or where nobody would run them.

    They are no reason to fail where ONNX Runtime is too old or broken: the block runs without them.
    """
    _, reason = _onnx_runtime()
    if reason is None or not _onnx_files(bundle):
        return None
    return "{} not tested: {}".format(" and ".join(_onnx_files(bundle)), reason)


def onnx_networks(bundle):
    """The bundle's ONNX files as functions of uint8 images, N x side x side x 3, RGB, that give probabilities.

    Returns:
        A list of names and functions; empty without ONNX Runtime, or where it is too old or broken.

    Raises:
        BundleError: a file is none that ONNX Runtime runs.
    """
    onnxruntime, _ = _onnx_runtime()
    if onnxruntime is None:
        return []
    return [(name, _onnx_network(bundle, name, onnxruntime)) for name in _onnx_files(bundle)]


def _onnx_network(bundle, name, onnxruntime):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # x86 processors without VNNI add products of 8 bits in 16, which overflow; the answers of all others stay the same.
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        session = onnxruntime.InferenceSession(
            read_verified(bundle.directory, bundle.manifest, name), options, providers=["CPUExecutionProvider"]
        )
    except BundleError:
        raise
    except Exception as error:
        raise BundleError("{} is none that ONNX Runtime runs: {}".format(name, error))
    takes = session.get_inputs()[0]

    def run(images):
        if takes.type != "tensor(uint8)":
            images = bundle.normalised(images).numpy()
        answers = session.run(None, {takes.name: images})[0]
        if session.get_outputs()[0].name == "logits":
            answers = torch.softmax(torch.from_numpy(answers), 1).numpy()
        return answers

    return run


def check_onnx(bundle):
    """The worst deviation of each ONNX file's probabilities from those at the export.

    Returns:
        A list of name, function and deviation, as many as :func:`onnx_networks` returns.

    Raises:
        BundleError: a file cannot be run, or answers otherwise than it should.
    """
    checked = []
    for name, run in onnx_networks(bundle):
        images, answers = _golden(bundle, "images", name)
        try:
            off = float(np.abs(run(images) - answers).max())
        except Exception as error:
            raise BundleError("{} cannot be run by ONNX Runtime: {}".format(name, " ".join(str(error).split())))
        tolerance = INT8_TOLERANCE if "int8" in name else LOGIT_TOLERANCE
        if not off <= tolerance:
            message = "{}: the probabilities are {:.2g} off, more than {:g}".format(name, off, tolerance)
            raise BundleError(message + _way_out(name))
        checked.append((name, run, off))
    return checked


def _way_out(name):
    onnxruntime, _ = _onnx_runtime()
    if "int8" not in name or not _is_older(onnxruntime, STEADY_ONNX_RUNTIME):
        return ""
    return "; on a processor with AMX, ONNX Runtime {} or newer is needed for 8 bits, and this is {}".format(
        ".".join(map(str, STEADY_ONNX_RUNTIME)), onnxruntime.__version__
    )


def latencies(bundle, run):
    """Milliseconds that single images take in a function of them, sorted."""
    image = np.zeros((1, bundle.side, bundle.side, 3), np.uint8)
    times = []
    for _ in range(RUNS + 10):
        started = time.perf_counter()
        run(image)
        times.append(1000 * (time.perf_counter() - started))
    return sorted(times[10:])


def main():
    """Runs the self-test; returns the exit status: 0, or 1 where something is wrong."""
    print("Python {}, PyTorch {}, {}".format(platform.python_version(), torch.__version__, platform.machine()))
    try:
        bundle, logits, levels = check(HERE)
        print("files: {} as exported".format(len(bundle.manifest["files"])))
        print("logits: at most {:.2g} off".format(logits))
        print("resizing: at most {} grey level off".format(levels))
        onnx = check_onnx(bundle)
    except BundleError as error:
        sys.stdout.flush()
        sys.stderr.write("selftest: FAILED: {}\n".format(error))
        return 1
    for name, _, off in onnx:
        print("{}: probabilities at most {:.2g} off".format(name, off))
    left_out = onnx_left_out(bundle)
    if left_out:
        print(left_out)
    for name, run in [("PyTorch", bundle.probabilities)] + [(name, run) for name, run, _ in onnx]:
        times = latencies(bundle, run)
        middle, late = times[len(times) // 2], times[int(0.95 * len(times))]
        print("one image, {}: {:.2f} ms (median), {:.2f} ms (95 of 100)".format(name, middle, late))
    print("selftest: passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
