from pathlib import Path

import pytest

from hps_lightning.cache import cache_dir
from hps_lightning.errors import UserError


def test_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HPS_CACHE_DIR", str(tmp_path / "cache"))
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("HPS_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "hps_lightning"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir() == tmp_path / "home" / ".cache" / "hps_lightning"
    assert list(tmp_path.iterdir()) == []


def test_empty_variables_are_as_none(tmp_path, monkeypatch):
    monkeypatch.setenv("HPS_CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "hps_lightning"


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HPS_CACHE_DIR", "~/kept")
    assert cache_dir() == tmp_path / "kept"


@pytest.mark.parametrize("explicit", [None, "~/kept"])
def test_without_a_home_the_variable_is_named(monkeypatch, explicit):
    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HPS_CACHE_DIR", raising=False)
    if explicit:
        monkeypatch.setenv("HPS_CACHE_DIR", explicit)
    monkeypatch.setattr(Path, "expanduser", no_home)
    with pytest.raises(UserError, match="HPS_CACHE_DIR"):
        cache_dir()
