"""The way to train without this package's fast paths."""

import os

EAGER_VARIABLE = "HPS_EAGER"
"""Set to 1, this environment variable trains without kernels of our own and without graphs, for comparison."""


def eager() -> bool:
    """Whether the variable is set, and not to 0."""
    return os.environ.get(EAGER_VARIABLE, "0") not in ("", "0")
