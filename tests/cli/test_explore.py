"""`hps explore` as its user knows it, on two batches of digits."""

import csv
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
import yaml

from hps_lightning.explore.study import RECORD_KEY, close_study, find_study

TINY = {
    "base": {
        "config": "quickstart.yaml",
        "options": {"trainer.max_epochs": 2, "trainer.limit_train_batches": 2, "trainer.accelerator": "cpu"},
    },
    "space": {
        "model.width": [0.1, 0.2, 0.3],
        "optimizer": {"SGD": {"optimizer.lr": [0.1, 0.2]}, "AdamW": {"optimizer.lr": [0.01]}},
    },
    "objectives": ["error", "parameters"],
    "trials": 2,
}


@pytest.fixture
def config(tmp_path):
    def write(**changes):
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, **changes}))
        return "tiny.yaml"

    return write


@pytest.mark.train
def test_a_study_from_its_first_trial_to_the_config_of_the_best(hps, config, tmp_path):
    name = config()
    status, out, err = hps("explore", "--config", name)
    assert status == 0, err
    assert "Study tiny: 2 done." in out
    folder = tmp_path / "runs" / "explore" / "tiny"
    for trial in ("trial_0000", "trial_0001"):
        for file in ("config.yaml", "benchmark.json", "checkpoints/best.ckpt"):
            assert (folder / trial / "version_0" / file).is_file(), (trial, file)
        assert list((folder / trial / "version_0").glob("events.out.tfevents.*"))
    assert (tmp_path / "runs" / "explore" / "tiny.db").is_file()
    for file in ("front.png", "front.svg", "front.csv", "front.md", "trials.csv"):
        assert (folder / file).stat().st_size > 0
    rows = list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))
    for row in rows:
        report = json.loads((tmp_path / row["folder"] / "version_0" / "benchmark.json").read_text())
        assert float(row["error"]) == pytest.approx(1 - report["metrics"]["final"]["val/accuracy"])
        assert int(row["parameters"]) == report["network"]["parameters"]
        assert report["model"]["arguments"]["width"] == float(row["model.width"])

    status, out, _ = hps("explore", "--config", name, "--show")
    assert status == 0
    assert "Trials that no other beats" in out
    status, out, err = hps("explore", "--config", name, "--best", "--output", "best.yaml")
    assert status == 0, err
    best = min(rows, key=lambda row: (float(row["error"]), int(row["parameters"])))
    written = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert written["model"]["init_args"]["width"] == float(best["model.width"])
    assert written["optimizer"]["class_path"] == f"torch.optim.{best['optimizer']}"
    assert written["optimizer"]["init_args"]["lr"] == float(best["optimizer.lr"])
    # As many threads as the trial's process had, which another test may have begun: sums differ between one and two.
    report = json.loads((tmp_path / best["folder"] / "version_0" / "benchmark.json").read_text())
    threads = torch.get_num_threads()
    torch.set_num_threads(report["hardware"]["threads"])
    try:
        status, out, err = hps("fit", "--config", "best.yaml")
    finally:
        torch.set_num_threads(threads)
    assert status == 0, err
    ckpt = tmp_path / "runs" / "hps-digits" / "version_0" / "checkpoints" / "last.ckpt"
    metrics = torch.load(ckpt, weights_only=True)["hps_lightning"]["metrics"]
    assert 1 - metrics["val/accuracy"] == pytest.approx(float(best["error"])), "the same training once more"

    status, _, err = hps("explore", "--config", name, "--best", "--limit", "parameters=10", "--output", "none.yaml")
    assert status == 2
    assert "None of 2 trials meets the limits: parameters at most 10." in err
    assert not (tmp_path / "none.yaml").exists()
    smallest = min(rows, key=lambda row: int(row["parameters"]))
    limit = f"parameters={smallest['parameters']}"
    status, out, err = hps("explore", "--config", name, "--best", "--limit", limit, "--output", "small.yaml")
    assert status == 0, err
    written = yaml.safe_load((tmp_path / "small.yaml").read_text())
    assert written["model"]["init_args"]["width"] == float(smallest["model.width"])


@pytest.mark.train
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_study_that_the_same_command_goes_on_with(hps, config, tmp_path, number):
    # As many epochs as a signal may take, on a busy machine, to arrive before the last.
    options = {**TINY["base"]["options"], "trainer.max_epochs": 6, "dashboard.samples": 0, "dashboard.graph": False}
    name = config(base={**TINY["base"], "options": options})
    process = subprocess.Popen(
        [sys.executable, "-m", "hps_lightning", "explore", "--config", name, "--trials", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A shell's background jobs ignore it, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        said = []
        for line in process.stdout:
            said.append(line)
            if "epoch 2 of 6" in line:
                # To all of a terminal, or of a cluster's job.
                os.killpg(process.pid, number)
    assert process.returncode == 128 + number, said
    assert said[-1] == "Stopped. The same command goes on from here; `--show` shows what there is.\n"
    status, out, err = hps("explore", "--config", name, "--trials", "1")
    assert status == 0, err
    assert "trial 1 (trial 0 again): " in out
    assert "epoch 1 of 6" not in out, "it went on from its checkpoint"
    assert "trial 1: done" in out


@pytest.mark.train
def test_limits_that_no_trial_meets_are_an_error_that_names_the_nearest(hps, config, tmp_path):
    status, out, err = hps("explore", "--config", config(limits={"parameters": 100}))
    assert status == 2
    assert "None of 2 trials meets the limits: parameters at most 100. The least that was seen: parameters " in err
    assert out.count("over its limit: parameters") == 2
    assert not list(tmp_path.rglob("*.ckpt")), "none was trained"
    assert (tmp_path / "runs" / "explore" / "tiny" / "trials.csv").is_file()


@pytest.mark.train
@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--data.protocol", "paper"], "would choose by the test images"),
        (["--model.widht", "1"], "widht"),
    ],
)
def test_options_that_no_trial_could_use_are_refused_before_the_first(hps, config, tmp_path, options, part):
    name = config()
    status, _, err = hps("explore", "--config", name, "--", *options)
    assert status == 2
    assert part in err
    study = find_study("tiny", "sqlite:///runs/explore/tiny.db", 30)
    assert study.trials == []
    close_study(study)


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "explore.yaml"]),
        (["--config", "hps.yaml"], ["hps.yaml", "describes no exploration"]),
        (["--config", "tiny.yaml", "--show"], ["There is no study tiny yet"]),
        (["--config", "tiny.yaml", "--best"], ["--output"]),
        (["--config", "tiny.yaml", "--output", "x.yaml"], ["--best"]),
        (["--config", "tiny.yaml", "--trials", "0"], ["--trials", "0"]),
        (
            ["--config", "tiny.yaml", "--best", "--output", "x.yaml", "--trial", "1", "--limit", "parameters=9"],
            ["--limit", "--trial"],
        ),
        (["--config", "tiny.yaml", "--heartbeat", "0"], ["--heartbeat", "0"]),
        (["--config", "tiny.yaml", "--study", "../x"], ["'../x'"]),
        (["--config", "tiny.yaml", "--storage", "nonsense"], ["sqlite:///FILE"]),
        (
            ["--config", "tiny.yaml", "--storage", "postgresql://me:secret@127.0.0.1:9/x"],
            ["me:***@", "does not answer"],
        ),
    ],
)
def test_a_mistake_is_one_clear_error(hps, config, tmp_path, argv, parts):
    config()
    status, _, err = hps("explore", *argv)
    assert status == 2
    assert err.startswith("hps: error: ")
    assert "Traceback" not in err
    assert "secret" not in err
    for part in parts:
        assert part in err
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_a_space_with_nothing_in_it_is_refused(hps, config, tmp_path):
    status, _, err = hps("explore", "--config", config(space={}))
    assert status == 2
    assert "nothing in it" in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.train
def test_a_study_of_another_version_or_config_is_refused_and_left_as_it_was(hps, config, tmp_path):
    name = config(limits={"parameters": 100})
    hps("explore", "--config", name)
    config()
    status, _, err = hps("explore", "--config", name)
    assert status == 2
    assert "was made with other limits (parameters)" in err
    config(limits={"parameters": 100})
    url = "sqlite:///runs/explore/tiny.db"
    study = find_study("tiny", url, 30)
    study.set_user_attr(RECORD_KEY, {**study.user_attrs[RECORD_KEY], "format": 99, "version": "9.0"})
    for more in ([], ["--show"], ["--best", "--output", "best.yaml"]):
        status, _, err = hps("explore", "--config", name, *more)
        assert status == 2
        assert "format 99" in err
        assert "version '9.0'" in err
    study.set_user_attr(RECORD_KEY, {**study.user_attrs[RECORD_KEY], "format": 1})
    assert len(study.trials) == 2
    close_study(study)


def test_every_option_has_a_help_text(hps):
    status, out, _ = hps("explore", "--help")
    assert status == 0
    for option in ("--config", "--study", "--storage", "--trials", "--runs", "--heartbeat", "--show", "--best"):
        assert option in out
    for option in ("--limit", "--trial NUMBER", "--output"):
        assert option in out
