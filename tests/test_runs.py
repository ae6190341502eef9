import os

import pytest

from hps_lightning.errors import UserError
from hps_lightning.runs import resolve_checkpoint, run_name, run_of


def make_run(runs, name, version, age, *checkpoints, directory=None):
    folder = runs / name / (directory or f"version_{version}") / "checkpoints"
    folder.mkdir(parents=True)
    for checkpoint in checkpoints:
        (folder / checkpoint).touch()
        os.utime(folder / checkpoint, (1e9 - age, 1e9 - age))
    return folder


def test_last_and_best_are_those_of_the_newest_run(tmp_path):
    make_run(tmp_path, "a", 10, 50, "last.ckpt", "best.ckpt")
    newest = make_run(tmp_path, "b", 0, 1, "last.ckpt", "best.ckpt")
    make_run(tmp_path, "a", 2, 100, "last.ckpt")
    assert resolve_checkpoint("last", tmp_path) == newest / "last.ckpt"
    assert resolve_checkpoint("best", tmp_path) == newest / "best.ckpt"


def test_a_path_stays_as_it_is(tmp_path):
    assert str(resolve_checkpoint("some/where.ckpt", tmp_path)) == "some/where.ckpt"


def test_without_a_run_or_a_best_one_the_error_says_the_way_out(tmp_path):
    with pytest.raises(UserError, match="no run"):
        resolve_checkpoint("last", tmp_path)
    make_run(tmp_path, "a", 0, 1, "last.ckpt")
    with pytest.raises(UserError, match=r"'full' nothing validates, or no epoch has validated yet.*--ckpt_path last"):
        resolve_checkpoint("best", tmp_path)


def test_run_of_a_checkpoint(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "runs", "net", 3, 1, "last.ckpt")
    run = run_of(folder / "last.ckpt")
    assert run.directory == folder.parent
    assert (run.name, run.version) == ("net", "version_3")
    monkeypatch.chdir(tmp_path)
    assert str(run_of(folder / "last.ckpt").save_dir) == "runs"
    assert run_of(tmp_path / "weights.ckpt") is None


def test_a_run_of_several_seeds_is_one_as_any_other(tmp_path, monkeypatch):
    make_run(tmp_path / "runs", "net", 0, 50, "last.ckpt")
    folder = make_run(tmp_path / "runs", "net", 0, 1, "last.ckpt", directory="seeds_2/seed_7")
    assert resolve_checkpoint("last", tmp_path / "runs") == folder / "last.ckpt"
    monkeypatch.chdir(tmp_path)
    run = run_of(folder / "last.ckpt")
    assert (str(run.save_dir), run.name, run.version) == ("runs", "net", "seeds_2/seed_7")
    assert run.directory.absolute() == folder.parent
    monkeypatch.chdir(folder.parent)
    assert run_of(folder / "last.ckpt").directory == folder.parent
    assert run_of(make_run(tmp_path, "net", 0, 1, "x.ckpt", directory="others/seed_7") / "x.ckpt") is None


def test_a_folder_of_several_seeds_is_no_checkpoint(tmp_path):
    make_run(tmp_path, "net", 0, 1, "last.ckpt", directory="seeds_0/seed_7")
    (tmp_path / "net" / "seeds_0" / "seeds.json").touch()
    with pytest.raises(UserError, match=r"several trainings.*seed_7/checkpoints/last\.ckpt"):
        resolve_checkpoint(str(tmp_path / "net" / "seeds_0"), tmp_path)


@pytest.mark.parametrize(
    ("family", "arguments", "expected"),
    [
        ("hps", {"stages": [1, 1, 1, 1], "width": 0.5, "dropout": 0.3}, "hps_06_05x-digits"),
        ("shallow_squeezenext", {"stages": [1, 1, 1, 1], "width": 0.5}, "shallow_06_05x-digits"),
        ("hps", {"stages": [1, 1, 1, 1], "width": 0.51}, "hps-digits"),
        (None, {}, "Mine-digits"),
    ],
)
def test_run_takes_the_name_of_the_zoo(family, arguments, expected):
    assert run_name("Mine", family, arguments, "digits") == expected
