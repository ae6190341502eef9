"""The command line: `hps fit`, `validate`, `test`, `predict` and `models`."""

from .main import main

__all__ = ["main"]
