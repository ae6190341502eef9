"""Compact CNNs around High Performance SqueezeNext: train on CIFAR, deploy on an embedded board."""

from typing import Any

__version__ = "0.1.0"

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # On demand, since it takes seconds to import and `hps models` and `hps --help` need none of it.
    if name == "load":
        from hps_lightning.pretrained import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
