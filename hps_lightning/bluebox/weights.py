"""A network's weights as the board's PyTorch 1.1 reads them."""

import copy
import io
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from hps_lightning.errors import UserError

_WRAPPERS = ("module.", "model.", "network.")


def bare_network(network: nn.Module) -> nn.Module:
    """The network inside what ``torch.compile`` and data parallelism wrap around it."""
    while True:
        if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            network = network.module
        elif hasattr(network, "_orig_mod"):
            network = network._orig_mod
        else:
            return network


def bare_copy(network: nn.Module) -> nn.Module:
    """A copy of the bare network, on the CPU.

    What a module computes from its parameters before each pass, as pruning and weight norm do, is copied as it stands:
    ``copy.deepcopy`` refuses such tensors.
    """
    network = bare_network(network)
    held = (value for module in network.modules() for value in vars(module).values())
    computed = {id(value): value.detach().clone() for value in held if isinstance(value, Tensor) and not value.is_leaf}
    return copy.deepcopy(network, computed).cpu()


def restored(network: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the bare network in float32 on the CPU, in evaluation mode, with other weights.

    Args:
        network: wrapped or bare; it is not changed.
        weights: what :func:`board_weights` returns.

    Raises:
        UserError: it cannot be copied.
    """
    try:
        copied = bare_copy(network).to(torch.float32).eval()
        for module in list(copied.modules()):
            for name, part in module.named_children():
                if hasattr(part, "_orig_mod"):
                    # Compiled, which would take longer than all else here.
                    setattr(module, name, bare_network(part))
        copied.load_state_dict(weights)
    except Exception as error:  # A network's own code raises what it likes.
        kind = type(bare_network(network)).__name__
        raise UserError(f"{kind} cannot be copied: {' '.join(str(error).split()) or type(error).__name__}") from error
    return copied


def board_weights(state_dict: Mapping[str, Tensor], network: nn.Module | None = None) -> dict[str, Tensor]:
    """A copy of a state dict as PyTorch 1.1 on a CPU takes it.

    Args:
        state_dict: of a network, or of a module that wraps one.
        network: whose weights they are, wrapped or bare. Without it, what all names begin with counts as a wrapper,
            though it may be a part of the network.

    Returns:
        Contiguous CPU tensors, floating-point ones as float32 and all others but complex ones as int64, under the
        bare network's names: without ``module.``, ``model.`` or ``network.`` in front, and without ``_orig_mod.``.
    """
    weights = {_plain_name(key): _board_tensor(value) for key, value in state_dict.items()}
    own = None if network is None else set(map(_plain_name, bare_network(network).state_dict()))
    # A prefix that only some keys have is a part of the network, not a wrapper.
    while weights and set(weights) != own and (prefix := _common_prefix(weights)):
        weights = {key[len(prefix) :]: value for key, value in weights.items()}
    return weights


def _common_prefix(names: Iterable[str]) -> str | None:
    return next((prefix for prefix in _WRAPPERS if all(name.startswith(prefix) for name in names)), None)


def _plain_name(key: str) -> str:
    return key.replace("_orig_mod.", "")


def _board_tensor(tensor: Tensor) -> Tensor:
    # The two that a board reads; a buffer of truth values, say, takes them from there. Complex ones are refused later.
    real = torch.float32 if tensor.is_floating_point() else torch.int64
    dtype = tensor.dtype if tensor.is_complex() else real
    # Training runs channels-last; a clone, since contiguous() keeps the strides of sides of length 1.
    return tensor.detach().to("cpu", dtype).clone(memory_format=torch.contiguous_format)


def refuse_not_finite(weights: Mapping[str, Tensor]) -> None:
    """Refuses weights that no network can answer with.

    Raises:
        UserError: a weight is not finite.
    """
    for key, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"The weights {key} hold NaN or infinite values: this training has diverged.")


def legacy_file(weights: Mapping[str, Tensor]) -> bytes:
    """The content of a file of weights, in the format that PyTorch 1.1 reads: not the zip of later ones.

    Args:
        weights: what :func:`board_weights` returns.

    Raises:
        UserError: a weight is complex, or not finite.
    """
    for key, value in weights.items():
        if value.is_complex():
            raise UserError(f"The weights {key} are complex numbers, which no board reads.")
    refuse_not_finite(weights)
    buffer = io.BytesIO()
    torch.save(dict(weights), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()
