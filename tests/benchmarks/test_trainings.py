import json
import time

import pytest
from trainings import FIGURES, Training, run_all


class Fake:
    """Stands for a training; the first is the only one that is quick."""

    begun: list[int]

    def __init__(self, begun, number):
        self.begun, self.number = begun, number

    def run(self, threads):
        self.begun.append(self.number)
        time.sleep(0.05 if self.number == 0 else 0.3)
        return {"seed": self.number}


@pytest.mark.parametrize("error", [FileNotFoundError, KeyboardInterrupt, RuntimeError])
def test_whatever_ends_a_study_begins_no_other_training(error):
    begun = []

    def finished(key, figures):
        raise error

    with pytest.raises(error):
        run_all({number: Fake(begun, number) for number in range(8)}, 2, finished)
    # Two at a time, and a third in the place of the first.
    assert len(begun) <= 3


class Failing(Fake):
    def run(self, threads):
        if self.number == 0:
            raise RuntimeError("failed")
        return super().run(threads)


def test_what_others_reach_is_not_lost_with_a_training_that_fails():
    begun, told = [], {}
    with pytest.raises(RuntimeError, match="failed"):
        run_all({number: Failing(begun, number) for number in range(8)}, 2, told.__setitem__)
    assert told == {number: {"seed": number} for number in begun}
    assert 1 <= len(begun) <= 3


def test_each_training_is_told_once():
    told = {}
    run_all({number: Fake([], number) for number in range(3)}, 3, told.__setitem__)
    assert told == {number: {"seed": number} for number in range(3)}


@pytest.mark.parametrize(("final", "status", "message"), [
    ({name: 0.5 for name in FIGURES if name != "val/loss"}, 0, "has measured no val/loss.*holdout"),
    (dict.fromkeys(FIGURES, 0.5), 3, "failed; see .*fit.log"),
    (dict.fromkeys(FIGURES, 0.5), 0, None),
])  # fmt: skip
def test_a_training_without_figures_is_an_error(tmp_path, monkeypatch, final, status, message):
    facts = {"time": {"train_seconds": 1.5}, "memory": {"process_peak_bytes": 7}, "metrics": {"final": final}}
    (tmp_path / "benchmark.json").write_text(json.dumps(facts))
    program = tmp_path / "bin" / "hps"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nexit {status}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    training = Training("any.yaml", "--trainer.max_epochs 1", 4, tmp_path)
    if message is None:
        assert training.run(1) == {"seed": 4, "seconds_per_epoch": 1.5, "peak_bytes": 7, **final}
    else:
        with pytest.raises(RuntimeError, match=message):
            training.run(1)
