"""What goes onto the board: a bundle that runs there by itself, or weights with a manifest that explains them."""

from .export import INT8_FILE, ONNX_FILE, export_bundle, export_weights, refuse_full_directory, refuse_other_files
from .manifest import MANIFEST_FILE, MANIFEST_FORMAT, WEIGHTS_FILE, describe, load_manifest
from .staging import destination, staged_directory
from .weights import bare_network, board_weights

__all__ = [
    "INT8_FILE",
    "MANIFEST_FILE",
    "MANIFEST_FORMAT",
    "ONNX_FILE",
    "WEIGHTS_FILE",
    "bare_network",
    "board_weights",
    "describe",
    "destination",
    "export_bundle",
    "export_weights",
    "load_manifest",
    "refuse_full_directory",
    "refuse_other_files",
    "staged_directory",
]
