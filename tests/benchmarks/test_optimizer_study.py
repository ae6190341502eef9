import json

import optimizer_study

PLAN = {
    "config": "hps.yaml",
    "network": "hps_06_05x",
    "epochs": 1,
    "base": "",
    "optimizers": {"SGD": {"options": "--optimizer SGD", "rates": [0.1, 1.0]}},
    "tuning_schedule": "constant",
    "schedules": {"constant": ""},
    "unscheduled": [],
    "changes": {},
    "seeds": [0],
}


def test_a_training_that_diverged_is_a_result(tmp_path):
    study = optimizer_study.Study(PLAN, tmp_path / "study.json", jobs=1)
    figures = {"seconds_per_epoch": 1.0, "peak_bytes": 1, "train/accuracy": 0.5, "val/accuracy": 0.6, "val/loss": 1.0}
    for setting in study.tuning():
        # As a benchmark.json has what is not finite.
        loss = 0.7 if setting.rate < 1 else None
        study._finished(setting, {"seed": 0, **figures, "train/loss": loss})
    assert {setting.rate: study.accuracy(setting) for setting in study.figures} == {0.1: 0.6, 1.0: 0.0}
    kept = json.loads((tmp_path / "study.json").read_text())
    assert len(kept["runs"]) == 2
    assert optimizer_study.Study(PLAN, tmp_path / "study.json").figures == study.figures
