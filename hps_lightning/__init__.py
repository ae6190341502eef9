"""Compact CNNs around High Performance SqueezeNext: train on CIFAR, deploy on an embedded board."""

__version__ = "0.1.0"
