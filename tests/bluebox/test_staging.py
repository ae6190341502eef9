import pytest

from hps_lightning.bluebox import staged_directory


def test_staging_is_cleared_away_whatever_happens_inside(tmp_path):
    def interrupted():
        with staged_directory(tmp_path / "bundle", ()) as folder:
            (folder / "file").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
