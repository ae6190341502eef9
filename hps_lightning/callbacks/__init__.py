"""What happens beside a training: checkpoints, measurements, dashboards, exports, reports."""

from lightning.pytorch import Callback

from .benchmark import Benchmark
from .checkpoints import BestCheckpoint, LastCheckpoint, WeightsCheckpoint
from .dashboard import Dashboard
from .distillation import Distillation
from .export import Export
from .guards import Guards
from .predictions import Predictions
from .progress import EpochLines
from .report import Report
from .resolution import ProgressiveResolution
from .resume import Resume
from .summary import Summary

CALLBACK_OPTIONS: dict[str, type[Callback]] = {
    # First, so that nothing else sees a training that has diverged.
    "guards": Guards,
    "best_checkpoint": BestCheckpoint,
    "last_checkpoint": LastCheckpoint,
    "benchmark": Benchmark,
    "export": Export,
    "predictions": Predictions,
    "dashboard": Dashboard,
}
"""Those that every command of Lightning's has, with options of their own, such as ``--export.bundle``."""

# Callbacks alone: `cli.run_config` takes the names from here.
__all__ = [
    "Benchmark",
    "BestCheckpoint",
    "Dashboard",
    "Distillation",
    "EpochLines",
    "Export",
    "Guards",
    "LastCheckpoint",
    "Predictions",
    "ProgressiveResolution",
    "Report",
    "Resume",
    "Summary",
    "WeightsCheckpoint",
]
