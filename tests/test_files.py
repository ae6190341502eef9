import pytest

from hps_lightning.files import replaced_whole


def test_the_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replaced_whole(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
        assert aside.parent == path.parent
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_nothing_changes_where_the_block_raises(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write():
        with replaced_whole(path) as aside:
            aside.write_text("half")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 (nothing to match)
        write()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
