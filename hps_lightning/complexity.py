"""What a network costs: parameters, multiply-accumulates, and bytes under several conventions."""

import functools
import inspect
import io
import pickle

import torch
from torch import nn

IMAGE_SIZE = (3, 32, 32)


_source_lines = functools.cache(inspect.getsourcelines)


class _ByteCounter(io.RawIOBase):
    """A file that keeps nothing but the number of bytes written to it."""

    def __init__(self) -> None:
        self.count = 0

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        size = memoryview(data).nbytes
        self.count += size
        return size


def saved_bytes(content: object) -> int:
    """Bytes of the file that ``torch.save`` makes of ``content`` in PyTorch's legacy format.

    PyTorch wrote that format before 1.6, and a whole module in it carries the source of its classes.
    """
    counter = _ByteCounter()
    # Looking a class up parses its whole file; torch does it anew for each class of each save.
    original, inspect.getsourcelines = inspect.getsourcelines, _source_lines
    try:
        torch.save(content, counter, _use_new_zipfile_serialization=False)
    finally:
        inspect.getsourcelines = original
    return counter.count


def count_parameters(network: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def count_macs(network: nn.Module, image_size: tuple[int, int, int] = IMAGE_SIZE) -> int:
    """Multiply-accumulate operations for one image of ``image_size`` (channels, height, width).

    Convolutions and fully connected layers count; batch norm, activations and pooling do not,
    as is usual.
    """
    macs = 0

    # torch.utils.flop_counter gives the same numbers, but imports torch's compiler: seconds.
    def add(layer: nn.Module, _: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal macs
        # Each output value is one product with the weights of its channel or feature.
        macs += output.numel() * layer.weight[0].numel()

    layers = [layer for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    parameter = next(network.parameters())
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            network(torch.zeros((1, *image_size), device=parameter.device, dtype=parameter.dtype))
    finally:
        for module, training in modes:
            module.training = training
        for hook in hooks:
            hook.remove()
    return macs


def state_dict_bytes(network: nn.Module) -> int:
    """Bytes of the network's state dict in the legacy format: what a board receives."""
    # Without the version notes that torch attaches to a module's own state dict.
    return saved_bytes(dict(network.state_dict()))


def module_bytes(network: nn.Module) -> int | None:
    """Bytes of the whole module in the legacy format: the sizes in the paper's Tables 1, 2 and 4.

    None where it cannot be saved as a whole, as one that holds a lambda.
    """
    return _pickled_bytes(network)


def module_and_momentum_bytes(network: nn.Module) -> int | None:
    """Bytes of the whole module with the momentum of SGD: the sizes in the paper's Table 3.

    The momentum's values do not matter to its size, so that no training step is needed. None as in
    :func:`module_bytes`.
    """
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for parameter in network.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return _pickled_bytes({"net": network, "optimizer": optimizer.state_dict()})


def _pickled_bytes(content: object) -> int | None:
    try:
        return saved_bytes(content)
    # What pickle raises of objects that it cannot take, by their kind.
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
