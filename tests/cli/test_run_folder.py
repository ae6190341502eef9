"""Tests of the folder that a training has for itself."""

from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from hps_lightning.cli.run_folder import own_run_folder
from hps_lightning.directory_lock import locked
from hps_lightning.errors import UserError
from tests.cli.conftest import TINY


def trainer(*loggers, **attributes):
    given = {"is_global_zero": True, "fast_dev_run": False, "default_root_dir": "runs", **attributes}
    return SimpleNamespace(loggers=list(loggers), **given)


def tensorboard(folder, **options):
    return TensorBoardLogger(folder, name="net", **options)


def test_trainings_that_begin_at_once_get_a_folder_each(tmp_path):
    first, second, third = tensorboard(tmp_path), tensorboard(tmp_path), tensorboard(tmp_path)
    # All have looked before one of them has made its folder.
    folders = [logger._get_next_version() for logger in (first, second, third)]
    assert folders == [0, 0, 0]
    with own_run_folder(trainer(first)), own_run_folder(trainer(second)):
        third._get_next_version = iter([0, 1, 2]).__next__
        with own_run_folder(trainer(third)):
            assert [logger.version for logger in (first, second, third)] == [0, 1, 2]
            assert sorted(path.name for path in (tmp_path / "net").iterdir()) == ["version_0", "version_1", "version_2"]


def test_loggers_of_one_training_share_its_number(tmp_path):
    (tmp_path / "net" / "version_0").mkdir(parents=True)
    board, table = tensorboard(tmp_path), CSVLogger(tmp_path, name="net")
    board._get_next_version = iter([0, 1]).__next__
    with own_run_folder(trainer(board, table)):
        assert (board.version, table.version) == (1, 1)


def test_a_folder_in_which_nothing_was_written_is_removed(tmp_path):
    (tmp_path / "mine").mkdir()
    with own_run_folder(trainer(tensorboard(tmp_path / "mine" / "runs"))):
        assert (tmp_path / "mine" / "runs" / "net" / "version_0").is_dir()
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"], "what was there before stays"


def test_what_was_written_stays(tmp_path):
    with own_run_folder(trainer(tensorboard(tmp_path))):
        (tmp_path / "net" / "version_0" / "a.txt").touch()
    assert (tmp_path / "net" / "version_0" / "a.txt").is_file()


def test_no_training_goes_on_where_another_still_runs(tmp_path):
    pytest.importorskip("fcntl")
    with (
        own_run_folder(trainer(tensorboard(tmp_path))),
        pytest.raises(UserError, match="version_0 is being trained by another process; wait for its end"),
        own_run_folder(trainer(tensorboard(tmp_path, version="version_0"))),
    ):
        pass


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path):
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "version_0").touch()
    with (
        pytest.raises(UserError, match=r"version_0 cannot be made or written: File exists\. Make room, or choose"),
        own_run_folder(trainer(tensorboard(tmp_path))),
    ):
        pass


@pytest.mark.parametrize("attributes", [{"is_global_zero": False}, {"fast_dev_run": True}])
def test_what_writes_nothing_makes_no_folder(tmp_path, attributes):
    with own_run_folder(trainer(tensorboard(tmp_path), **attributes)):
        assert not list(tmp_path.iterdir())


def test_a_training_without_loggers_leaves_the_folder_as_it_was(tmp_path):
    with own_run_folder(trainer(default_root_dir=str(tmp_path / "runs"))):
        assert not list(tmp_path.iterdir())


@pytest.mark.train
def test_hps_fit_keeps_the_folder_of_the_run_that_it_goes_on_with(hps, tmp_path):
    pytest.importorskip("fcntl")
    status, _, err = hps("fit", "--model=hps_06_05x", *TINY, "--trainer.max_epochs=1")
    assert status == 0, err
    run = tmp_path / "runs" / "hps-digits" / "version_0"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    resume = ("fit", "--ckpt_path=last", "--trainer.max_epochs=2")
    with locked(run):
        status, _, err = hps(*resume)
        assert status == 2
        assert err == "hps: error: runs/hps-digits/version_0 is being trained by another process; wait for its end.\n"
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
        status, _, err = hps("test", "--ckpt_path=last")
        assert status == 0, err
    status, _, err = hps(*resume)
    assert status == 0, err
