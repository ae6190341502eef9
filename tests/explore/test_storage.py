import sqlite3
import sys

import optuna
import pytest
from optuna.storages import RDBStorage
from sqlalchemy.exc import OperationalError

from hps_lightning.errors import UserError
from hps_lightning.explore.storage import StorageDownError, alone, open_storage, storage_down, without_password
from hps_lightning.explore.study import ask

DOWN = "postgresql://hps:very%40secret@127.0.0.1:9/studies"


def test_a_storage_that_is_down_is_one_error_without_the_password():
    for opened in (lambda: open_storage(DOWN), lambda: alone(DOWN, "made").__enter__()):
        with pytest.raises(StorageDownError) as error:
            opened()
        assert "hps:***@127.0.0.1:9" in str(error.value)
        assert "secret" not in str(error.value)
        assert "same command goes on" in str(error.value)


def test_a_driver_that_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UserError, match=r"pip install 'hps_lightning\[postgresql\]'") as error:
        open_storage(DOWN)
    assert "secret" not in str(error.value)


def test_a_password_in_a_drivers_words_is_hidden():
    assert "very@secret" not in str(storage_down(DOWN, OSError("no entry for very@secret")))
    assert without_password("no url:secret") == "the given storage"


@pytest.mark.parametrize(
    "url",
    [
        *("nonsense:secret", "", "oracle9://hps:secret@host/x", "postgresql://hps:secret@h:abc/x"),
        *("sqlite:///", "journal:///", "sqlite:///."),
    ],
)
def test_a_url_that_is_none_is_refused(url):
    def shared():
        with alone(url, "made"):
            open_storage(url)

    for opened in (lambda: open_storage(url), shared):
        with pytest.raises(UserError) as error:
            opened()
        assert "sqlite:///FILE" in str(error.value)
        assert "secret" not in str(error.value)


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "thesis.db"
    path.write_text("years of work, " * 100)
    with pytest.raises(UserError, match="file is not a database"):
        open_storage(f"sqlite:///{path}")
    assert path.read_text() == "years of work, " * 100


def test_a_journal_that_is_none_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "thesis.txt"
    path.write_text("years of work\n" * 3)
    with pytest.raises(UserError, match=r"thesis\.txt"):
        open_storage(f"journal:///{path}").get_all_studies()
    assert path.read_text() == "years of work\n" * 3


def test_tables_of_another_optuna_are_refused(tmp_path):
    url = f"sqlite:///{tmp_path}/made.db"
    open_storage(url).remove_session()
    with sqlite3.connect(tmp_path / "made.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v99.0.0'")
    connection.close()
    with pytest.raises(UserError, match="Another version of Optuna"):
        open_storage(url)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file cannot be made"):
        open_storage(f"sqlite:///{tmp_path}/file/made.db")


def test_a_journals_lock_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = open_storage("journal:///runs/made.journal")
    # As a process that is killed leaves it.
    assert storage._backend._lock.acquire()
    assert (tmp_path / "runs" / "made.journal.lock").exists(), "a link that points nowhere is waited for without end"


def test_a_sign_of_life_outlives_an_outage(tmp_path, monkeypatch):
    storage = open_storage(f"sqlite:///{tmp_path}/made.db")
    study = optuna.create_study(storage=storage)
    trial = ask(study)

    def lost(*_):
        raise OperationalError("", {}, Exception("connection refused"))

    monkeypatch.setattr(RDBStorage, "record_heartbeat", lost)
    storage.record_heartbeat(trial._trial_id)
    monkeypatch.undo()
    storage.record_heartbeat(trial._trial_id)
    with sqlite3.connect(tmp_path / "made.db") as connection:
        beats = connection.execute("SELECT trial_id FROM trial_heartbeats").fetchall()
    connection.close()
    assert beats == [(trial._trial_id,)]
