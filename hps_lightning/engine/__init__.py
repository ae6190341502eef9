"""What makes a training fast on CPUs: kernels for batch norm and activations, and settings of the C library."""

from hps_lightning.engine.fused import FusedTraining
from hps_lightning.engine.memory import keep_freed_memory
from hps_lightning.engine.native import NativeUnavailableError, load_kernels

__all__ = ["FusedTraining", "NativeUnavailableError", "keep_freed_memory", "load_kernels"]
