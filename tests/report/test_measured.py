import json

import pytest

from hps_lightning.errors import UserError
from hps_lightning.installed import published_folder
from hps_lightning.report.measured import published, times_to_accuracy, train_speeds, trainings
from hps_lightning.report.parts import times_to_accuracy_lines

HARDWARE = {"cpu": "Some CPU", "threads": 1, "gpu": None}


def facts(**changes):
    made = {
        "dataset": "cifar10",
        "protocol": "full",
        "precision": "bf16-mixed",
        "network": {"parameters": 100, "module_bytes": 2_500_000},
        "time": {"epochs": 3, "epoch_seconds": 1.5},
        "metrics": {"final": {"train/accuracy": 0.5}},
        "hardware": HARDWARE,
        "seeds": [{"seed": 0, "correct": 8000}, {"seed": 1, "correct": 8200}],
        "test": {"images": 10_000},
        "command": "hps fit",
    }
    return {**made, **changes}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_a_published_network_has_the_accuracy_of_every_seed(tmp_path):
    write(tmp_path / "hps_06_05x-cifar10.json", facts())
    (run,) = published(tmp_path)
    assert (run.name, run.dataset, run.protocol, run.epochs) == ("hps_06_05x", "cifar10", "full", 3)
    assert run.accuracies == (80.0, 82.0)
    assert run.seeds == (0, 1)
    assert run.size_mb == 2.5
    assert run.hardware == "Some CPU, 1 thread, bf16-mixed"
    assert run.validation is None


def test_a_training_that_was_tested_has_that_accuracy_too(tmp_path):
    write(tmp_path / "best" / "benchmark.json", facts())
    (run,) = trainings(tmp_path)
    assert (run.name, run.accuracies, run.source) == ("best", (80.0, 82.0), "best/benchmark.json")


def test_what_is_published_here_is_read():
    runs = published(published_folder())
    assert "hps_06_05x" in [run.name for run in runs]
    for run in runs:
        recorded = json.loads((published_folder() / f"{run.name}-{run.dataset}.json").read_text())
        assert run.accuracies[0] == pytest.approx(100 * recorded["test"]["accuracy"], abs=1e-4)


def test_an_accuracy_on_test_images_is_none_on_the_hold_out(tmp_path):
    write(tmp_path / "a run" / "benchmark.json", facts(metrics={"final": {"val/accuracy": 0.7}}, protocol="paper"))
    (run,) = trainings(tmp_path)
    assert run.validation is None


def test_a_training_has_the_accuracy_of_its_last_validation(tmp_path):
    final = {"val/accuracy": 0.725}
    gpu = {**HARDWARE, "gpu": "Some GPU"}
    untested = facts(metrics={"final": final}, hardware=gpu, protocol="holdout")
    del untested["test"]
    write(tmp_path / "a run" / "benchmark.json", untested)
    (run,) = trainings(tmp_path)
    assert (run.name, run.validation, run.accuracies) == ("a run", 72.5, ())
    assert run.hardware == "Some GPU, bf16-mixed"


def test_speeds_and_times_to_the_papers_accuracy(tmp_path):
    speed = {
        "arguments": {"model": "hps_06_05x", "dataset": "cifar10"},
        "engine": {"seconds_per_epoch": 12.0},
        "reference": {"seconds_per_epoch": 45.0},
        "hardware": {**HARDWARE, "threads": 2},
        "precision": "32-true",
    }
    write(tmp_path / "train_speed-hps_06_05x.json", speed)
    (found,) = train_speeds(tmp_path)
    assert (found.name, found.epoch_seconds, found.reference_seconds) == ("hps_06_05x", 12.0, 45.0)
    assert found.hardware == "Some CPU, 2 threads, 32-true"
    long, short = ({"epochs": n, "seconds": 10.0 * n, "accuracy": 0.8 + n / 1000} for n in (40, 30))
    times = {
        "model": "hps_06_05x",
        "paper_accuracy": 0.8244,
        "trainings": [long, short],
        "reference": {"seconds": 6000.0},
        "shortest": {"epochs": 30, "seconds": 300.0},
        "hardware": HARDWARE,
    }
    write(tmp_path / "time_to_accuracy-a.json", times)
    write(tmp_path / "time_to_accuracy-b.json", {**times, "shortest": None})
    (found,) = times_to_accuracy(tmp_path)
    assert (found.epochs, found.accuracies, found.target) == (30, pytest.approx((83.0,)), pytest.approx(82.44))


def test_time_to_accuracy_of_several_seeds_is_their_mean(tmp_path):
    runs = [{"epochs": 30, "seed": seed, "seconds": 300.0 + 2 * seed, "accuracy": 0.83 + seed / 100} for seed in (0, 1)]
    times = {
        "model": "hps_06_05x",
        "paper_accuracy": 0.8244,
        "trainings": [{"epochs": 20, "seed": 0, "seconds": 200.0, "accuracy": 0.8}, *runs],
        "reference": {"seconds": 6000.0},
        "shortest": {"epochs": 30, "seconds": 301.0},
        "hardware": HARDWARE,
    }
    write(tmp_path / "time_to_accuracy-a.json", times)
    (found,) = times_to_accuracy(tmp_path)
    assert (found.epochs, found.seconds, found.accuracies) == (30, 301.0, pytest.approx((83.0, 84.0)))
    (line,) = times_to_accuracy_lines(tmp_path)
    assert "83.50 % (83.00 to 84.00) of the test images" in line
    assert "19.9 times less" in line


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_what_is_no_result_is_named(tmp_path, content):
    path = tmp_path / "run" / "benchmark.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(UserError, match=r"benchmark\.json is no result"):
        trainings(tmp_path)
