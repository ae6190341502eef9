import csv
import json
import threading

import pytest
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from hps_lightning.errors import DivergedError, UserError
from hps_lightning.explore import worker as working
from hps_lightning.explore.front import rows_csv, rows_of
from hps_lightning.explore.pruning import Pruning
from hps_lightning.explore.space import Space
from hps_lightning.explore.storage import StorageDownError, default_url
from hps_lightning.explore.study import SURPLUS, ask, counted, open_study
from hps_lightning.explore.trial import TrialFailedError, TrialFolder
from tests.explore.made import EPOCHS, MadeTraining, exploration, worker


@pytest.fixture
def training(monkeypatch):
    made = MadeTraining()
    monkeypatch.setattr(working, "run_training", made)
    return made


def states(study):
    return [trial.state.name for trial in study.trials]


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_a_rerun_goes_on_up_to_the_number_of_trials(tmp_path, training, storage):
    url = default_url(tmp_path, "made") if storage == "sqlite" else f"journal:///{tmp_path}/made.log"
    worker(tmp_path, url=url).work()
    assert len(training.calls) == 3
    worker(tmp_path, url=url).work()
    assert len(training.calls) == 3
    again = worker(tmp_path, exploration(trials=5), url=url)
    again.work()
    assert len(training.calls) == 5
    for trial in again.study.trials:
        width = trial.params["model.width"]
        assert trial.values == [(1 - width) / EPOCHS, 4e5 * width]
        assert len(trial.user_attrs["curve"]) == EPOCHS
    assert len({trial.params["model.width"] for trial in again.study.trials}) == 5


# NSGA-II's generations are of 20.
@pytest.mark.parametrize(("sampler", "parts"), [("tpe", [1, 3, 4]), ("random", [1, 4]), ("nsgaii", [7, 24])])
def test_trials_are_drawn_alike_whether_a_study_was_interrupted_or_not(tmp_path, training, sampler, parts):
    widths = []
    for folder, ends in ((tmp_path / "whole", parts[-1:]), (tmp_path / "parts", parts)):
        for trials in ends:
            at_work = worker(folder, exploration(trials=trials, sampler=sampler))
            at_work.work()
        widths.append([trial.params["model.width"] for trial in at_work.study.trials])
    assert widths[0] == widths[1]
    assert len(set(widths[0])) > 1


def test_hyperband_stops_what_is_clearly_worse(tmp_path, training):
    explored = exploration(objectives=["error"], trials=12, pruning=Pruning("hyperband", 1))
    at_work = worker(tmp_path, explored)
    at_work.work()
    assert set(states(at_work.study)) == {"COMPLETE", "PRUNED"}
    best = min(at_work.study.trials, key=lambda trial: 1 - trial.params["model.width"])
    assert best.state == TrialState.COMPLETE


def test_what_exceeds_a_limit_is_not_trained(tmp_path, training):
    said = []
    at_work = worker(tmp_path, exploration(limits={"size_bytes": 2e5}, trials=8), said)
    at_work.work()
    over = [trial for trial in at_work.study.trials if trial.params["model.width"] > 0.5]
    assert 0 < len(over) < 8
    for trial in over:
        assert trial.state == TrialState.PRUNED
        assert trial.constraints["size_bytes"] == pytest.approx(2 * trial.params["model.width"] - 1)
        assert "curve" not in trial.user_attrs
    within = [trial for trial in at_work.study.trials if trial not in over]
    assert all(trial.state == TrialState.COMPLETE and trial.constraints["size_bytes"] <= 0 for trial in within)
    assert any("over its limit: size_bytes" in line for line in said)


def test_a_limit_of_the_error_counts_after_the_training(tmp_path, training):
    at_work = worker(tmp_path, exploration(objectives=["size_bytes"], limits={"error": 0.15}, trials=6))
    at_work.work()
    assert set(states(at_work.study)) == {"COMPLETE"}
    for trial in at_work.study.trials:
        error = (1 - trial.params["model.width"]) / EPOCHS
        assert trial.constraints["error"] == pytest.approx(error / 0.15 - 1)
    row_states = {row.state for row in rows_of(at_work.study.trials)}
    assert row_states == {"done", "over the limits"}


def test_a_trial_that_another_beats_in_everything_stops_early(tmp_path, training):
    # The larger, the worse: every one but the smallest so far is beaten.
    training.error = lambda width, epoch: width / (epoch + 1)
    at_work = worker(tmp_path, exploration(trials=8, pruning=Pruning("dominated", 1, 0.02)))
    at_work.work()
    smallest = 9.0
    for trial in at_work.study.trials:
        width = trial.params["model.width"]
        beaten = width / 2 > smallest / 2 + 0.02
        assert trial.state == (TrialState.PRUNED if beaten else TrialState.COMPLETE)
        assert len(trial.user_attrs["curve"]) == (2 if beaten else EPOCHS)
        smallest = smallest if beaten else min(smallest, width)
    assert "PRUNED" in states(at_work.study)
    assert (TrialFolder(at_work.folder, 0).run / "benchmark.json").is_file()


def test_one_objective_has_optunas_pruner(tmp_path, training):
    at_work = worker(tmp_path, exploration(objectives=["error"], trials=12, pruning=Pruning("median", 0)))
    at_work.work()
    assert states(at_work.study)[:5] == ["COMPLETE"] * 5
    assert "PRUNED" in states(at_work.study)
    assert all(trial.intermediate_values for trial in at_work.study.trials)


def test_a_point_that_comes_up_again_is_not_trained_again(tmp_path, training):
    at_work = worker(tmp_path, exploration(space=Space.parse({"model.width": [0.1, 0.2]}), trials=6))
    at_work.work()
    assert len(training.calls) == 2
    assert states(at_work.study) == ["COMPLETE"] * 6
    assert {tuple(trial.values) for trial in at_work.study.trials} == {(0.3, 4e4), (0.8 / 3, 8e4)}
    notes = [row.note for row in rows_of(at_work.study.trials)]
    assert sum("the same as trial" in note for note in notes) == 4


def test_a_failed_trial_is_told_and_others_go_on(tmp_path, training):
    training.interrupt = (1, TrialFailedError("no memory left"))
    at_work = worker(tmp_path)
    at_work.work()
    assert states(at_work.study) == ["FAIL", "COMPLETE", "COMPLETE"]
    written = list(csv.DictReader(rows_csv(rows_of(at_work.study.trials)).splitlines()))
    assert written[0]["note"] == "no memory left"


def fail(width, epoch):
    raise TrialFailedError("OutOfMemoryError: CUDA out of memory.")


def test_a_worker_whose_trainings_all_die_stops_and_puts_them_back(tmp_path, training):
    works, training.error = training.error, fail
    at_work = worker(tmp_path, exploration(trials=8))
    with pytest.raises(UserError, match=r"3 trainings in a row.*CUDA out of memory"):
        at_work.work()
    assert states(at_work.study) == ["FAIL"] * 3 + ["WAITING"] * 3
    training.error = works
    later = worker(tmp_path, exploration(trials=8))
    later.work()
    first, again = later.study.trials[:3], later.study.trials[3:6]
    assert [trial.params for trial in again] == [trial.params for trial in first]
    assert [trial.state.name for trial in counted(later.study.trials)] == ["COMPLETE"] * 8
    assert {row.note for row in rows_of(later.study.trials)} == {""}


def test_trainings_that_die_again_and_again_are_given_up(tmp_path, training):
    training.error = fail
    for _ in range(2):
        with pytest.raises(UserError, match="in a row"):
            worker(tmp_path).work()
    at_work = worker(tmp_path)
    at_work.work()
    assert len(training.calls) == 6
    assert [trial.state.name for trial in counted(at_work.study.trials)] == ["FAIL"] * 3


def test_trainings_that_die_now_and_then_stop_no_worker(tmp_path, training):
    works, outcomes = training.error, iter([fail, fail, None] * 3)
    training.error = lambda width, epoch: (works if epoch else next(outcomes) or works)(width, epoch)
    at_work = worker(tmp_path, exploration(trials=9))
    at_work.work()
    assert states(at_work.study) == ["FAIL", "FAIL", "COMPLETE"] * 3


def test_a_reader_that_has_gone_is_no_fault_of_the_trial(tmp_path, training):
    def say(line):
        if "epoch" in line:
            raise BrokenPipeError

    at_work = worker(tmp_path)
    at_work.say = say
    with pytest.raises(BrokenPipeError):
        at_work.work()
    assert states(at_work.study) == ["FAIL", "WAITING"]
    assert "failure" not in at_work.study.trials[0].user_attrs


def test_ctrl_c_puts_the_trial_back_and_it_goes_on_where_it_was(tmp_path, training):
    training.interrupt = (2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        worker(tmp_path).work()
    at_work = worker(tmp_path)
    assert states(at_work.study) == ["FAIL", "WAITING"]
    at_work.work()
    assert states(at_work.study) == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    first, again = at_work.study.trials[:2]
    assert again.params == first.params
    assert len(counted(at_work.study.trials)) == 3
    argv, measured = training.calls[1]
    assert argv == [f"--ckpt_path={TrialFolder(at_work.folder, 1).run / 'checkpoints' / 'last.ckpt'}"]
    assert measured is None, "the network's costs are known"
    assert len(again.user_attrs["curve"]) == EPOCHS
    assert (TrialFolder(at_work.folder, 0).run / "checkpoints" / "last.ckpt").is_file()


def test_a_trial_goes_on_as_its_user_began_it(tmp_path, training):
    training.interrupt = (2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        worker(tmp_path).work()
    worker(tmp_path).work()
    (begun, _), (again, _) = training.calls[:2]
    assert again[0].startswith("--ckpt_path=")
    assert training.own[:2] == [[], [token for token in begun if not token.startswith("--trainer.logger")]]


def test_a_training_that_diverges_is_a_trial_that_stopped_early(tmp_path, monkeypatch):
    made = MadeTraining()
    outcomes = iter([False, True, False])

    def diverging(argv, *arguments):
        if next(outcomes):
            raise DivergedError("The training has diverged: the loss is NaN at step 5.")
        return made(argv, *arguments)

    monkeypatch.setattr(working, "run_training", diverging)
    at_work = worker(tmp_path)
    at_work.work()
    assert states(at_work.study) == ["COMPLETE", "PRUNED", "COMPLETE"]
    row = rows_of(at_work.study.trials)[1]
    assert row.state == "stopped early"
    assert "NaN at step 5" in row.note


def test_a_checkpoint_that_is_of_no_use_lets_the_trial_begin_anew(tmp_path, training, monkeypatch):
    training.interrupt = (2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        worker(tmp_path).work()

    def refusing(argv, *arguments):
        if argv[0].startswith("--ckpt_path"):
            raise UserError("the checkpoint is damaged")
        return training(argv, *arguments)

    monkeypatch.setattr(working, "run_training", refusing)
    at_work = worker(tmp_path)
    at_work.work()
    assert states(at_work.study) == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]


def test_a_damaged_last_checkpoint_gives_way_to_the_best_one(tmp_path, training, monkeypatch):
    training.interrupt = (2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        worker(tmp_path).work()
    last = next(tmp_path.rglob("last.ckpt"))
    last.with_name("best.ckpt").write_bytes(last.read_bytes())

    def refusing(argv, *arguments):
        if argv[0].endswith("last.ckpt"):
            raise UserError("the checkpoint is damaged")
        return training(argv, *arguments)

    monkeypatch.setattr(working, "run_training", refusing)
    said = []
    worker(tmp_path, said=said).work()
    assert training.calls[1][0][0].endswith("best.ckpt")
    assert any("last.ckpt" in line and "damaged" in line for line in said)


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_a_dead_workers_trial_is_taken_up_at_once_on_its_machine(tmp_path, training, storage):
    url = default_url(tmp_path, "made") if storage == "sqlite" else f"journal:///{tmp_path}/made.log"
    dead = worker(tmp_path, url=url)
    trial = ask(dead.study)
    trial.set_user_attr("worker", "elsewhere:1")
    dead.exploration.space.suggest(trial)
    with TrialFolder(dead.folder, trial.number).lock():
        alive = worker(tmp_path, url=url)
        alive._take_up_the_dead()
        assert states(alive.study) == ["RUNNING"], "its worker holds the lock"
    at_work = worker(tmp_path, url=url)
    at_work.work()
    assert states(at_work.study) == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert at_work.study.trials[1].params == at_work.study.trials[0].params


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_a_worker_that_dies_before_its_first_sign_of_life_keeps_nobody_waiting(tmp_path, storage):
    url = default_url(tmp_path, "made") if storage == "sqlite" else f"journal:///{tmp_path}/made.log"
    dead, alive = worker(tmp_path, url=url), worker(tmp_path, url=url)
    alive.heartbeat_s = 0

    def wait():
        for _ in range(2):
            alive._take_up_the_dead()

    # A new trial had drawn nothing, and is none.
    ask(dead.study)
    wait()
    assert states(alive.study) == ["FAIL"]
    assert alive.study.trials[0].user_attrs == {SURPLUS: True}
    # One that was taken up from another worker has much to lose.
    trial = ask(dead.study)
    trial.set_user_attr("worker", "elsewhere:1")
    dead.exploration.space.suggest(trial)
    with TrialFolder(dead.folder, trial.number).lock():
        pass
    wait()
    assert states(alive.study)[1:] == ["FAIL", "WAITING"]
    ask(dead.study)
    wait()
    assert states(alive.study)[1:] == ["FAIL", "FAIL", "WAITING"]
    assert alive.study.trials[3].params == alive.study.trials[1].params


# Threads of one process share the list of ignored warnings, which each puts back; a user's workers are processes.
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_workers_that_begin_together_make_no_trial_too_many(tmp_path, training):
    workers = [worker(tmp_path, exploration(trials=4)) for _ in range(3)]
    threads = [threading.Thread(target=each.work) for each in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trials = workers[0].study.trials
    assert len(training.calls) == 4
    assert [trial.state.name for trial in counted(trials)] == ["COMPLETE"] * 4
    surplus = [trial for trial in trials if SURPLUS in trial.user_attrs]
    assert len(trials) == 4 + len(surplus)
    assert len(rows_of(trials)) == 4


class Outage:
    """Takes a storage from sight after a number of writes of a trial's attributes.

    Attributes:
        until: how many calls fail before it is back; None for ever.
    """

    def __init__(self, storage, monkeypatch, name, until=None):
        self.down, self.until = False, until
        for method in ("set_trial_user_attr", "set_trial_state_values", "get_all_trials", "set_trial_system_attr"):
            monkeypatch.setattr(storage, method, self._guarded(getattr(storage, method), method, name))

    def _guarded(self, method, called, name):
        def call(*arguments, **named):
            if called == "set_trial_user_attr" and arguments[1] == name and '"2"' in json.dumps(arguments[2]):
                self.down = True
            if self.down:
                if self.until is None or self.until > 0:
                    self.until = None if self.until is None else self.until - 1
                    raise OperationalError("", {}, Exception("connection refused"))
                self.down = False
            return method(*arguments, **named)

        return call


def test_a_storage_that_is_lost_costs_no_training(tmp_path, training, monkeypatch):
    said = []
    at_work = worker(tmp_path, said=said)
    Outage(at_work.study._storage, monkeypatch, "curve")
    monkeypatch.setattr(working, "wait_for", lambda study, seconds: False)
    with pytest.raises(StorageDownError, match="connection refused"):
        at_work.work()
    assert len(training.calls) == 1
    assert (TrialFolder(at_work.folder, 0).run / "benchmark.json").is_file(), "it was trained to its end"
    later = worker(tmp_path)
    assert states(later.study) == ["RUNNING"]
    later.work()
    assert states(later.study) == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert len(training.calls) == 3, "the first trial was not trained again"
    width = later.study.trials[1].params["model.width"]
    assert later.study.trials[1].values == pytest.approx([(1 - width) / EPOCHS, 4e5 * width])


def test_a_short_outage_is_waited_for(tmp_path, training, monkeypatch):
    at_work = worker(tmp_path)
    Outage(at_work.study._storage, monkeypatch, "curve", until=4)
    at_work.work()
    assert [trial.state.name for trial in counted(at_work.study.trials)] == ["COMPLETE"] * 3
    assert len(training.calls) == 3


def test_a_worker_whose_trial_was_taken_goes_on_with_others(tmp_path, training):
    said = []
    at_work = worker(tmp_path, said=said)
    other = open_study(exploration(), at_work.url, 1)
    error = training.error

    def taken(width, epoch):
        if epoch == 1 and other.trials[0].state == TrialState.RUNNING:
            other.tell(0, state=TrialState.FAIL)
        return error(width, epoch)

    training.error = taken
    at_work.work()
    assert any("taken up by another worker" in line for line in said)
    assert states(at_work.study)[:1] == ["FAIL"]
    assert "COMPLETE" in states(at_work.study)


def test_options_that_fit_refuses_are_found_before_any_trial(tmp_path, monkeypatch):
    def refusing(*arguments, **named):
        raise UserError("no such option")

    monkeypatch.setattr(working, "run_training", refusing)
    at_work = worker(tmp_path)
    with pytest.raises(UserError, match=r"With width 1, `hps fit` would say: no such option"):
        at_work.check()
    assert at_work.study.trials == []
