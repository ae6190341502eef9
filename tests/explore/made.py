"""Explorations and trials that cost nothing: made values, and a training that is none."""

import json
from pathlib import Path

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from hps_lightning.explore.config import Exploration
from hps_lightning.explore.pruning import Pruning
from hps_lightning.explore.space import Space
from hps_lightning.explore.study import open_study
from hps_lightning.explore.worker import Worker

SPACE = {"model.width": {"low": 0.1, "high": 1.0}}
EPOCHS = 3


def exploration(**changes):
    settings = {
        "study": "made",
        "base": ["--model=hps"],
        "space": Space.parse(SPACE),
        "objectives": ["error", "size_bytes"],
        "trials": 3,
        "pruning": Pruning("none"),
    }
    return Exploration(**{**settings, **changes})


def worker(tmp_path, explored=None, said=None, url=None, heartbeat_s=1):
    explored = explored or exploration()
    # The fastest storage.
    url = url or f"journal:///{tmp_path}/{explored.study}.journal"
    study = open_study(explored, url, heartbeat_s)
    say = print if said is None else said.append
    return Worker(study, explored, url, tmp_path / "explore" / explored.study, heartbeat_s, say)


class MadeTraining:
    """Stands for `trial.run_training`: answers as a training would, and leaves its files.

    Attributes:
        calls: arguments of `hps fit`, and what was to be measured, of each.
        own: arguments by which each had been begun that goes on.
        interrupt: an exception for the given number of epochs to raise, once.
        error: the error of a network of some width after an epoch.
    """

    def __init__(self, error=lambda width, epoch: (1 - width) / (epoch + 1)):
        self.calls = []
        self.own = []
        self.interrupt = None
        self.error = error

    def __call__(self, argv, answer, log=None, measured=(), own=()):
        self.calls.append((argv, measured))
        self.own.append(list(own))
        if log is None:
            return "declined"
        run = log.parent / "version_0"
        first, width = 0, None
        for token in argv:
            if token.startswith("--model.width="):
                width = float(token.partition("=")[2])
            if token.startswith("--ckpt_path="):
                first, width = json.loads(Path(token.partition("=")[2]).read_text())
        costs = {"parameters": 1e5 * width, "size_bytes": 4e5 * width, "latency_ms": width}
        if not answer("network", {"epochs": EPOCHS, "costs": None if measured is None else costs}):
            return "declined"
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        for epoch in range(first, EPOCHS):
            if self.interrupt and self.interrupt[0] == epoch:
                error, self.interrupt = self.interrupt[1], None
                raise error
            (run / "checkpoints" / "last.ckpt").write_text(json.dumps([epoch + 1, width]))
            if not answer("epoch", {"epoch": epoch, "error": self.error(width, epoch)}):
                break
        report = {
            "epochs": [{}] * (epoch + 1),
            "metrics": {"final": {"val/accuracy": 1 - self.error(width, epoch)}},
        }
        (run / "benchmark.json").write_text(json.dumps(report))
        return "done"


def trial(number=0, values=None, state=TrialState.COMPLETE, curve=None, options=None, over=None, **attributes):
    """A trial of Optuna's with our attributes; its values are quantities by name."""
    values = values or {}
    attributes["costs"] = {name: value for name, value in values.items() if name != "error"}
    attributes["options"] = options or {"model.width": 0.5}
    if curve is None and "error" in values:
        curve = [values["error"]]
    attributes["curve"] = {str(epoch): error for epoch, error in enumerate(curve or [])}
    system = {f"constraints:{name}": part for name, part in (over or {}).items()}
    made = optuna.create_trial(
        state=state,
        values=[values[name] for name in ("error", "size_bytes")] if state == TrialState.COMPLETE else None,
        params={"model.width": 0.5},
        distributions={"model.width": FloatDistribution(0.1, 1.0)},
        user_attrs=attributes,
        system_attrs=system,
    )
    made.number = number
    return made
