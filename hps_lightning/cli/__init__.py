"""The command line: `hps fit`, `validate`, `test`, `predict`, `export`, `explore`, `models`, `plot` and `report`."""

from .main import main

__all__ = ["main"]
