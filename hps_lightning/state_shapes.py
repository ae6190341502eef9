"""What a module's state dict would hold, without a module that takes its memory."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def state_shapes(kind: type[nn.Module], arguments: Mapping[str, Any]) -> dict[str, torch.Size]:
    """The shapes in the state dict of a module, which is built without values: no random number of a training is drawn.

    A class of the user's own is built with values where it reads one meanwhile, as of ``torch.linspace``.

    Args:
        kind: the module's class.
        arguments: of its constructor.

    Raises:
        Exception: whatever the constructor raises.
    """
    try:
        with torch.device("meta"):
            return _shapes(kind(**arguments))
    except Exception:
        # One of ours has none to read, and whoever made its arguments may want to take all memory.
        if kind.__module__.startswith("hps_lightning."):
            raise
    with torch.random.fork_rng(devices=[]):
        return _shapes(kind(**arguments))


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in module.state_dict().items()}
