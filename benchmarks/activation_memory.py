"""What a training step keeps for its backward pass: in-place activations against not, ReLU against ELU.

    python benchmarks/activation_memory.py --model hps_06_05x

A count, not a timing: the storages that autograd holds after the forward pass of one batch, each
once, without the parameters. On a GPU they are most of a training's memory; on a CPU the process
itself and the data set may be larger.
"""

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hps_lightning import zoo
from hps_lightning.engine import FusedTraining
from hps_lightning.errors import UserError
from hps_lightning.files import write_json
from hps_lightning.machine import versions

BATCH_SIZE = 128


def kept_bytes(network: nn.Module, dtype: torch.dtype, fused: bool) -> int:
    """Bytes that autograd keeps after the forward pass of a batch of 32x32 images.

    Args:
        network: in training mode.
        dtype: of the computation, by autocast where it is not float32.
        fused: whether our kernels compute batch norms and activations.
    """
    storages: dict[int, tuple[int, Any]] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            # The storage is held, so that no other can take its address.
            storages[storage.data_ptr()] = (storage.nbytes(), storage)
        return tensor

    images = torch.randn(BATCH_SIZE, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    kernels = FusedTraining(network).applied() if fused else nullcontext()
    autocast = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), kernels, autocast:
        network(images)
    return sum(size for size, _ in storages.values())


def measure(model: str) -> list[dict[str, Any]]:
    """The bytes of every combination.

    Raises:
        UserError: there is no such network, or it has no activation to choose.
    """
    variant = zoo.find_variant(model)
    found = []
    for activation in ("relu", "elu"):
        for inplace in (True, False):
            network = variant.build(10, activation=activation, inplace=inplace).to(memory_format=torch.channels_last)
            for dtype, fused in ((torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)):
                found.append(
                    {
                        "activation": activation,
                        "inplace": inplace,
                        "dtype": str(dtype).removeprefix("torch."),
                        "kernels": "ours" if fused else "PyTorch's",
                        "bytes": kept_bytes(network.train(), dtype, fused),
                    }
                )
    return found


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="hps_06_05x", help="a network of the zoo (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    try:
        found = measure(arguments.model)
    except UserError as error:
        print(f"activation_memory: error: {error}", file=sys.stderr)
        return 2
    print("| activation | in place | computation | kernels | kept for the backward pass |")
    print("|---|---|---|---|---|")
    for each in found:
        place = "yes" if each["inplace"] else "no"
        print(
            f"| {each['activation']} | {place} | {each['dtype']} | {each['kernels']} | {each['bytes'] / 1e6:.1f} MB |"
        )
    if arguments.output:
        facts = {"model": arguments.model, "batch_size": BATCH_SIZE, "versions": versions(), "kept": found}
        write_json(arguments.output, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
