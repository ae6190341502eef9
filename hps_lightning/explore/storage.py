"""Where a study is kept: an SQLite or a journal file on one machine, a PostgreSQL for many."""

import contextlib
import copy
import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import optuna
import sqlalchemy
from filelock import FileLock
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from hps_lightning.errors import UserError

STORAGE_ERRORS = (StorageInternalError, SQLAlchemyError, OSError)
"""What Optuna raises where a storage does not answer."""

HEARTBEAT_S = 30
"""Seconds between two signs of life of a worker, if not given."""

GRACE = 4
"""How many signs of life in a row have to be missing for a worker to be taken for dead."""

FAILURE = "failure"
"""The attribute of a trial that says why it failed."""

WORKER = "worker"
"""The attribute of a trial that says who trains it, from when it gives signs of life."""

_NO_URL = (
    "The storage's URL cannot be read; it is sqlite:///FILE, journal:///FILE or "
    "postgresql://USER:PASSWORD@HOST/DATABASE."
)
_JOURNAL = "journal:///"
_SQLITE = "sqlite:///"


class StorageDownError(UserError):
    """The storage does not answer; what the runs' folders hold is safe."""


class Retry(RetryHeartbeatStaleTrialCallback):
    """Puts an interrupted trial back into the queue, with what it knows of its network, but without its worker.

    Args:
        retries: how often at most.
    """

    def __init__(self, retries: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            super().__init__(retries, inherit_intermediate_values=True)

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        """Puts it there."""
        # Optuna adds to the list of its earlier numbers, which a journal shares with all who look.
        trial = copy.deepcopy(trial)
        # Else who takes it up, and dies before the first sign of life, would be taken for a worker that lives.
        trial.user_attrs = {name: value for name, value in trial.user_attrs.items() if name not in (WORKER, FAILURE)}
        super().__call__(study, trial)


def default_url(runs: Path, study: str) -> str:
    """The URL of the SQLite file that keeps a study beside its runs."""
    return f"{_SQLITE}{runs / 'explore' / study}.db"


class _SturdyStorage(RDBStorage):
    """Optuna's database, whose sign of life outlives an outage.

    Else the thread that gives it would end with the first error, and the worker be taken for
    dead while it trains.
    """

    def record_heartbeat(self, trial_id: int) -> None:
        with contextlib.suppress(*STORAGE_ERRORS):
            super().record_heartbeat(trial_id)


def is_file(url: str) -> bool:
    """Whether a URL is that of a file, which one machine's workers share."""
    return url.startswith((_JOURNAL, _SQLITE))


def local_path(url: str) -> Path:
    """The file that a URL of one names."""
    return Path(url.removeprefix(_JOURNAL).removeprefix(_SQLITE))


def without_password(url: str) -> str:
    """A URL that may be printed."""
    if is_file(url):
        return url
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return "the given storage"


def open_storage(url: str, retries: int = 3, heartbeat_s: int = HEARTBEAT_S) -> BaseStorage:
    """Opens a storage; one in a file is made if there is none.

    Args:
        url: ``sqlite:///FILE``, ``journal:///FILE``, ``postgresql://USER:PASSWORD@HOST/DATABASE``,
            or another one that SQLAlchemy knows. A path after three slashes is relative.
        retries: how often a trial is begun again whose worker died.
        heartbeat_s: seconds between two signs of life of a worker; a journal has none.

    Raises:
        StorageDownError: the storage cannot be reached.
        UserError: the URL is none, a driver is missing, or another version wrote the storage.
    """
    if is_file(url):
        _make_folder(local_path(url))
    else:
        _parsed(url)
    try:
        if url.startswith(_JOURNAL):
            return JournalStorage(_journal(local_path(url)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return optuna.storages.get_storage(_database(url, retries, heartbeat_s))
    except NoSuchModuleError as error:
        raise UserError(_NO_URL) from error
    except ImportError as error:
        raise UserError(
            f"{without_password(url)} needs a driver that is not installed; for PostgreSQL: "
            "pip install 'hps_lightning[postgresql]'."
        ) from error
    except STORAGE_ERRORS as error:
        raise storage_down(url, error) from None
    except RuntimeError as error:
        # Optuna compares the version of its tables alone.
        raise UserError(f"Another version of Optuna made {without_password(url)}: {error}") from error
    except ValueError as error:
        raise UserError(f"{without_password(url)} is damaged, or no study's storage: {error}") from error


def _journal(path: Path) -> JournalFileBackend:
    # Its lock is a link to the path as given, which would point nowhere from the file's folder; and who meets such a
    # link, left by a process that was killed, would wait for ever.
    return JournalFileBackend(str(path.absolute()))


def _database(url: str, retries: int, heartbeat_s: int) -> RDBStorage:
    parsed = _parsed(url)
    # A connection that the server closed is noticed, and made anew.
    arguments: dict[str, object] = {"pool_pre_ping": True}
    if parsed.get_backend_name() == "sqlite":
        arguments["connect_args"] = {"timeout": 60}
    elif parsed.get_backend_name() == "postgresql":
        arguments["connect_args"] = {"connect_timeout": 10}
    return _SturdyStorage(
        parsed.render_as_string(hide_password=False),
        engine_kwargs=arguments,
        heartbeat_interval=heartbeat_s,
        grace_period=GRACE * heartbeat_s,
        heartbeat_stale_trial_callback=Retry(retries),
    )


def _parsed(url: str) -> sqlalchemy.URL:
    try:
        parsed = sqlalchemy.make_url(url)
    except (ArgumentError, ValueError) as error:
        raise UserError(_NO_URL) from error
    if parsed.drivername == "postgresql":
        # SQLAlchemy would look for the predecessor of the driver that we install.
        parsed = parsed.set(drivername="postgresql+psycopg")
    return parsed


def close_storage(storage: BaseStorage) -> None:
    """Closes a storage's connections."""
    with contextlib.suppress(*STORAGE_ERRORS):
        storage.remove_session()
    database = getattr(storage, "_backend", storage)
    if isinstance(database, RDBStorage):
        database.engine.dispose()


def storage_down(url: str, error: Exception) -> StorageDownError:
    """The error that says that a storage does not answer, without its password."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    reason = lines[0] if lines else type(cause).__name__
    with contextlib.suppress(ArgumentError, ValueError):
        password = None if is_file(url) else sqlalchemy.make_url(url).password
        if password:
            reason = reason.replace(str(password), "***")
    return StorageDownError(
        f"The storage {without_password(url)} does not answer: {reason}. Trials that are trained lie in their runs' "
        "folders; the same command goes on when the storage is back."
    )


def _make_folder(path: Path) -> None:
    if not path.name:
        raise UserError(_NO_URL)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {path.parent} cannot be made: {error.strerror}.") from error


@contextlib.contextmanager
def alone(url: str, study: str) -> Iterator[None]:
    """Keeps other workers of a study out while one sets up what all share.

    Two that make a database's tables at once would each find half of the other's.

    Raises:
        StorageDownError: the storage cannot be reached.
        UserError: the URL is none, or the file cannot be written.
    """
    if is_file(url):
        _make_folder(local_path(url))
        path = local_path(url)
        try:
            with FileLock(path.with_name(f".{path.name}.lock")):
                yield
        except PermissionError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}.") from error
        return
    parsed = _parsed(url)
    if parsed.get_backend_name() != "postgresql":
        yield
        return
    key = int.from_bytes(hashlib.sha256(study.encode()).digest()[:8], "big", signed=True)
    try:
        engine = sqlalchemy.create_engine(parsed, connect_args={"connect_timeout": 10})
    except ImportError:
        yield
        return
    try:
        connection = engine.connect()
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": key})
    except SQLAlchemyError as error:
        engine.dispose()
        raise storage_down(url, error) from None
    try:
        yield
    finally:
        # The server frees the lock with the connection.
        connection.close()
        engine.dispose()
