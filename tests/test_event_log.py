"""TensorBoard's event files on a full disk."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from hps_lightning.event_log import EventFile, SteadyTensorBoardLogger
from tests.disks import largest_file


def scalars(folder):
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_what_is_logged_is_read_back(tmp_path):
    logger = SteadyTensorBoardLogger(tmp_path, name="run", version=0)
    logger.log_hyperparams({"width": 0.5}, metrics={"score": 1})
    for step in range(3):
        logger.log_metrics({"loss": step / 4, "accuracy": 0.5}, step)
    logger.save()
    assert scalars(logger.log_dir)["loss"] == [(0, 0.0), (1, 0.25), (2, 0.5)]
    logger.finalize("success")
    assert "width: 0.5" in (tmp_path / "run" / "version_0" / "hparams.yaml").read_text()
    logger.experiment.add_scalar("later", 1.0, 3)
    logger.finalize("success")
    assert scalars(logger.log_dir)["later"] == [(3, 1.0)]


def test_a_full_disk_spoils_no_event_file_and_nothing_is_missing_afterwards(tmp_path, capsys):
    logger = SteadyTensorBoardLogger(tmp_path, name="run", version=0)
    logger.log_metrics({"loss": 0.0}, 0)
    logger.save()
    size = next(tmp_path.rglob("events*")).stat().st_size
    # Room for half an event more.
    with largest_file(size + 20):
        for step in (1, 2):
            logger.log_metrics({"loss": step / 4}, step)
            logger.save()
        assert scalars(logger.log_dir) == {"loss": [(0, 0.0)]}
        assert next(tmp_path.rglob("events*")).stat().st_size == size
    said = capsys.readouterr().err
    assert said.count("cannot be written: File too large") == 1
    logger.log_metrics({"loss": 0.75}, 3)
    logger.finalize("success")
    assert scalars(logger.log_dir) == {"loss": [(step, step / 4) for step in range(4)]}


def test_a_folder_that_cannot_be_made_ends_nothing(tmp_path, capsys):
    (tmp_path / "file").touch()
    logger = SteadyTensorBoardLogger(tmp_path / "file", name="run", version=0)
    logger.log_metrics({"loss": 0.0}, 0)
    logger.finalize("success")
    assert "Not a directory" in capsys.readouterr().err


def test_memory_is_not_filled_instead_of_the_disk(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hps_lightning.event_log._KEPT_BYTES", 1000)
    (tmp_path / "run").touch()
    events = EventFile(tmp_path / "run" / "deeper")
    logger = SteadyTensorBoardLogger(tmp_path, name="other", version=0)
    logger.experiment.file_writer.event_writer = events
    for step in range(100):
        logger.log_metrics({"loss": 1.0}, step)
    (tmp_path / "run").unlink()
    events.flush()
    kept = [event.step for event in EventFileLoader(str(events.path)).Load()]
    assert 10 < len(kept) < 40
    assert kept == list(range(100 - len(kept), 100))


def test_files_of_one_second_are_apart_and_sort_in_their_order(tmp_path):
    # Each is gone before the next is made, which may lie where it lay.
    names = [EventFile(tmp_path).path.name for _ in range(12)]
    assert sorted(set(names)) == names


@pytest.mark.parametrize("suffix", ["", ".mine"])
def test_a_file_starts_as_tensorboards_own_do(tmp_path, suffix):
    events = EventFile(tmp_path, suffix)
    events.flush()
    assert events.path.name.startswith("events.out.tfevents.")
    assert events.path.name.endswith(suffix)
    assert [event.file_version for event in EventFileLoader(str(events.path)).Load()] == ["brain.Event:2"]
