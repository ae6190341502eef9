"""A worker: takes one trial after the other until the study has as many as it should have.

Any number of workers may share a study. What keeps them apart is the storage: it gives out each
trial's number once, changes its state once, and tells by missing signs of life that a worker has
died. What they have trained lies in the trials' folders, so that a storage that is lost from
sight costs no training: the trial is begun again when it is back, and finds itself done.
"""

import contextlib
import os
import platform
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, TrialPruned, UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from hps_lightning.errors import DivergedError, UserError
from hps_lightning.explore.config import Exploration, option_tokens
from hps_lightning.explore.pruning import dominated
from hps_lightning.explore.quantities import ERROR, QUANTITIES, exceeds, excess
from hps_lightning.explore.space import Corner
from hps_lightning.explore.storage import (
    FAILURE,
    GRACE,
    STORAGE_ERRORS,
    WORKER,
    StorageDownError,
    is_file,
    storage_down,
)
from hps_lightning.explore.study import (
    SURPLUS,
    ask,
    begin_again,
    begun_before,
    counted,
    place_in_line,
    signs_of_life,
    superseded,
    wait_for,
)
from hps_lightning.explore.trial import TrialFailedError, TrialFolder, run_training

COSTS, CURVE, EPOCHS, OPTIONS, PLACE, SAME_AS = (
    "costs",
    "curve",
    "epochs",
    "options",
    "folder",
    "same_as",
)
"""Attributes of a trial: what its network costs, its error after each epoch, its length, its options of `hps fit`, its
folder, and the trial that had the same options."""


_CRASHES = 3
"""Trials that a worker lets die one after the other before it takes itself, not them, for the reason."""


class Worker:
    """Works at a study.

    Args:
        study: as :func:`~hps_lightning.explore.study.open_study` returns it.
        exploration: what it explores.
        url: of its storage.
        folder: of the study's runs.
        heartbeat_s: seconds between two signs of life.
        say: takes a line for the user.
    """

    def __init__(
        self,
        study: Study,
        exploration: Exploration,
        url: str,
        folder: Path,
        heartbeat_s: int,
        say: Callable[[str], None] = print,
    ) -> None:
        self.study = study
        self.exploration = exploration
        self.url = url
        self.folder = folder
        self.heartbeat_s = heartbeat_s
        self.say = say
        self._name = f"{platform.node()}:{os.getpid()}"
        self._unheard: dict[int, float] = {}
        self._waited_for: set[int] = set()
        self._crashed: list[int] = []

    def check(self) -> None:
        """Tries one corner of the space up to where its training would begin.

        Raises:
            UserError: the options make no training that `hps fit` would begin, or not on a hold-out.
        """
        options = self.exploration.space.suggest(Corner())
        argv = [*self.exploration.base, *option_tokens(options), "--trainer.logger=false"]
        try:
            run_training(argv, lambda name, content: False, measured=None)
        except UserError as error:
            raise UserError(f"With {write_options(options)}, `hps fit` would say: {error}") from error
        except TrialFailedError as error:
            raise UserError(f"With {write_options(options)}, `hps fit` would fail: {error}") from error

    def work(self) -> None:
        """Takes trials until there are enough, and those of other workers have ended.

        Raises:
            UserError: the storage is down for longer than a worker may be silent, or one training after the other dies
                here; their trials are back in the queue.
            KeyboardInterrupt: Ctrl+C; the trial under way is back in the queue.
        """
        while self.patiently(self._next_trial):
            pass

    def patiently(self, call: Callable[[], Any]) -> Any:
        """Calls something that needs the storage, again after an outage of the storage."""
        while True:
            try:
                return call()
            except BrokenPipeError:
                # Of our output, not of the storage.
                raise
            except STORAGE_ERRORS as error:
                down = storage_down(self.url, error)
                patience = GRACE * self.heartbeat_s
                self.say(f"{down} Trying again for {patience} seconds.")
                if not wait_for(self.study, patience):
                    raise down from None

    def _next_trial(self) -> bool:
        """Runs a trial, or waits for those of others; whether there is more to do."""
        self._take_up_the_dead()
        trials = self.study.get_trials(deepcopy=False)
        waiting = any(trial.state == TrialState.WAITING for trial in trials)
        if waiting or len(counted(trials)) < self.exploration.trials:
            self._run(ask(self.study))
            self._stop_where_nothing_trains()
            return True
        running = [trial.number for trial in trials if trial.state == TrialState.RUNNING]
        if not running:
            return False
        if set(running) - self._waited_for:
            self.say(f"Waiting for {_numbered(running)} of other workers, to go on with should one be killed.")
            self._waited_for.update(running)
        time.sleep(min(2.0, self.heartbeat_s))
        return True

    def _run(self, trial: Trial) -> None:
        """Runs a trial and tells what came of it."""
        with signs_of_life(self.study, trial), TrialFolder(self.folder, trial.number).lock():
            try:
                values, state = self._outcome(trial)
                self.patiently(lambda: self._tell(trial, values, state))
            except UpdateFinishedTrialError:
                self.say(f"Trial {trial.number} was taken up by another worker, since this one gave no sign of life.")
            except (KeyboardInterrupt, BrokenPipeError):
                # The latter of our output, as `head` leaves it.
                self._put_back(trial)
                raise

    def _stop_where_nothing_trains(self) -> None:
        """Ends a worker whose trainings die one after the other.

        A GPU that another process fills, or a full disk, would use up all trials of the study.

        Raises:
            UserError: they do; those that were begun for the first time are back in the queue.
        """
        if len(self._crashed) < _CRASHES:
            return
        trials = self.patiently(self.study.get_trials)
        again: list[int] = []
        for number in self._crashed if self.exploration.retries else ():
            # Once, since a network may be what kills its trainings; that of a worker that was killed is another matter.
            if not begun_before(trials[number]):
                self.patiently(lambda number=number: begin_again(self.study, trials[number], 1))
                again.append(number)
        raise UserError(
            f"{_CRASHES} trainings in a row have died here; their output is in fit.log of their folders in "
            f"{self.folder}. Once the cause is gone, the same command goes on"
            + (f", with {_numbered(again)} again" if again else "")
            + f". The last one's reason: {trials[self._crashed[-1]].user_attrs[FAILURE]}"
        )

    def _tell(self, trial: Trial, values: Sequence[float] | None, state: TrialState) -> None:
        try:
            self.study.tell(trial, values, state)
        except ValueError:
            # Told already; by us, if an outage swallowed the answer.
            if self.study.get_trials(deepcopy=False)[trial.number].state != state:
                raise UpdateFinishedTrialError from None

    def _put_back(self, trial: Trial) -> None:
        """Puts a trial back into the queue, to go on at once; without a storage it will be taken for dead later."""
        with contextlib.suppress(UpdateFinishedTrialError, *STORAGE_ERRORS):
            self._tell(trial, None, TrialState.FAIL)
            frozen = self.study.get_trials(deepcopy=False)[trial.number]
            # However often: the user meant the worker, not the trial.
            begin_again(self.study, frozen, len(begun_before(frozen)) + 1)

    def _outcome(self, trial: Trial) -> tuple[Sequence[float] | None, TrialState]:
        try:
            values = self._values(trial)
        except TrialPruned:
            return None, TrialState.PRUNED
        return values, TrialState.FAIL if values is None else TrialState.COMPLETE

    def _values(self, trial: Trial) -> Sequence[float] | None:
        """The values of a trial's objectives; None if it failed.

        Raises:
            TrialPruned: it is over a limit, clearly worse than others, or has diverged.
            UpdateFinishedTrialError: another worker has taken it up.
        """
        trial.set_user_attr(WORKER, self._name)
        trials = self.study.get_trials(deepcopy=False)
        history = begun_before(trials[trial.number])
        if not history and place_in_line(trials, trial.number) >= self.exploration.trials:
            trial.set_user_attr(SURPLUS, True)
            return None
        options = self.exploration.space.suggest(trial)
        trial.set_user_attr(OPTIONS, options)
        folder = TrialFolder(self.folder, trial.number)
        trial.set_user_attr(PLACE, str(folder.path))
        again = f" ({_numbered(history[-1:])} again)" if history else ""
        self.say(f"trial {trial.number}{again}: {write_options(options)}")
        same = _finished_like(trials, trial.number, options)
        if same is not None:
            return self._repeat(trial, same)
        try:
            return self._train(trial, options, folder, [TrialFolder(self.folder, n) for n in reversed(history)])
        except StorageDownError:
            raise
        except DivergedError as error:
            self._crashed.clear()
            # No failure: the sampler is to learn that nothing good lies there.
            trial.set_user_attr(FAILURE, str(error))
            self.say(f"trial {trial.number}: stopped early: {error}")
            raise TrialPruned("diverged") from error
        except (UserError, TrialFailedError) as error:
            trial.set_user_attr(FAILURE, str(error))
            self.say(f"trial {trial.number} failed: {error}")
            if isinstance(error, TrialFailedError):
                self._crashed.append(trial.number)
            return None

    def _repeat(self, trial: Trial, same: FrozenTrial) -> Sequence[float]:
        """The values of a trial that had the same options: trained once more it would give the same."""
        trial.set_user_attr(SAME_AS, same.number)
        for key in (COSTS, CURVE, EPOCHS):
            trial.set_user_attr(key, same.user_attrs[key])
        costs, curve = same.user_attrs[COSTS], curve_of(same)
        _Progress(self, trial).constrain({**costs, ERROR: curve[max(curve)]})
        self.say(f"trial {trial.number}: the same as trial {same.number}, not trained again")
        return same.values

    def _train(
        self, trial: Trial, options: Mapping[str, Any], folder: TrialFolder, earlier: Sequence[TrialFolder]
    ) -> Sequence[float]:
        progress = _Progress(self, trial)
        if folder.take_over(earlier):
            error = folder.finished_error(trial.user_attrs.get(EPOCHS))
            if error is not None and COSTS in trial.user_attrs:
                self.say(f"trial {trial.number}: was trained already")
                return progress.finish(error)
        argv = [*self.exploration.base, *option_tokens(options)]
        for checkpoint in folder.checkpoints():
            try:
                return self._trained([f"--ckpt_path={checkpoint}"], progress, folder, argv)
            except (StorageDownError, DivergedError):
                raise
            except UserError as error:
                # Damaged, since the worker or its machine died.
                self.say(f"trial {trial.number}: does not go on from {checkpoint.name}, which is of no use: {error}")
        return self._trained([*argv, *option_tokens({"trainer.logger": folder.logger()})], progress, folder)

    def _trained(
        self, argv: list[str], progress: "_Progress", folder: TrialFolder, own: Sequence[str] = ()
    ) -> Sequence[float]:
        measured = None if progress.costs else self.exploration.quantities
        if run_training(argv, progress.answer, folder.log, measured, own) == "declined":
            raise TrialPruned("over the limits")
        # So trainings work here.
        self._crashed.clear()
        if progress.stopped:
            self.say(f"trial {progress.trial.number}: stopped early, clearly worse than others")
            raise TrialPruned("clearly worse")
        return progress.finish(progress.last_error(folder))

    def _take_up_the_dead(self) -> None:
        """Puts trials back into the queue whose workers have died."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            optuna.storages.fail_stale_trials(self.study)
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        for trial in running:
            if WORKER in trial.user_attrs:
                # On one machine there is no need to wait for signs of life; a journal has none.
                if is_file(self.url) and TrialFolder(self.folder, trial.number).abandoned():
                    self._declare_dead(trial)
                continue
            # Killed before its first sign of life: nothing would ever tell.
            since = self._unheard.setdefault(trial.number, time.monotonic())
            if time.monotonic() - since <= GRACE * self.heartbeat_s:
                continue
            if begun_before(trial):
                self._declare_dead(trial)
            else:
                # It had drawn nothing yet.
                with contextlib.suppress(UpdateFinishedTrialError):
                    self.study._storage.set_trial_user_attr(trial._trial_id, SURPLUS, True)
                    self.study.tell(trial.number, state=TrialState.FAIL)

    def _declare_dead(self, trial: FrozenTrial) -> None:
        try:
            self.study.tell(trial.number, state=TrialState.FAIL)
        except (UpdateFinishedTrialError, ValueError):
            # Another worker was faster.
            return
        begin_again(self.study, trial, self.exploration.retries)


class _Progress:
    """What a trial has reached, and whether it should go on."""

    def __init__(self, worker: Worker, trial: Trial) -> None:
        self.worker = worker
        self.trial = trial
        self.exploration = worker.exploration
        self.costs: dict[str, float] = dict(trial.user_attrs.get(COSTS, {}))
        self.epochs: int | None = trial.user_attrs.get(EPOCHS)
        self.curve = curve_of(trial)
        self.stopped = False
        self._reported = set(self.curve)

    def answer(self, name: str, content: dict[str, Any]) -> bool:
        """See ``training.Correspondent``."""
        return self._network(content) if name == "network" else self._epoch(content)

    def _network(self, content: dict[str, Any]) -> bool:
        if content["costs"] is None:
            return True
        self.costs, self.epochs = content["costs"], content["epochs"]
        over = self.worker.patiently(self._note_costs)
        costs = ", ".join(f"{name} {QUANTITIES[name].write(value)}" for name, value in self.costs.items())
        self.worker.say(
            f"trial {self.trial.number}: {costs}" + (f"; over its limit: {', '.join(over)}" if over else "")
        )
        return not over

    def _note_costs(self) -> list[str]:
        self.trial.set_user_attr(EPOCHS, self.epochs)
        self.trial.set_user_attr(COSTS, self.costs)
        return self.constrain(self.costs)

    def constrain(self, values: Mapping[str, float]) -> list[str]:
        """Notes by how much limits are exceeded; the names of those that are."""
        known = self.worker.study.get_trials(deepcopy=False)[self.trial.number].constraints
        over = excess(values, self.exploration.limits)
        for name, part in over.items():
            if name not in known:
                self.trial.set_constraint(name, part)
        return [name for name, part in over.items() if exceeds(part)]

    def _epoch(self, content: dict[str, Any]) -> bool:
        epoch, error = content["epoch"], content[ERROR]
        self.curve[epoch] = error
        self.worker.say(f"trial {self.trial.number}: epoch {epoch + 1} of {self.epochs}, error {100 * error:.2f} %")
        try:
            self._note_curve()
            self.stopped = epoch + 1 < (self.epochs or 0) and self._clearly_worse(epoch)
        except STORAGE_ERRORS as problem:
            # The training goes on: what it reaches is kept in its folder.
            self.worker.say(str(storage_down(self.worker.url, problem)))
            return True
        return not self.stopped

    def _clearly_worse(self, epoch: int) -> bool:
        if self.exploration.objectives == [ERROR]:
            if epoch not in self._reported:
                self.trial.report(self.curve[epoch], epoch)
                self._reported.add(epoch)
            if self.exploration.pruning.name != "dominated":
                return self.trial.should_prune()
        if self.exploration.pruning.name != "dominated":
            return False
        others = self.worker.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        costs = {name: self.costs[name] for name in self.exploration.objectives if name != ERROR}
        feasible = (other for other in others if not any(map(exceeds, other.constraints.values())))
        rivals = ((other.user_attrs.get(COSTS, {}), curve_of(other)) for other in feasible)
        return dominated(costs, self.curve, rivals, self.exploration.pruning)

    def last_error(self, folder: TrialFolder) -> float:
        """The error after the last epoch."""
        if self.epochs is not None and self.epochs - 1 in self.curve:
            return self.curve[self.epochs - 1]
        error = folder.finished_error(self.epochs)
        if error is None:
            raise TrialFailedError(f"It ended before its last epoch; see {folder.log}.")
        return error

    def finish(self, error: float) -> Sequence[float]:
        """Notes what the training reached; the values of the objectives."""
        values = {**self.costs, ERROR: error}
        self.curve[self.epochs - 1] = error
        over = self.worker.patiently(lambda: self._note_end(values))
        end = f"; over its limit: {', '.join(over)}" if over else ""
        self.worker.say(f"trial {self.trial.number}: done, error {100 * error:.2f} %{end}")
        return [values[name] for name in self.exploration.objectives]

    def _note_curve(self) -> None:
        self.trial.set_user_attr(CURVE, {str(number): value for number, value in sorted(self.curve.items())})

    def _note_end(self, values: Mapping[str, float]) -> list[str]:
        self._note_curve()
        return self.constrain(values)


def curve_of(trial: Trial | FrozenTrial) -> dict[int, float]:
    """A trial's error after each epoch, counted from 0."""
    return {int(number): error for number, error in trial.user_attrs.get(CURVE, {}).items()}


def _finished_like(trials: Sequence[FrozenTrial], number: int, options: Mapping[str, Any]) -> FrozenTrial | None:
    gone = superseded(trials)
    for other in trials:
        if (
            other.number != number
            and other.number not in gone
            and other.state == TrialState.COMPLETE
            and SAME_AS not in other.user_attrs
            and other.user_attrs.get(OPTIONS) == options
        ):
            return other
    return None


def _numbered(numbers: Sequence[int]) -> str:
    return f"trial{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def write_options(options: Mapping[str, Any]) -> str:
    """Options of `hps fit`, to be read."""
    return ", ".join(f"{name.removeprefix('model.')} {_written(value)}" for name, value in options.items())


def _written(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)
