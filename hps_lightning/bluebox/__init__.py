"""What goes onto the board: a bundle that runs there by itself, or weights with a manifest that explains them."""

from .export import export_bundle, export_weights, holds_something
from .manifest import MANIFEST_FILE, MANIFEST_FORMAT, WEIGHTS_FILE, describe, load_manifest
from .staging import staged_directory
from .weights import bare_network, board_weights

__all__ = [
    "MANIFEST_FILE",
    "MANIFEST_FORMAT",
    "WEIGHTS_FILE",
    "bare_network",
    "board_weights",
    "describe",
    "export_bundle",
    "export_weights",
    "holds_something",
    "load_manifest",
    "staged_directory",
]
