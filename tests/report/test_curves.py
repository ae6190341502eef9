import os

import pytest

from hps_lightning.errors import UserError
from hps_lightning.report.curves import Run, read_run, write_csv
from tests.report import made

ALL = ("train/accuracy", "train/loss", "val/accuracy", "val/loss")


def test_a_run_is_read_by_epoch_with_what_its_config_says(tmp_path):
    folder = made.run(tmp_path, seed=7, protocol="paper", series=ALL)
    run = read_run(folder)
    assert (run.name, run.dataset, run.protocol, run.seed) == ("hps_06_05x", "digits", "paper", "7")
    assert set(run.series) == set(ALL)
    assert run.series["val/loss"] == pytest.approx({1: 0.01, 2: 0.02, 3: 0.03})
    assert run.epochs == [1, 2, 3]


def test_a_resumed_training_has_each_epoch_once(tmp_path):
    folder = made.run(tmp_path, epochs=(1, 2, 3, 4, 5))
    # Killed in epoch 6, resumed from the checkpoint after epoch 3, and ended after epoch 4.
    made.log(folder, (4,), value=lambda series, epoch: 0.9)
    values = read_run(folder).series["val/accuracy"]
    assert values == pytest.approx({1: 0.01, 2: 0.02, 3: 0.03, 4: 0.9})


def test_a_resumed_training_that_logged_nothing_changes_nothing(tmp_path):
    folder = made.run(tmp_path)
    made.log(folder, ())
    assert read_run(folder).epochs == [1, 2, 3]


def test_a_training_under_way_is_read(tmp_path):
    folder = made.run(tmp_path)
    log = next(folder.glob("events.out.tfevents.*"))
    content = log.read_bytes()
    log.write_bytes(content[:-5])
    # The cut record held nothing that is read here.
    assert read_run(folder).epochs == [1, 2, 3]


def test_a_test_of_the_run_is_no_part_of_its_curves(tmp_path):
    folder = made.run(tmp_path)
    made.log(folder / "test", (9,), series=("test/accuracy",))
    assert read_run(tmp_path).epochs == [1, 2, 3]


def test_a_later_test_of_a_checkpoint_from_elsewhere_is_no_run(tmp_path, capsys):
    made.run(tmp_path)
    made.log(tmp_path / "hps_06_1x-cifar10" / "version_0", (9,), series=("test/accuracy",))
    assert read_run(tmp_path).epochs == [1, 2, 3]
    assert capsys.readouterr().err == ""


def test_of_a_folder_above_the_newest_run_is_taken(tmp_path, capsys):
    old = made.run(tmp_path, epochs=(1,))
    new = made.run(tmp_path, epochs=(1, 2), version=1)
    for age, folder in ((100, old), (50, new)):
        for log in folder.glob("events*"):
            os.utime(log, (log.stat().st_atime, log.stat().st_mtime - age))
    assert read_run(tmp_path).epochs == [1, 2]
    assert str(new) in capsys.readouterr().err
    assert read_run(old).epochs == [1]
    assert capsys.readouterr().err == ""


def test_runs_of_several_seeds_are_found(tmp_path):
    folder = tmp_path / "hps_06_05x-digits" / "seeds_0" / "seed_3"
    made.configure(folder, seed=3)
    made.log(folder, (1, 2))
    run = read_run(tmp_path)
    assert (run.name, run.seed, run.epochs) == ("hps_06_05x", "3", [1, 2])


def test_csv_gives_back_what_was_written(tmp_path):
    folder = made.run(tmp_path, series=("train/accuracy", "train/loss"), protocol="full")
    run = read_run(folder)
    write_csv(run, tmp_path / "curves.csv")
    again = read_run(tmp_path / "curves.csv")
    assert (again.name, again.dataset, again.protocol, again.seed) == ("hps_06_05x", "digits", "full", "0")
    assert set(again.series) == {"train/accuracy", "train/loss"}
    assert again.series["train/loss"] == pytest.approx(run.series["train/loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: folder.rmdir(), "There is no run"),
        (lambda folder: None, "holds no TensorBoard logs"),
        (lambda folder: made.log(folder, (1,)), "config.yaml does not say the data set"),
        (lambda folder: (made.configure(folder), made.log(folder, ())), "no epoch has ended there"),
        (lambda folder: (made.configure(folder), made.log(folder, (1,), series=("loss",))), "without any of train/"),
    ],
    ids=["missing", "empty", "no config", "no epoch", "other scalars"],
)
def test_what_is_no_run_is_refused(tmp_path, prepare, message):
    folder = tmp_path / "version_0"
    folder.mkdir()
    prepare(folder)
    with pytest.raises(UserError, match=message) as error:
        read_run(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "epoch,accuracy\n1,0.5\n",
        "name,dataset,protocol,seed,epoch,train/accuracy,train/loss,val/accuracy,val/loss\na,digits,full,0,one,,,,\n",
        "name,dataset,protocol,seed,epoch,train/accuracy,train/loss,val/accuracy,val/loss\n"
        "a,digits,full,0,1,0.5,,,\nb,digits,full,0,2,0.5,,,\n",
        "\0\x01",
    ],
    ids=["empty", "other columns", "no number", "two runs", "binary"],
)
def test_what_is_no_csv_of_curves_is_refused(tmp_path, text):
    path = tmp_path / "curves.csv"
    path.write_text(text)
    with pytest.raises(UserError, match="no CSV of one training's curves"):
        read_run(path)


def test_a_csv_that_cannot_be_written_is_named(tmp_path):
    run = Run("a", "digits", "full", "", {"train/loss": {1: 0.5}})
    with pytest.raises(UserError, match=r"nowhere/c\.csv cannot be written"):
        write_csv(run, tmp_path / "nowhere" / "c.csv")
