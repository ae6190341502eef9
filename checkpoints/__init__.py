"""The published networks, installed inside the package for ``hps_lightning.load``."""
