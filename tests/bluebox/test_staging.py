import pytest

from hps_lightning.bluebox import destination, staged_directory
from hps_lightning.errors import UserError


def test_staging_is_cleared_away_whatever_happens_inside(tmp_path):
    def interrupted():
        with staged_directory(tmp_path / "bundle", ()) as folder:
            (folder / "file").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def replace(directory):
    with staged_directory(directory, ("file",)) as folder:
        (folder / "file").write_text("new")


def test_folders_beside_it_are_left_alone(tmp_path):
    for name in ("bundle", "bundle.previous", ".bundle.previous"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    replace(tmp_path / "bundle")
    found = {path.name: (path / "file").read_text() for path in tmp_path.iterdir()}
    assert found == {"bundle": "new", "bundle.previous": "bundle.previous", ".bundle.previous": ".bundle.previous"}


def test_the_current_folder_and_those_around_it_are_refused(tmp_path, monkeypatch):
    (tmp_path / "around" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "around" / "here")
    for path in (".", "..", tmp_path / "around"):
        with pytest.raises(UserError, match="is the current folder, or holds it"):
            replace(path)
    replace("inside")
    replace("../beside")
    assert sorted(path.name for path in (tmp_path / "around").iterdir()) == ["beside", "here"]


def test_a_current_folder_that_is_gone_is_in_nobodys_way(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    replace(tmp_path / "bundle")
    with pytest.raises(UserError, match="bundle cannot be written"):
        destination("bundle")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("path", ["~nosuchuser/bundle", "loop/bundle", "nul\0l"])
def test_what_names_no_folder_is_one_error(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="cannot be written: "):
        replace(path)
