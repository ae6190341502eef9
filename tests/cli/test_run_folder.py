"""Tests of the folder that a training has for itself."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger

from hps_lightning.cli.run_folder import own_run_folder
from hps_lightning.directory_lock import LOCK_FILE, locked
from hps_lightning.errors import UserError
from tests.cli.conftest import TINY


def trainer(*loggers, **attributes):
    given = {"is_global_zero": True, "fast_dev_run": False, "default_root_dir": "runs", **attributes}
    return SimpleNamespace(loggers=list(loggers), **given)


def tensorboard(folder, **options):
    return TensorBoardLogger(folder, name="net", **options)


def early(logger):
    """It has looked for a free number before any training had made a folder."""
    logger._get_next_version = lambda: 0
    return logger


def test_trainings_that_begin_at_once_get_a_folder_each(tmp_path):
    loggers = [early(tensorboard(tmp_path)) for _ in range(8)]
    all_have = threading.Barrier(8, timeout=60)

    def train(logger):
        with own_run_folder(trainer(logger)):
            all_have.wait()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(train, loggers))
    assert sorted(logger.version for logger in loggers) == list(range(8))
    assert not list(tmp_path.rglob("version_*"))


def test_loggers_of_one_training_share_its_number(tmp_path):
    board, table = tensorboard(tmp_path), CSVLogger(tmp_path, name="net")
    with own_run_folder(trainer(board, table)):
        assert (board.version, table.version) == (0, 0)


def test_no_logger_takes_the_folder_of_another_training(tmp_path):
    tables = [early(CSVLogger(tmp_path, name="csv")) for _ in range(2)]
    boards = [early(tensorboard(tmp_path / name)) for name in ("first", "second")]
    with own_run_folder(trainer(boards[0], tables[0])), own_run_folder(trainer(boards[1], tables[1])):
        assert [logger.version for logger in tables] == [0, 1]
        assert not (tmp_path / "second" / "net" / "version_0").exists(), "the same number for both of its loggers"


def test_a_folder_in_which_nothing_was_written_is_removed(tmp_path):
    (tmp_path / "mine").mkdir()
    with own_run_folder(trainer(tensorboard(tmp_path / "mine" / "runs"))):
        assert (tmp_path / "mine" / "runs" / "net" / "version_0").is_dir()
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"], "what was there before stays"


def test_what_was_written_stays(tmp_path):
    with own_run_folder(trainer(tensorboard(tmp_path))):
        (tmp_path / "net" / "version_0" / "a.txt").touch()
    assert (tmp_path / "net" / "version_0" / "a.txt").is_file()


def test_no_training_goes_on_where_another_still_runs(tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    monkeypatch.setattr("hps_lightning.directory_lock.PATIENCE", 0)
    with (
        own_run_folder(trainer(tensorboard(tmp_path))),
        pytest.raises(UserError, match="version_0 is being trained by another process; wait for its end"),
        own_run_folder(trainer(tensorboard(tmp_path, version="version_0"))),
    ):
        pass


def test_a_file_in_the_place_of_a_folder_is_left_alone(tmp_path):
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "version_0").touch()
    logger = tensorboard(tmp_path)
    with own_run_folder(trainer(logger)):
        assert logger.version == 1
    with (
        pytest.raises(UserError, match=r"version_0 cannot be made or written: Not a directory\. Make room, or choose"),
        own_run_folder(trainer(tensorboard(tmp_path, version=0))),
    ):
        pass


def test_logs_in_a_folder_below_leave_the_runs_folder_the_training(tmp_path):
    first, second = (early(tensorboard(tmp_path, sub_dir=name)) for name in ("a", "b"))
    with own_run_folder(trainer(first)), own_run_folder(trainer(second)):
        assert (first.version, second.version) == (0, 1)


def test_variables_in_the_folders_name_are_replaced_as_tensorboards_logger_does(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    first, second = tensorboard("$SCRATCH/runs"), tensorboard("$SCRATCH/runs")
    with own_run_folder(trainer(first)), own_run_folder(trainer(second)):
        assert sorted(path.name for path in (tmp_path / "runs" / "net").iterdir()) == ["version_0", "version_1"]
        assert second.log_dir == str(tmp_path / "runs" / "net" / "version_1")


@pytest.mark.parametrize("attributes", [{"is_global_zero": False}, {"fast_dev_run": True}])
def test_what_writes_nothing_makes_no_folder(tmp_path, attributes):
    with own_run_folder(trainer(tensorboard(tmp_path), **attributes)):
        assert not list(tmp_path.iterdir())


def test_a_training_without_loggers_leaves_the_folder_as_it_was(tmp_path):
    with own_run_folder(trainer(default_root_dir=str(tmp_path / "runs"))):
        assert not list(tmp_path.iterdir())


@pytest.mark.train
def test_hps_fit_keeps_the_folder_of_the_run_that_it_goes_on_with(hps, tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    monkeypatch.setattr("hps_lightning.directory_lock.PATIENCE", 0)
    status, _, err = hps("fit", "--model=hps_06_05x", *TINY, "--trainer.max_epochs=1")
    assert status == 0, err
    run = tmp_path / "runs" / "hps-digits" / "version_0"

    def files():
        return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != LOCK_FILE}

    before = files()
    resume = ("fit", "--ckpt_path=last", "--trainer.max_epochs=2")
    with locked(run):
        status, _, err = hps(*resume)
        assert status == 2
        assert err == "hps: error: runs/hps-digits/version_0 is being trained by another process; wait for its end.\n"
        assert files() == before
        status, _, err = hps("test", "--ckpt_path=last")
        assert status == 0, err
    status, _, err = hps(*resume)
    assert status == 0, err


class Remote(DummyLogger):
    """As those of experiment trackers: it has a folder of its own for all trainings."""

    save_dir = "."


@pytest.mark.parametrize("loggers", [[], [Remote()]], ids=["no logger", "another logger"])
def test_without_a_logger_that_numbers_its_folders_each_training_has_its_own_too(tmp_path, loggers):
    first, second = trainer(*loggers), trainer(*loggers)
    with own_run_folder(first, tensorboard(tmp_path)), own_run_folder(second, early(tensorboard(tmp_path))):
        folders = [Path(one._default_root_dir) for one in (first, second)]
        assert folders == [tmp_path / "net" / "version_0", tmp_path / "net" / "version_1"]
        (folders[0] / "config.yaml").touch()
    assert [path.name for path in (tmp_path / "net").iterdir()] == ["version_0"]


@pytest.mark.train
@pytest.mark.parametrize("logger", ["false", "tests.cli.test_run_folder.Remote"])
def test_a_training_without_tensorboard_replaces_nothing_and_goes_on(hps, tmp_path, logger):
    mine = tmp_path / "config.yaml"
    mine.write_text("trainer: {max_epochs: 1}\n")
    call = ("fit", "--model=hps_06_05x", "--config=config.yaml", *TINY, "--trainer.logger", logger)
    for version in (0, 1):
        status, out, err = hps(*call)
        assert status == 0, err
        assert f"runs/hps-digits/version_{version}/checkpoints/weights.ckpt" in out
    assert mine.read_text() == "trainer: {max_epochs: 1}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "runs"]
    names = {"benchmark.json", "bluebox", "checkpoints", "config.yaml"}
    for version in (0, 1):
        assert {path.name for path in (tmp_path / f"runs/hps-digits/version_{version}").iterdir()} == names
    status, out, err = hps("fit", "--ckpt_path=last", "--trainer.max_epochs=2", "--trainer.logger", logger)
    assert status == 0, err
    assert "Training finished: 2 of 2 epochs" in out
    assert len(list((tmp_path / "runs" / "hps-digits").iterdir())) == 2
