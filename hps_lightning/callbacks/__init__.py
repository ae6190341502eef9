"""What happens beside a training: checkpoints, measurements, dashboards, exports, reports."""

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
