"""What makes a training fast: on CPUs kernels of our own and settings of the C library, on GPUs graphs of kernels."""

from hps_lightning.engine.cuda_graphs import GraphedTraining, Replayed, passes_repeat
from hps_lightning.engine.eager import EAGER_VARIABLE, eager
from hps_lightning.engine.fused import FusedTraining
from hps_lightning.engine.memory import keep_freed_memory
from hps_lightning.engine.native import NativeUnavailableError, load_kernels

__all__ = [
    "EAGER_VARIABLE",
    "FusedTraining",
    "GraphedTraining",
    "NativeUnavailableError",
    "Replayed",
    "eager",
    "keep_freed_memory",
    "load_kernels",
    "passes_repeat",
]
