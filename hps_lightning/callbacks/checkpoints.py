"""A training's checkpoints in its run's ``checkpoints/``: the best, the last, the weights, and where to find them."""

import os
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from hps_lightning.callbacks.run_directory import has_own_folder, run_directory
from hps_lightning.callbacks.signals import StopSignals
from hps_lightning.checkpoint import read_checkpoint, save_weights
from hps_lightning.checkpoint_io import safe_checkpoints
from hps_lightning.errors import TrainingStopped, UserError, say_trouble
from hps_lightning.files import replaced_whole
from hps_lightning.modules import RECORD_KEY, ImageClassifier, class_path


class _MovableCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint whose run may have been moved to another folder before it goes on, or goes on in another."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._kept: dict[str, str] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keeps them in the run's folder, where a logger's would be one that its trainings share."""
        if self.dirpath is None and has_own_folder(trainer):
            self.dirpath = os.path.join(run_directory(trainer), "checkpoints")
        super().setup(trainer, pl_module, stage)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Looks for the files that the state tells of, in the folder that the run has now."""
        state = checkpoint["callbacks"].get(self.state_key)
        kept = {}
        if state is not None and trainer.is_global_zero:
            paths = {state["best_model_path"], state["last_model_path"], *state["best_k_models"]}
            kept = {path: os.path.join(self.dirpath, os.path.basename(path)) for path in paths if path}
            kept = {path: here for path, here in kept.items() if self._is_kept(trainer, state, here)}
        # All processes have to take the same one for the best; another host's may not see the folder.
        self._kept = trainer.strategy.broadcast(kept)

    def _is_kept(self, trainer: Trainer, state: dict[str, Any], path: str) -> bool:
        return self._fs.exists(path)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the state, as if it had been saved where the run lies now; what is not there is forgotten."""
        best = self._kept.get(state_dict["best_model_path"], "")
        models = {self._kept[path]: score for path, score in state_dict["best_k_models"].items() if path in self._kept}
        super().load_state_dict(
            {
                **state_dict,
                # Lightning forgets which checkpoint is best where these differ.
                "dirpath": self.dirpath,
                "best_model_path": best,
                "best_model_score": state_dict["best_model_score"] if best else None,
                "last_model_path": self._kept.get(state_dict["last_model_path"], ""),
                "kth_best_model_path": self._kept.get(state_dict["kth_best_model_path"], ""),
                "best_k_models": models,
            }
        )
        # Lightning saves it and forgets to load it.
        self.current_score = state_dict["current_score"]


class BestCheckpoint(_MovableCheckpoint):
    """Keeps the epoch of the best validation as ``best.ckpt``; nothing where nothing validates.

    Args:
        monitor: the metric that decides which is best.
        mode: whether a better metric is greater ("max") or smaller ("min").
    """

    def __init__(self, monitor: str = "val/accuracy", mode: Literal["max", "min"] = "max") -> None:
        # After the epoch's end, so that its training metrics are in the checkpoint too.
        super().__init__(
            filename="best", monitor=monitor, mode=mode, save_on_train_epoch_end=True, enable_version_counter=False
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keeps nothing under a protocol without validation."""
        if not getattr(trainer.datamodule, "validates", True):
            self.save_top_k = 0
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the state where there still is validation: without it, an earlier best would pass for this one's."""
        if self.save_top_k:
            super().load_state_dict(state_dict)

    def _is_kept(self, trainer: Trainer, state: dict[str, Any], path: str) -> bool:
        return super()._is_kept(trainer, state, path) or self._is_taken_along(trainer, state, path)

    def _is_taken_along(self, trainer: Trainer, state: dict[str, Any], path: str) -> bool:
        """Copies the best one from beside the checkpoint that the training goes on from, if it is the same one."""
        source = Path(trainer.ckpt_path).with_name(Path(path).name)
        # Evaluations restore callbacks too, and those without a logger have a `checkpoints/` that is no run's.
        if trainer.state.fn != TrainerFn.FITTING or "://" in path or not source.is_file():
            return False
        try:
            metrics = read_checkpoint(source)[RECORD_KEY].get("metrics")
            if not isinstance(metrics, Mapping) or metrics.get(self.monitor) != float(state["best_model_score"]):
                return False
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with replaced_whole(Path(path)) as aside:
                shutil.copyfile(source, aside)
        except (UserError, OSError) as error:
            say_trouble(f"{source} is not taken along to {path}: {error}")
            return False
        return True


class LastCheckpoint(_MovableCheckpoint):
    """Keeps the newest state of a training as ``last.ckpt``, from which it can go on exactly.

    It is written at the ends of epochs and, if asked for, between two steps inside them; where a step ends an epoch
    or is followed by a validation, at the next place from which the training can go on. SIGTERM and Ctrl+C end the
    training there, once it is written; a training that is complete by then ends as usual. Where ``max_steps`` or
    ``max_time`` ends a training inside an epoch, it is written there, so that a longer one goes on with the rest.

    Args:
        every_n_epochs: epochs between two checkpoints; 0 for none at the ends of epochs but the last.
        every_n_train_steps: steps of the optimizer between two checkpoints, besides.
        train_time_interval: time between two checkpoints, besides; ``00:10:00`` on the command line.

    Raises:
        UserError: an interval is not positive.
    """

    # Apart from `save_last` of the best one, which Lightning writes when the best one improves.
    def __init__(
        self,
        every_n_epochs: int = 1,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
    ) -> None:
        if every_n_epochs < 0:
            raise UserError(f"last_checkpoint.every_n_epochs must not be negative, got {every_n_epochs}.")
        if every_n_train_steps is not None and every_n_train_steps < 1:
            raise UserError(f"last_checkpoint.every_n_train_steps must be at least 1, got {every_n_train_steps}.")
        if train_time_interval is not None and train_time_interval <= timedelta():
            raise UserError(f"last_checkpoint.train_time_interval must be positive, got {train_time_interval}.")
        # Lightning's own intervals exclude each other, and save where a validation is about to begin, which a
        # training that goes on from there leaves out.
        super().__init__(
            filename="last", every_n_epochs=every_n_epochs, save_on_train_epoch_end=True, enable_version_counter=False
        )
        self._steps = every_n_train_steps
        self._interval = train_time_interval
        self._signals = StopSignals()
        self._saved_at = 0.0
        self._step = 0
        self._due = False
        self._stopped_inside = False

    @property
    def state_key(self) -> str:
        """Whatever the intervals, so that a training can go on with others."""
        return type(self).__qualname__

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock, and begins to note signals."""
        super().on_train_start(trainer, pl_module)
        self._saved_at = time.monotonic()
        self._step = trainer.global_step
        self._due = False
        self._stopped_inside = False
        self._signals.watch(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves between two steps where it is time to."""
        # In this order, since several processes have to agree on each.
        number = self._signals.received(trainer)
        late = self._interval is not None and trainer.strategy.broadcast(
            time.monotonic() - self._saved_at >= self._interval.total_seconds()
        )
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        self._due |= late or (stepped and self._steps is not None and self._step % self._steps == 0)
        self._stopped_inside = _stops_inside(trainer)
        if self._stopped_inside:
            self._save(trainer)
        elif (self._due or number) and _can_go_on_from_here(trainer):
            self._save(trainer)
            if number:
                raise TrainingStopped(number)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves at the end of an epoch where it is time to."""
        # The processes compute them together. A progress bar, which one process alone has, may have asked for them
        # already, and would wait in one exchange while the others wait in the next.
        _ = trainer.callback_metrics
        number = self._signals.received(trainer)
        complete = _is_complete(trainer)
        if self._stopped_inside:
            # What is there goes on with the rest of this epoch, which Lightning takes for a whole one.
            return
        if self._due or number or complete:
            self._save(trainer)
        else:
            super().on_train_epoch_end(trainer, pl_module)
        if number and not complete:
            raise TrainingStopped(number)

    def _save(self, trainer: Trainer) -> None:
        self._due = False
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self._saved_at = time.monotonic()


def _can_go_on_from_here(trainer: Trainer) -> bool:
    """Whether a checkpoint at the end of this batch loses nothing: no gradients, no validation, no end of an epoch."""
    loop = trainer.fit_loop.epoch_loop
    follows = loop._is_training_done or loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
    return not (follows or loop._should_accumulate())


def _stops_inside(trainer: Trainer) -> bool:
    """Whether the training ends with this batch, in an epoch's middle, and a longer one can go on from here."""
    loop = trainer.fit_loop.epoch_loop
    asked, steps = trainer.should_stop, 0 <= trainer.max_steps <= trainer.global_step
    stops = steps or (asked and trainer.fit_loop._can_stop_early)
    if not stops or loop._num_ready_batches_reached() or loop._should_accumulate():
        return False
    # Lightning validates wherever it is asked to stop; a validation that is due in any case would be left out.
    trainer.should_stop = False
    try:
        return not loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
    finally:
        trainer.should_stop = asked


def _is_complete(trainer: Trainer) -> bool:
    """Whether the epoch that ends is the training's last."""
    epochs = trainer.fit_loop.epoch_progress.current.processed
    stops = trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step
    return stops or (trainer.max_epochs is not None and 0 <= trainer.max_epochs <= epochs)


class WeightsCheckpoint(Callback):
    """Writes ``weights.ckpt`` at the end: the best, or without validation the last weights, and no more.

    It holds what `hps test` and `hps predict` need, without what only a training needs.
    """

    def __init__(self) -> None:
        self.weights_path = ""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file; where it cannot be written, its source holds the same weights."""
        source = best_checkpoint(trainer) or last_checkpoint(trainer)
        if trainer.is_global_zero and source:
            target = Path(source).with_name("weights.ckpt")
            try:
                save_weights(source, target)
            except UserError as error:
                say_trouble(f"{error} The training has ended without it; {source} holds the same weights.")
                return
            self.weights_path = str(target)


def best_checkpoint(trainer: Trainer) -> str | None:
    """The checkpoint of the best value of a metric, or None if none was kept."""
    # Those that the user added, by another metric perhaps, decide where there is none of ours.
    callbacks = sorted(trainer.checkpoint_callbacks, key=lambda callback: not isinstance(callback, BestCheckpoint))
    paths = [
        callback.best_model_path
        for callback in callbacks
        if isinstance(callback, ModelCheckpoint) and callback.monitor is not None
    ]
    return _first_written(trainer, paths)


def last_checkpoint(trainer: Trainer) -> str | None:
    """The newest checkpoint that was saved whatever the metrics, or None if there is none."""
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    # As with the best: ours first.
    paths = [callback.best_model_path for callback in callbacks if isinstance(callback, LastCheckpoint)]
    paths += [callback.last_model_path for callback in callbacks]
    # Without a metric to monitor, the "best" one is the newest.
    paths += [callback.best_model_path for callback in callbacks if callback.monitor is None]
    return _first_written(trainer, paths)


def checkpoint_command(command: str, checkpoint: str, classifier: type[ImageClassifier]) -> str:
    """What to type for a checkpoint; where its network is of a class of the user's own, with that.

    Args:
        command: such as "test".
        checkpoint: its path.
        classifier: the class of the module that it holds.
    """
    own = class_path(classifier)
    model = f" --model {own}" if "." in own else ""
    return f"{program(classifier)} {command} --ckpt_path {shlex.quote(checkpoint)}{model}"


def program(classifier: type[ImageClassifier]) -> str:
    """What a command for a module of a class begins with: `hps` does not import from the working directory."""
    return "python -m hps_lightning" if "." in class_path(classifier) else "hps"


def _first_written(trainer: Trainer, paths: Sequence[str]) -> str | None:
    # A disk that was full at the end has others than those that the callbacks believe in.
    checkpoints = safe_checkpoints(trainer)
    found = (path if checkpoints is None else checkpoints.whereabouts(path) for path in paths if path)
    return next(filter(None, found), None)
