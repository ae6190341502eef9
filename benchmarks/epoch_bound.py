"""What an epoch's time is made of, and how far it is from what the processor could do at best.

    python benchmarks/epoch_bound.py --model hps_06_05x --output benchmarks/results/NAME.json

Measures, one after the other in one run: a training step of the engine without Lightning around
it; the step's convolutions alone, on maps of the same shapes; its batch norms and activations
alone, by our kernels and by PyTorch's; what the memory would need for the maps' traffic, and the
multipliers for the operations, at rates that are measured here too.
"""

import argparse
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hps_lightning import zoo
from hps_lightning.data import DATASETS
from hps_lightning.engine import FusedTraining, keep_freed_memory
from hps_lightning.engine.fused import batch_norm, batch_norm_backward
from hps_lightning.errors import UserError
from hps_lightning.files import write_json
from hps_lightning.machine import hardware, versions
from hps_lightning.optim.build import PAPER_OPTIMIZER
from hps_lightning.precision import fast_precision

BATCH_SIZE = 128


def milliseconds(work: Callable[[], Any]) -> float:
    """Median time of 15 calls, after three that warm up."""
    times = []
    for _ in range(3 + 15):
        since = perf_counter()
        work()
        times.append(perf_counter() - since)
    return 1e3 * median(times[3:])


def channels_last(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Random values of a shape, N x C x H x W."""
    return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)


def step_times(network: nn.Module, dtype: torch.dtype, fused: bool) -> dict[str, float]:
    """Milliseconds of a step's parts."""
    images = channels_last((BATCH_SIZE, 3, 32, 32), torch.float32)
    labels = torch.randint(0, 10, (BATCH_SIZE,))
    optimizer = torch.optim.SGD(network.parameters(), fused=fused, **PAPER_OPTIMIZER["init_args"])
    training = FusedTraining(network) if fused else None
    laps: list[list[float]] = []
    for _ in range(33):
        times = [perf_counter()]
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            if training:
                with training.applied():
                    logits = network(images)
            else:
                logits = network(images)
        loss = F.cross_entropy(logits.float(), labels)
        times.append(perf_counter())
        optimizer.zero_grad()
        loss.backward()
        times.append(perf_counter())
        optimizer.step()
        times.append(perf_counter())
        laps.append([1e3 * (end - start) for start, end in pairwise(times)])
    parts = dict(zip(("forward", "backward", "optimizer"), map(median, zip(*laps[3:], strict=True)), strict=True))
    return {**parts, "all": sum(parts.values())}


def convolutions(network: nn.Module) -> list[tuple[nn.Conv2d, tuple[int, ...], tuple[int, ...]]]:
    """Each convolution with the shapes that it takes and returns in a step."""
    found: list[tuple[nn.Conv2d, tuple[int, ...], tuple[int, ...]]] = []
    hooks = [
        module.register_forward_hook(lambda m, i, o: found.append((m, tuple(i[0].shape), tuple(o.shape))))
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        network(torch.zeros(BATCH_SIZE, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    return found


def convolution_times(conv: nn.Conv2d, taken: tuple[int, ...], given: tuple[int, ...], dtype: torch.dtype) -> float:
    """Milliseconds of a convolution, forward and backward, as a step needs them."""
    images, gradient = channels_last(taken, dtype), channels_last(given, dtype)
    weight, bias = conv.weight.detach().to(dtype), None if conv.bias is None else conv.bias.detach().to(dtype)
    geometry = (conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups)
    forward = milliseconds(lambda: torch.convolution(images, weight, bias, *geometry))
    # Nobody asks for the gradient of the network's input.
    wanted = [taken[1] != 3, True, bias is not None]
    sizes = None if bias is None else [given[1]]
    backward = milliseconds(
        lambda: torch.ops.aten.convolution_backward(gradient, images, weight, sizes, *geometry, wanted)
    )
    return forward + backward


def norm_times(shape: tuple[int, ...], dtype: torch.dtype, fused: bool) -> float:
    """Milliseconds of a batch norm and its ReLU on a map, forward and backward."""
    norm = nn.BatchNorm2d(shape[1])
    maps, gradient = channels_last(shape, dtype), channels_last(shape, dtype)
    if fused:
        statistics = (norm.running_mean, norm.running_var, norm.momentum, norm.eps)
        _, saved = batch_norm(maps, None, norm.weight, norm.bias, statistics, (True, False))
        forward = milliseconds(lambda: batch_norm(maps, None, norm.weight, norm.bias, statistics, (True, False)))
        return forward + milliseconds(lambda: batch_norm_backward(maps, gradient, saved, (True, False)))
    maps.requires_grad_()

    def run() -> None:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            out = norm(F.relu(maps))
        # Not into `maps.grad`, to which each call would add a map, as no training step does.
        torch.autograd.grad(out, (maps, norm.weight, norm.bias), gradient)

    return milliseconds(run)


def rates(dtype: torch.dtype) -> dict[str, float]:
    """What the machine reaches here: GB/s of a copy too large for the caches, GFLOP/s of a matrix product."""
    source = torch.ones(64 << 20, dtype=torch.uint8)
    target = torch.empty_like(source)
    left, right = torch.randn(2, 1024, 1024).to(dtype)
    return {
        "copy_gb_per_second": 2 * len(source) / 1e6 / milliseconds(lambda: target.copy_(source)),
        "matmul_gflop_per_second": 2 * 1024**3 / 1e6 / milliseconds(lambda: left @ right),
    }


def measure(model: str) -> dict[str, Any]:
    """All of it, in milliseconds a step of 128 images."""
    network = zoo.find_variant(model).build(10).to(memory_format=torch.channels_last).train()
    dtype = torch.bfloat16 if fast_precision("cpu") == "bf16-mixed" else torch.float32
    keep_freed_memory()
    found = convolutions(network)
    maps = [given for _, _, given in found]
    map_bytes = sum(torch.Size(shape).numel() for shape in maps) * dtype.itemsize
    macs = sum(torch.Size(given).numel() * conv.weight[0].numel() for conv, _, given in found)
    machine = rates(dtype)
    return {
        "model": model,
        "batch_size": BATCH_SIZE,
        "dtype": str(dtype).removeprefix("torch."),
        "step": step_times(network, dtype, fused=True),
        "step_with_pytorch_kernels": step_times(network, dtype, fused=False),
        "convolutions": sum(convolution_times(*each, dtype) for each in found),
        "norms": sum(norm_times(shape, dtype, fused=True) for shape in maps),
        "norms_with_pytorch_kernels": sum(norm_times(shape, dtype, fused=False) for shape in maps),
        "map_megabytes": map_bytes / 1e6,
        "machine": machine,
        # Convolution: 2 passes forward, 4 backward; norm and ReLU: 3 forward, 5 backward.
        "memory_bound": 14 * map_bytes / 1e6 / machine["copy_gb_per_second"],
        "arithmetic_bound": 3 * 2 * macs / 1e6 / machine["matmul_gflop_per_second"],
    }


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="hps_06_05x", help="a network of the zoo (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    try:
        facts = measure(arguments.model)
    except UserError as error:
        print(f"epoch_bound: error: {error}", file=sys.stderr)
        return 2
    steps = DATASETS["cifar10"].train_size / BATCH_SIZE
    rows = {
        "a step": facts["step"]["all"],
        "  convolutions alone": facts["convolutions"],
        "  batch norms and activations alone": facts["norms"],
        "  optimizer": facts["step"]["optimizer"],
        "  all else (autograd, casts, sums, Python)": facts["step"]["all"]
        - facts["convolutions"]
        - facts["norms"]
        - facts["step"]["optimizer"],
        "a step with PyTorch's kernels": facts["step_with_pytorch_kernels"]["all"],
        "  batch norms and activations alone, PyTorch's": facts["norms_with_pytorch_kernels"],
        "bound: the maps' traffic": facts["memory_bound"],
        "bound: the operations": facts["arithmetic_bound"],
    }
    print(f"{facts['model']}, {facts['dtype']}, {BATCH_SIZE} images a step")
    for name, value in rows.items():
        print(f"{name:48} {value:8.2f} ms   {value * steps / 1e3:6.1f} s an epoch")
    machine = ", ".join(f"{name} {value:.0f}" for name, value in facts["machine"].items())
    print(f"{facts['map_megabytes']:.1f} MB of maps a step; {machine}")
    if arguments.output:
        facts |= {"hardware": hardware(torch.device("cpu")), "versions": versions()}
        write_json(arguments.output, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
