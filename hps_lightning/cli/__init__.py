"""The command line, `hps`; ``main`` lists its commands."""

from .main import main

__all__ = ["main"]
