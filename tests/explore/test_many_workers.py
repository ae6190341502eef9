"""Workers as processes of their own on a real PostgreSQL server; one of them is killed."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter

import pytest
import yaml
from optuna.trial import TrialState

from hps_lightning.explore.study import close_study, counted, find_study
from tests.explore import postgres

pytestmark = [
    pytest.mark.train,
    pytest.mark.skipif(postgres.missing() is not None, reason=postgres.missing() or ""),
]

TRIALS = 5
CONFIG = {
    "study": "many",
    "base": {
        "config": "quickstart.yaml",
        "options": {
            "trainer.max_epochs": 4,
            "trainer.limit_train_batches": 2,
            "trainer.accelerator": "cpu",
            "data.batch_size": 16,
            "dashboard.samples": 0,
            "dashboard.graph": False,
        },
    },
    "space": {"model.width": {"low": 0.1, "high": 0.3}, "model.activation": ["relu", "elu"]},
    # Without an export, which takes seconds.
    "objectives": ["error", "parameters"],
    "pruner": "none",
    "trials": TRIALS,
}


@pytest.fixture
def server():
    running = postgres.Server()
    yield running
    running.remove()


class WorkerProcess:
    """`hps explore` as a user runs it.

    Attributes:
        lines: that it has written so far.
    """

    def __init__(self, folder, server, trials=TRIALS):
        (folder / "many.yaml").write_text(yaml.safe_dump(CONFIG))
        arguments = [
            "explore",
            "--config",
            "many.yaml",
            "--storage",
            server.url,
            "--heartbeat",
            "1",
            "--trials",
            str(trials),
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hps_lightning", *arguments],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines = []
        self._watched = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            for pattern, seen in self._watched:
                if re.search(pattern, line):
                    seen.set()

    def watch(self, pattern):
        """An event that comes with a line."""
        seen = threading.Event()
        self._watched.append((pattern, seen))
        return seen

    def end(self):
        """The exit status, once it has ended."""
        status = self.process.wait(timeout=240)
        self._thread.join(timeout=10)
        self.process.stdout.close()
        return status

    @property
    def text(self):
        return "\n".join(self.lines)

    def begun(self):
        """The numbers of the trials that it has begun."""
        return [
            int(found)
            for found in re.findall(r"^trial (\d+)(?: \(trial \d+ again\))?: (?:width|activation) ", self.text, re.M)
        ]


def trials_of(server):
    study = find_study("many", server.url, 1)
    try:
        return study.get_trials(deepcopy=False)
    finally:
        close_study(study)


def test_three_workers_share_a_study_and_one_is_killed(tmp_path, server):
    workers = [WorkerProcess(tmp_path, server) for _ in range(3)]
    victim = workers[0]
    # One epoch is kept by then.
    assert victim.watch("epoch 2 of 4").wait(240), victim.text
    victim.process.send_signal(signal.SIGKILL)
    assert victim.end() == -signal.SIGKILL
    killed = victim.begun()[-1]
    for worker in workers[1:]:
        assert worker.end() == 0, worker.text
    begun = Counter(number for worker in workers for number in worker.begun())
    trials = trials_of(server)
    assert set(begun.values()) == {1}, "two workers ran one trial"
    assert set(begun) == {trial.number for trial in trials if "options" in trial.user_attrs}
    assert [trial.state for trial in counted(trials)] == [TrialState.COMPLETE] * TRIALS
    assert trials[killed].state == TrialState.FAIL
    (again,) = [trial for trial in trials if trial.system_attrs.get("retry_history") == [killed]]
    assert again.params == trials[killed].params
    assert len(again.user_attrs["curve"]) == 4
    log = (tmp_path / "runs" / "explore" / "many" / f"trial_{again.number:04d}" / "fit.log").read_text()
    assert "Continuing" in log
    assert "epoch 1/4" not in log
    for trial in counted(trials):
        run = tmp_path / "runs" / "explore" / "many" / f"trial_{trial.number:04d}" / "version_0"
        for name in ("config.yaml", "benchmark.json", "checkpoints/last.ckpt"):
            assert (run / name).is_file(), (trial.number, name)
        assert list(run.glob("events.out.tfevents.*"))
    assert "pass" not in "".join(worker.text for worker in workers)


def test_a_server_that_goes_and_comes_back_costs_no_training(tmp_path, server):
    worker = WorkerProcess(tmp_path, server, 2)
    assert worker.watch("epoch 2 of 4").wait(240), worker.text
    number = worker.begun()[-1]
    server.stop()
    assert worker.end() == 2
    folder = tmp_path / "runs" / "explore" / "many" / f"trial_{number:04d}"
    assert (folder / "version_0" / "benchmark.json").is_file(), worker.text
    errors = [line for line in worker.lines if line.startswith("hps: error: ")]
    assert len(errors) == 1
    assert "does not answer" in errors[0]
    assert "hps:***@127.0.0.1" in errors[0]
    assert "Traceback" not in worker.text
    assert "pass" not in worker.text
    down = WorkerProcess(tmp_path, server, 2)
    assert down.end() == 2
    assert len(down.lines) == 1
    assert down.lines[0].startswith("hps: error: The storage postgresql://hps:***@127.0.0.1")
    server.start()
    again = WorkerProcess(tmp_path, server, 2)
    assert again.end() == 0, again.text
    assert "was trained already" in again.text
    trials = trials_of(server)
    assert [trial.state for trial in counted(trials)] == [TrialState.COMPLETE] * 2
    assert trials[number].state == TrialState.FAIL
