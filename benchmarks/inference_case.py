"""One case of inference.py: a network in one format in a process of its own.

    python benchmarks/inference_case.py torch|onnx FILE THREADS

For each line of standard input, "BATCH_SIZE CALLS", it writes one line of JSON: the seconds of
each call on that many images, and the most memory that the process has held so far. It imports
the one library that it needs, so that the memory is that of the format.
"""

import json
import os
import sys
from collections.abc import Callable
from time import perf_counter

import numpy as np

from hps_lightning.machine import peak_resident_bytes


def load_torch(path: str, threads: int) -> Callable[[np.ndarray], object]:
    """A module that inference.py has just saved, as a function of arrays."""
    import torch

    torch.set_num_threads(threads)
    network = torch.load(path, weights_only=False)

    @torch.inference_mode()
    def run(images: np.ndarray) -> object:
        return network(torch.from_numpy(images))

    return run


def load_onnx(path: str, threads: int) -> Callable[[np.ndarray], object]:
    """An ONNX file as a function of arrays."""
    import onnxruntime

    from hps_lightning.machine import int8_sums_overflow

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if int8_sums_overflow():
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})


def main() -> None:
    """Serves until standard input ends."""
    library, path, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if hasattr(os, "sched_setaffinity"):
        # All cases on the same cores.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    run = {"torch": load_torch, "onnx": load_onnx}[library](path, threads)
    random = np.random.default_rng(0)
    batches: dict[int, np.ndarray] = {}
    for line in sys.stdin:
        batch_size, calls = map(int, line.split())
        if batch_size not in batches:
            batches[batch_size] = random.standard_normal((batch_size, 3, 32, 32), np.float32)
        seconds = []
        for _ in range(calls):
            since = perf_counter()
            run(batches[batch_size])
            seconds.append(perf_counter() - since)
        print(json.dumps({"seconds": seconds, "peak_bytes": peak_resident_bytes()}), flush=True)


if __name__ == "__main__":
    main()
