"""The callback that keeps weights ready for the board while a network trains."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from hps_lightning.bluebox import board_weights, describe, export_bundle, export_weights
from hps_lightning.callbacks.run_directory import run_directory
from hps_lightning.errors import UserError
from hps_lightning.modules.classifier import ImageClassifier

METRIC = "val/accuracy"


class Export(Callback):
    """Writes the board's weights and manifest at the best epoch and at the end of a training.

    ``best/`` holds the weights with the highest ``val/accuracy`` so far, exactly as they were
    validated (averaged, where a callback averages weights); ``last/`` those at the end. Where
    nothing validates there is ``last/`` alone. What cannot be written is warned of and, for
    ``best/``, tried again: an export never costs a training. A fast dev run writes nothing.

    Args:
        directory: where ``best/`` and ``last/`` are put; ``bluebox`` in the run's log directory
            if not given.
        bundle: whether each is a folder that runs on the board by itself, as `hps export` writes
            it, instead of weights and manifest alone.
    """

    def __init__(self, directory: str | None = None, bundle: bool = False) -> None:
        self.directory = directory
        self.bundle = bundle
        self._reset()

    def _reset(self) -> None:
        self.best_score = float("-inf")
        self._written_score = float("-inf")
        self._unwritten_best: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        self._validated: dict[str, Tensor] = {}
        self._trained = False
        self._warned = False

    def state_dict(self) -> dict[str, Any]:
        """The score of what ``best/`` holds, so that a resumed training replaces it with nothing worse."""
        return {"best_score": self._written_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up what :meth:`state_dict` returned."""
        self.best_score = self._written_score = state_dict["best_score"]

    def setup(self, trainer: Trainer, pl_module: ImageClassifier, stage: str) -> None:
        """Settles the directory; every rank has to, since they agree on the log directory."""
        if stage == "fit":
            self._reset()
            root = Path(self.directory or os.path.join(run_directory(trainer) or trainer.default_root_dir, "bluebox"))
            # Of an unknown user's folder each export will tell.
            with contextlib.suppress(RuntimeError):
                root = root.expanduser()
            self._root = root

    def on_train_start(self, trainer: Trainer, pl_module: ImageClassifier) -> None:
        """Notes that there is something new to export."""
        self._trained = True

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: ImageClassifier, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Copies the weights that are validated; callbacks that average weights put others back afterwards."""
        if batch_idx == dataloader_idx == 0 and trainer.is_global_zero and _validates_training(trainer):
            self._validated = board_weights(pl_module.network.state_dict(), pl_module.network)

    def on_validation_end(self, trainer: Trainer, pl_module: ImageClassifier) -> None:
        """Writes ``best/`` if this epoch is the best so far."""
        if not _validates_training(trainer):
            return
        # On every rank, since reading metrics may communicate.
        record = pl_module.record()
        score = record["metrics"].get(METRIC)
        if not trainer.is_global_zero or score is None:
            return
        if score > self.best_score:
            self.best_score = score
            self._unwritten_best = (self._validated, record)
        reason = self._write_best(pl_module)
        if reason and not self._warned:
            self._warned = True
            rank_zero_warn(f"{reason} The training goes on without its export to {self._root / 'best'}.")

    def on_fit_end(self, trainer: Trainer, pl_module: ImageClassifier) -> None:
        """Writes ``last/``, and ``best/`` where that failed before."""
        record = pl_module.record()
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        reasons = [self._write_best(pl_module), self._write_last(trainer, pl_module, record)]
        for name, reason in zip(("best", "last"), reasons, strict=True):
            if reason:
                rank_zero_warn(f"{reason} The training has ended without its export to {self._root / name}.")

    def _write_best(self, pl_module: ImageClassifier) -> str | None:
        if self._unwritten_best is None:
            return None
        weights, record = self._unwritten_best
        reason = self._write("best", weights, pl_module, record, METRIC)
        if reason is None:
            self._written_score = self.best_score
            self._unwritten_best = None
        return reason

    def _write_last(self, trainer: Trainer, pl_module: ImageClassifier, record: dict[str, Any]) -> str | None:
        # Not by pathlib, which raises where the path cannot be looked at.
        if not self._trained and os.path.exists(self._root / "last"):
            # Resumed from where it had ended: what is there says more than could be said now.
            return None
        weights = board_weights(pl_module.network.state_dict(), pl_module.network)
        # The newest accuracy need not be that of these weights: not every epoch validates.
        metric = METRIC if METRIC in record["metrics"] and _same(weights, self._validated) else None
        # Lightning has counted on to the next epoch by now.
        record = {**record, "epoch": max(0, trainer.current_epoch - 1)}
        return self._write("last", weights, pl_module, record, metric)

    def _write(
        self,
        name: str,
        weights: dict[str, Tensor],
        pl_module: ImageClassifier,
        record: dict[str, Any],
        metric: str | None,
    ) -> str | None:
        """Writes an export; returns why it could not."""
        try:
            if self.bundle:
                export_bundle(pl_module.network, weights, self._root / name, record, metric)
            else:
                export_weights(
                    weights, self._root / name, describe(pl_module.network, record, metric), pl_module.network
                )
        except UserError as error:
            return str(error)
        return None


def _validates_training(trainer: Trainer) -> bool:
    return trainer.state.fn == "fit" and not trainer.sanity_checking and not trainer.fast_dev_run


def _same(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    return weights.keys() == others.keys() and all(torch.equal(weights[key], others[key]) for key in weights)
