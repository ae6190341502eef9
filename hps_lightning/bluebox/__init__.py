"""What goes onto the board: weights that PyTorch 1.1 reads, and a manifest that explains them."""

from .weights import (
    MANIFEST_FILE,
    MANIFEST_FORMAT,
    WEIGHTS_FILE,
    bare_network,
    board_weights,
    describe,
    export_weights,
    load_manifest,
    staged_directory,
)

__all__ = [
    "MANIFEST_FILE",
    "MANIFEST_FORMAT",
    "WEIGHTS_FILE",
    "bare_network",
    "board_weights",
    "describe",
    "export_weights",
    "load_manifest",
    "staged_directory",
]
