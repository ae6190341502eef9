"""Optimizers and learning rate schedules by name."""

from .build import (
    OPTIMIZERS,
    PAPER_OPTIMIZER,
    SCHEDULES,
    build_optimizer,
    build_schedule,
    make_schedule,
    optimizer_class,
    schedule_class,
    spans_training,
)
from .muon import MuonWithAuxAdam
from .schedules import LRSchedule, TrainingLength

__all__ = [
    "OPTIMIZERS",
    "PAPER_OPTIMIZER",
    "SCHEDULES",
    "LRSchedule",
    "MuonWithAuxAdam",
    "TrainingLength",
    "build_optimizer",
    "build_schedule",
    "make_schedule",
    "optimizer_class",
    "schedule_class",
    "spans_training",
]
