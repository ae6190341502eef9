"""The way to train without this package's fast paths."""

import os

EAGER_VARIABLE = "HPS_EAGER"
"""Set to anything, this environment variable trains without kernels of our own and without graphs, for comparison."""


def eager() -> bool:
    """Whether the variable is set."""
    return bool(os.environ.get(EAGER_VARIABLE))
