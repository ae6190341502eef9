"""What a process does when another one dies; `tests/test_distributed.py` has whole trainings."""

import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from hps_lightning.cli import ranks
from hps_lightning.errors import UserError
from hps_lightning.modules import HPSClassifier

CLOSED = "[/x/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:1: Connection reset by peer."


@pytest.fixture(autouse=True)
def job(monkeypatch):
    """A training of three processes, which have met in a store; each test has its own."""
    monkeypatch.setattr(ranks, "GRACE", 0.3)
    monkeypatch.setattr(ranks, "_PERIOD", 0.02)
    monkeypatch.setattr(ranks, "last_checkpoint", lambda trainer: "runs/last.ckpt")
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    job = ranks._Job()
    job.store = dist.HashStore()
    job.trainer = SimpleNamespace(world_size=3, global_rank=1, lightning_module=HPSClassifier(width=0.1))
    monkeypatch.setattr(ranks, "_job", job)
    return job


@pytest.fixture
def said(monkeypatch):
    """What a process says that ends itself."""
    messages = []
    monkeypatch.setattr(ranks, "_end_process", messages.append)
    return messages


@pytest.fixture
def launcher(job):
    """One that has started the ranks 1 and 2; those that still run end with the test."""
    started = []

    def make(*programs):
        job.launcher = ranks.WatchedLauncher(_SubprocessScriptLauncher(LightningEnvironment(), 3, 1))
        job.launcher.procs = [subprocess.Popen([sys.executable, "-S", "-c", program]) for program in programs]
        started.extend(job.launcher.procs)
        return job.launcher

    yield make
    for process in started:
        process.kill()
        process.wait()


KILLED = "import os; os.kill(os.getpid(), 9)"
WAITS = "import time; time.sleep(1000)"


def ended(launcher):
    return [process.poll() is not None for process in launcher.procs]


def test_a_main_thread_that_waits_for_ever_is_ended(launcher, said):
    made = launcher(WAITS, KILLED)
    watch = threading.Thread(target=made._watch)
    watch.start()
    watch.join(60)
    (message,) = said
    assert message.startswith("rank 2 has died: killed by signal 9 (SIGKILL, as the system does")
    assert message.endswith("All processes of the training end. It can go on: hps fit --ckpt_path runs/last.ckpt")
    assert ended(made) == [True, True]


def test_nothing_is_said_where_all_end_well(launcher, said, job):
    made = launcher("", "")
    watch = threading.Thread(target=made._watch)
    watch.start()
    with ranks.ending_together():
        pass
    watch.join(60)
    assert [process.returncode for process in made.procs] == [0, 0]
    assert said == []
    assert job.launcher is None


def test_a_lost_connection_is_put_down_to_who_was_killed(launcher):
    made = launcher(KILLED, WAITS)
    # Slow machines take longer than a test's grace.
    made.procs[0].wait()
    with pytest.raises(ranks.RankError, match=r"^rank 1 has died: killed by signal 9"), ranks.ending_together():
        raise RuntimeError(CLOSED)
    assert ended(made) == [True, True]


def test_a_lost_connection_is_put_down_to_who_has_left_a_reason(launcher):
    made = launcher("raise SystemExit(1)", WAITS)
    made.procs[0].wait()
    ranks.EndTogether().on_exception(SimpleNamespace(world_size=3, global_rank=1), None, ValueError("a\nb" * 1000))
    with pytest.raises(ranks.RankError) as caught, ranks.ending_together():
        raise dist.DistBackendError("NCCL error")
    message = str(caught.value)
    assert message.startswith("rank 1 has died: ValueError: a ba b")
    assert "\n" not in message
    assert len(message) < 500


def test_a_process_that_others_have_started_says_what_it_knows(job):
    with pytest.raises(ranks.RankError, match=r"another process .* Connection reset by peer"), ranks.ending_together():
        raise RuntimeError(CLOSED)
    ranks.EndTogether().on_exception(job.trainer, None, UserError("There is no such image."))
    with (
        pytest.raises(ranks.RankError, match=r"^rank 1 has died: There is no such image\. All"),
        ranks.ending_together(),
    ):
        raise RuntimeError(CLOSED)


def test_a_store_that_is_gone_is_asked_once(job):
    asked = []

    def check(keys):
        asked.append(keys)
        raise dist.DistNetworkError("gone")

    job.store = SimpleNamespace(check=check)
    with pytest.raises(ranks.RankError, match="another process"), ranks.ending_together():
        raise RuntimeError(CLOSED)
    assert len(asked) == 1
    job.watched = True
    with pytest.raises(ranks.RankError, match="another process"), ranks.ending_together():
        raise RuntimeError(CLOSED)
    assert len(asked) == 1


@pytest.mark.parametrize("error", [RuntimeError(CLOSED), KeyboardInterrupt()])
def test_what_has_its_cause_elsewhere_is_no_reason(job, error):
    ranks.EndTogether().on_exception(job.trainer, None, error)
    assert not job.store.check(["hps/died/1"])


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3), RuntimeError("CUDA error")])
def test_other_exceptions_stay_what_they_are_and_leave_no_process_behind(launcher, error):
    made = launcher(WAITS, WAITS)
    with pytest.raises(type(error)) as caught, ranks.ending_together():
        raise error
    assert caught.value is error
    assert ended(made) == [True, True]


def test_torchrun_is_told_the_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(ranks.RankError), ranks.ending_together():
        raise RuntimeError(CLOSED)
    assert not list(tmp_path.iterdir()), "whoever only lost the connection is not the cause"
    with pytest.raises(MemoryError), ranks.ending_together():
        raise MemoryError("no room")
    assert json.loads((tmp_path / "error.json").read_text())["message"]["message"] == "MemoryError: no room"


def test_a_process_whose_launcher_is_gone_ends(monkeypatch, said):
    parents = iter([77, 77, 1])
    monkeypatch.setattr(ranks, "os", SimpleNamespace(getppid=lambda: next(parents), path=os.path))
    ranks._watch_launcher(77)
    (message,) = said
    assert message.startswith("rank 0 has died: its process has gone without a word")


def test_words_for_how_a_process_has_ended():
    for status, words in [
        (1, "it ended with status 1, for the reason that it has printed"),
        (-11, "killed by signal 11 (SIGSEGV)"),
        (-9, "killed by signal 9 (SIGKILL, as the system does where memory runs out)"),
        (-200, "killed by signal 200 (unknown)"),
    ]:
        assert ranks._ended(SimpleNamespace(returncode=status)) == words
