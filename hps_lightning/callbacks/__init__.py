"""What happens beside a training: checkpoints, measurements, dashboards, exports, reports."""

from .benchmark import Benchmark
from .checkpoints import Checkpoints
from .dashboard import Dashboard
from .export import Export
from .predictions import Predictions
from .progress import EpochLines
from .report import Report
from .summary import Summary

__all__ = [
    "Benchmark",
    "Checkpoints",
    "Dashboard",
    "EpochLines",
    "Export",
    "Predictions",
    "Report",
    "Summary",
]
