"""Where the package keeps what it can make again: downloads, decoded images, compiled kernels."""

import os
from pathlib import Path

from hps_lightning.errors import UserError

CACHE_DIR_VARIABLE = "HPS_CACHE_DIR"


def cache_dir() -> Path:
    """The folder of the cache; it need not exist.

    It is ``$HPS_CACHE_DIR``, else ``$XDG_CACHE_HOME/hps_lightning``, else ``~/.cache/hps_lightning``.

    Raises:
        UserError: There is no home directory to put it in.
    """
    explicit = os.environ.get(CACHE_DIR_VARIABLE)
    try:
        if explicit:
            return Path(explicit).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hps_lightning"
    except RuntimeError:
        raise UserError(f"there is no home directory for the cache; set {CACHE_DIR_VARIABLE} to a folder") from None
