import pytest

from hps_lightning.report.measured import published, trainings
from hps_lightning.report.points import times
from tests.report.test_measured import HARDWARE, facts, write


def test_a_taught_networks_time_is_told_as_such(tmp_path):
    taught = {"teacher": {"name": "hps_14_1x"}, "weight": 0.9, "temperature": 2.0}
    write(tmp_path / "hps_06_05x-cifar10.json", facts(distillation=taught))
    write(tmp_path / "hps_08_05x-cifar10.json", facts())
    groups, text = times([], published(tmp_path), [], None)
    assert [point.name for point in groups[-1].points] == ["hps_06_05x, distilled", "hps_08_05x"]
    assert r"| training, with hps\_14\_1x as its teacher |" in text
    assert "| training |" in text


@pytest.mark.parametrize("protocol", ["holdout", "paper"])
def test_what_validates_has_both_in_its_time_whatever_the_images(tmp_path, protocol):
    time = {"epochs": 3, "epoch_seconds": 1.5, "val_seconds": 0.2}
    write(tmp_path / "run" / "benchmark.json", facts(protocol=protocol, time=time))
    assert "| training and validation |" in times([], [], trainings(tmp_path), None)[1]


def test_speeds_on_the_digits_are_told_too(tmp_path):
    speed = {
        "arguments": {"model": "hps_06_05x", "dataset": "digits"},
        "engine": {"seconds_per_epoch": 0.5},
        "reference": {"seconds_per_epoch": 1.5},
        "hardware": HARDWARE,
    }
    write(tmp_path / "train_speed-digits.json", speed)
    groups, text = times([], [], [], tmp_path)
    assert [point.x for point in groups[-1].points] == [67_670]
    assert "the usual loop here: 1.5 s" in text
