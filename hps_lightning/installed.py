"""Where configs and published networks lie: at the top of a checkout, inside the package once it is installed."""

from importlib import resources
from pathlib import Path


def configs_folder() -> Path:
    """The folder of the configs: ``configs/`` in a checkout."""
    return _folder("configs", "configs")


def published_folder() -> Path:
    """The folder of the published networks: ``checkpoints/`` in a checkout."""
    return _folder("published", "checkpoints")


def _folder(package: str, in_checkout: str) -> Path:
    try:
        return Path(str(resources.files(f"{__package__}.{package}")))
    except ModuleNotFoundError:
        # A checkout that is on Python's path without being installed.
        return Path(__file__).parents[1] / in_checkout
