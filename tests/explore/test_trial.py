import errno
import json
import multiprocessing
import os
import signal
from types import SimpleNamespace

import pytest
import torch

from hps_lightning.errors import UserError
from hps_lightning.explore import training, trial
from hps_lightning.explore.config import option_tokens
from hps_lightning.explore.trial import TrialFailedError, TrialFolder, run_training

FIT = ["--model=hps", "--model.stages=[1,1,1,1]", "--model.width=0.1", "--data.dataset=digits", "--data.batch_size=16"]
FIT += ["--trainer.limit_train_batches=2", "--trainer.accelerator=cpu", "--trainer.max_epochs=3"]


def test_a_process_that_cannot_be_started_is_no_outage_of_the_storage(monkeypatch, tmp_path):
    def full(*_):
        raise OSError("AF_UNIX path too long")

    monkeypatch.setattr(trial, "_context", full)
    with pytest.raises(UserError, match=r"No process can be started .* AF_UNIX path too long.* TMPDIR"):
        run_training(FIT, refuse)


def refuse(name, content):
    raise AssertionError(f"asked {name}: {content}")


@pytest.mark.train
def test_a_training_tells_how_it_goes_and_stops_when_told_to(tmp_path):
    folder = TrialFolder(tmp_path, 7)
    asked = []

    def answer(name, content):
        asked.append((name, content))
        return content.get("epoch") != 1

    argv = [*FIT, *option_tokens({"trainer.logger": folder.logger()})]
    assert run_training(argv, answer, folder.log, ["parameters"]) == "done"
    assert [name for name, _ in asked] == ["network", "epoch", "epoch"]
    assert asked[0][1]["epochs"] == 3
    assert asked[0][1]["costs"]["parameters"] > 0
    assert 0 <= asked[2][1]["error"] <= 1
    report = json.loads((folder.run / "benchmark.json").read_text())
    assert len(report["epochs"]) == 2
    assert 1 - report["metrics"]["final"]["val/accuracy"] == asked[2][1]["error"]
    assert folder.finished_error(3) is None, "it was stopped early"
    assert folder.finished_error(2) == asked[2][1]["error"]
    assert "epoch 2/3" in folder.log.read_text()

    asked.clear()
    again = TrialFolder(tmp_path, 8)
    assert again.take_over([TrialFolder(tmp_path, 6), folder])
    go_on = [f"--ckpt_path={again.checkpoints()[0]}"]
    assert run_training(go_on, lambda *message: not asked.append(message), again.log, None) == "done"
    assert [content.get("epoch") for _, content in asked] == [None, 2]
    assert asked[0][1]["costs"] is None
    assert len(json.loads((again.run / "benchmark.json").read_text())["epochs"]) == 3
    assert len(json.loads((folder.run / "benchmark.json").read_text())["epochs"]) == 2, "a copy went on"


@pytest.mark.parametrize("devices", ["2", "-1", "0,1", "[0,1]"])
def test_several_devices_for_one_trial_are_refused(devices):
    with pytest.raises(UserError, match="a trial trains on one device"):
        run_training([*FIT, f"--trainer.devices={devices}"], refuse)


@pytest.mark.train
def test_a_worker_that_slurm_has_started_trains_on_one_device(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "exploration")
    assert run_training([*FIT, "--trainer.logger=false"], lambda name, content: False, measured=None) == "declined"


def test_where_there_are_no_locks_a_trial_is_at_work_all_the_same(tmp_path, monkeypatch):
    def refuse(self, *arguments, **named):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(trial.FileLock, "acquire", refuse)
    folder = TrialFolder(tmp_path, 0)
    with folder.lock():
        assert folder.path.is_dir()
        (folder.path / "running.lock").touch()
        assert not folder.abandoned(), "nobody knows"


@pytest.mark.parametrize(
    ("error", "cause", "last"),
    [
        ("no such option", None, "refused"),
        ("The device's memory does not suffice", torch.OutOfMemoryError("CUDA out of memory"), "failed"),
        ("The folder cannot be written", OSError(errno.ENOSPC, "No space left on device"), "failed"),
    ],
)
def test_what_the_machine_lacks_is_no_fault_of_the_options(monkeypatch, error, cause, last):
    def fit(*arguments, **named):
        raise UserError(error) from cause

    messages = []
    worker = SimpleNamespace(send=messages.append, close=lambda: None)
    monkeypatch.setattr(training, "run_cli", fit)
    monkeypatch.setattr(training, "_redirect", lambda log: None)
    monkeypatch.setattr(training.threading, "Thread", lambda **named: SimpleNamespace(start=lambda: None))
    monkeypatch.setattr(training.signal, "signal", lambda *arguments: None)
    training.train(worker, [], None, None, dict(os.environ))
    assert messages == [(last, error)]


def test_what_is_being_written_is_not_taken_over(tmp_path):
    mine, dead = TrialFolder(tmp_path, 8), TrialFolder(tmp_path, 7)
    (dead.run / "checkpoints").mkdir(parents=True)
    (dead.run / "checkpoints" / "last.ckpt").write_bytes(b"whole")
    (dead.run / "checkpoints" / ".last.ckpt.0123.part").write_bytes(b"ha")
    mine.path.mkdir(parents=True)
    assert mine.take_over([dead])
    assert [path.name for path in mine.run.rglob("*") if path.is_file()] == ["last.ckpt"]


@pytest.mark.train
def test_classes_that_its_user_named_are_known_when_a_trial_goes_on(tmp_path):
    folder = TrialFolder(tmp_path, 0)
    own = [*FIT, "--optimizer=pytorch_optimizer.Lion", "--optimizer.lr=0.001"]
    argv = [*own, *option_tokens({"trainer.logger": folder.logger()})]
    run_training(argv, lambda name, content: content.get("epoch") != 0, folder.log, None)
    epochs = []
    go_on = [f"--ckpt_path={folder.checkpoints()[0]}"]
    with pytest.raises(UserError, match="Lion"):
        run_training(go_on, refuse, folder.log, None)
    run_training(go_on, lambda name, content: not epochs.append(content.get("epoch")), folder.log, None, own)
    assert epochs[-2:] == [1, 2]


@pytest.mark.train
def test_a_trial_of_a_worker_among_several_trains_alone_and_logs(tmp_path, monkeypatch):
    for name, value in {"PROCID": 1, "LOCALID": 1, "NTASKS": 2, "NODEID": 0, "JOB_NAME": "x", "JOB_ID": 1}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    folder = TrialFolder(tmp_path, 0)
    argv = [*FIT, *option_tokens({"trainer.logger": folder.logger()})]
    assert run_training(argv, lambda name, content: True, folder.log, None) == "done"
    assert list(folder.run.glob("events.out.tfevents.*"))


@pytest.mark.train
def test_a_network_that_is_not_wanted_is_not_trained(tmp_path):
    folder = TrialFolder(tmp_path, 0)
    argv = [*FIT, *option_tokens({"trainer.logger": folder.logger()})]
    assert run_training(argv, lambda name, content: False, folder.log, None) == "declined"
    assert folder.checkpoints() == []
    assert not (folder.run / "benchmark.json").exists()


@pytest.mark.train
@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--data.protocol=paper"], "would choose by the test images"),
        (["--data.protocol=full"], "nothing validates"),
        (["--trainer.check_val_every_n_epoch=2"], "leave out trainer.check_val_every_n_epoch 2"),
        (["--trainer.limit_val_batches=0"], "trainer.limit_val_batches 0"),
        (["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"], "leave out EarlyStopping"),
        (["--trainer.max_time=00:00:01:00"], "leave out trainer.max_time"),
        (["--trainer.max_steps=3"], "leave out trainer.max_steps 3"),
        (["--model.widht=1"], "widht"),
        (["--model.width=0"], "width must be greater than 0"),
    ],
)
def test_what_cannot_be_explored_is_refused(options, part):
    with pytest.raises(UserError, match=part):
        run_training([*FIT, "--trainer.logger=false", *options], refuse, measured=None)


@pytest.mark.train
def test_a_process_that_is_killed_is_a_failed_trial(tmp_path):
    folder = TrialFolder(tmp_path, 0)

    def answer(name, content):
        (process,) = multiprocessing.active_children()
        os.kill(process.pid, signal.SIGKILL)
        return True

    argv = [*FIT, *option_tokens({"trainer.logger": folder.logger()})]
    with pytest.raises(TrialFailedError, match="killed by signal 9"):
        run_training(argv, answer, folder.log, None)


@pytest.mark.train
def test_an_error_of_the_workers_own_is_not_taken_for_the_trainings(tmp_path):
    def answer(name, content):
        raise BrokenPipeError("of the worker's output")

    with pytest.raises(BrokenPipeError, match="worker's output"):
        run_training([*FIT, "--trainer.logger=false"], answer, measured=None)


def test_files_that_are_damaged_answer_nothing(tmp_path):
    folder = TrialFolder(tmp_path, 0)
    folder.run.mkdir(parents=True)
    for text in ("", "{", "[]", '{"epochs": [1, 2], "metrics": {"final": {}}}', '{"epochs": null}'):
        (folder.run / "benchmark.json").write_text(text)
        assert folder.finished_error(2) is None
    assert folder.finished_error(None) is None


def test_a_trial_is_abandoned_where_its_lock_is_free(tmp_path):
    folder = TrialFolder(tmp_path, 0)
    assert not folder.abandoned(), "it was never begun here"
    with folder.lock():
        assert not TrialFolder(tmp_path, 0).abandoned()
    assert folder.abandoned()
