"""The networks, in plain torch: each file stands alone, so that it can be copied onto a board."""

from .mobilenet import MobileNet
from .squeezenet import SqueezedCNN, SqueezeNet
from .squeezenext import HighPerformanceSqueezeNext, ModifiedSqueezeNext, ShallowSqueezeNext, SqueezeNext

__all__ = [
    "HighPerformanceSqueezeNext",
    "MobileNet",
    "ModifiedSqueezeNext",
    "ShallowSqueezeNext",
    "SqueezeNet",
    "SqueezeNext",
    "SqueezedCNN",
]
