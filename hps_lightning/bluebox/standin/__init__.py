"""A stand-in for RTMaps' Python runtime, which cannot be installed on a PC without a licence.

The folder holds a package ``rtmaps`` that needs Python 3.5 alone: with the folder on ``sys.path``
a block runs as it stands, on the board's Python too. ``rtmaps.standin`` is what drives it.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType

STANDIN_FOLDER = Path(__file__).parent
"""What ``sys.path`` must hold for ``import rtmaps`` to find the stand-in."""


def load_standin() -> ModuleType:
    """Makes ``import rtmaps`` find the stand-in, from here on, and returns its module ``rtmaps.standin``.

    Raises:
        ImportError: another ``rtmaps`` was imported before.
    """
    if str(STANDIN_FOLDER) not in sys.path:
        # In front: a PC with RTMaps on it has a package of this name.
        sys.path.insert(0, str(STANDIN_FOLDER))
    return importlib.import_module("rtmaps.standin")
