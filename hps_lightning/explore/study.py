"""The study that all workers share: what it explores, and which trials it has."""

import json
import time
import uuid
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage
from optuna.storages._heartbeat import BaseHeartbeatThread, get_heartbeat_thread, is_heartbeat_enabled
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from hps_lightning import __version__
from hps_lightning.errors import UserError
from hps_lightning.explore.config import Exploration
from hps_lightning.explore.samplers import SeededByTrial
from hps_lightning.explore.storage import (
    STORAGE_ERRORS,
    Retry,
    alone,
    close_storage,
    is_file,
    local_path,
    open_storage,
    storage_down,
    without_password,
)
from hps_lightning.files import write_text

RECORD_KEY = "hps_lightning"
"""The attribute of a study that says what it explores."""

RECORD_FORMAT = 1

SURPLUS = "surplus"
"""The attribute of a trial that counts as none: two workers asked for the last one at once."""

_RECORD_FILE = "study.json"
_EXPLORED = ("base", "space", "objectives", "limits")


def record_of(exploration: Exploration) -> dict[str, Any]:
    """What a study keeps of an exploration, in plain types; trials of another one cannot be compared with its own."""
    return {
        "format": RECORD_FORMAT,
        "version": __version__,
        "id": uuid.uuid4().hex,
        "base": list(exploration.base),
        "space": exploration.space.plain,
        "objectives": list(exploration.objectives),
        "limits": dict(exploration.limits),
    }


def open_study(exploration: Exploration, url: str, heartbeat_s: int) -> Study:
    """Opens a study, or makes it.

    Args:
        exploration: what it explores.
        url: see :func:`~hps_lightning.explore.storage.open_storage`.
        heartbeat_s: see there.

    Raises:
        UserError: the storage does not answer, or the study of that name explores something else.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with alone(url, exploration.study):
        storage = open_storage(url, exploration.retries, heartbeat_s)
        try:
            return _open_study(exploration, url, storage)
        except BaseException as error:
            close_storage(storage)
            if isinstance(error, STORAGE_ERRORS):
                raise storage_down(url, error) from None
            raise


def _open_study(exploration: Exploration, url: str, storage: BaseStorage) -> Study:
    study = optuna.create_study(
        storage=storage,
        study_name=exploration.study,
        directions=["minimize"] * len(exploration.objectives),
        sampler=SeededByTrial(exploration.sampler, exploration.seed),
        pruner=exploration.pruning.pruner(),
        load_if_exists=True,
    )
    wanted = json.loads(json.dumps(record_of(exploration)))
    fits = len(study.directions) == len(exploration.objectives)
    if RECORD_KEY not in study.user_attrs and fits and not study.get_trials(deepcopy=False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(list(exploration.objectives))  # for optuna-dashboard
        study.set_user_attr(RECORD_KEY, wanted)
        return study
    found = study_record(study, url)
    differing = [key for key in _EXPLORED if found.get(key) != wanted[key]]
    if differing:
        raise UserError(
            f"The study {study.study_name} in {without_password(url)} was made with {_differences(found, wanted)}. "
            "Give this exploration another name: --study NAME."
        )
    return study


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    parts = []
    for key in _EXPLORED:
        if found.get(key) == wanted[key]:
            continue
        if isinstance(found.get(key), dict):
            names = sorted(
                name for name in {*found[key], *wanted[key]} if found[key].get(name) != wanted[key].get(name)
            )
            parts.append(f"other {key} ({', '.join(names)})")
        else:
            parts.append(f"another {key}" if key == "base" else f"other {key}")
    return " and ".join(parts)


def find_study(name: str, url: str, heartbeat_s: int) -> Study:
    """Opens a study that there is.

    Raises:
        UserError: there is none, the storage does not answer, or another version wrote the study.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if is_file(url) and not local_path(url).is_file():
        raise UserError(
            f"There is no study {name} yet: {local_path(url)} is missing. `hps explore --config` begins one."
        )
    with alone(url, name):
        storage = open_storage(url, heartbeat_s=heartbeat_s)
    try:
        names = optuna.get_all_study_names(storage)
        if name not in names:
            raise UserError(f"{without_password(url)} has no study {name}; it has {', '.join(names) or 'none'}.")
        study = optuna.load_study(study_name=name, storage=storage)
        study_record(study, url)
        return study
    except BaseException as error:
        close_storage(storage)
        if isinstance(error, STORAGE_ERRORS):
            raise storage_down(url, error) from None
        raise


def close_study(study: Study) -> None:
    """Closes the connections to a study's storage; it must not be used any more."""
    close_storage(study._storage)


def study_record(study: Study, url: str) -> dict[str, Any]:
    """What a study says that it explores; see :func:`record_of`.

    Raises:
        UserError: it was not written by `hps explore`, or by a version whose studies we cannot read.
    """
    record = study.user_attrs.get(RECORD_KEY)
    place = f"The study {study.study_name} in {without_password(url)}"
    if not isinstance(record, dict):
        raise UserError(f"{place} was not made by `hps explore`; choose another name: --study NAME.")
    if record.get("format") != RECORD_FORMAT:
        raise UserError(
            f"{place} has format {record.get('format')!r}, this version of hps_lightning reads {RECORD_FORMAT}; it was "
            f"written by version {record.get('version')!r}. Go on with that one, or begin another: --study NAME."
        )
    return record


def claim_folder(folder: Path, record: dict[str, Any]) -> None:
    """Makes a study's folder, or checks that it is this study's.

    Raises:
        UserError: it belongs to another study of the same name, or cannot be written.
    """
    path = folder / _RECORD_FILE
    try:
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(found, dict) or found.get("id") != record["id"]:
                raise UserError(
                    f"{folder} holds the runs of another study of that name, kept in another storage; move it away, "
                    "or choose another name: --study NAME."
                )
            return
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(record, indent=2) + "\n")
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error}") from error


def begun_before(trial: FrozenTrial) -> list[int]:
    """The numbers under which a trial was begun before."""
    return list(trial.system_attrs.get("retry_history", []))


def superseded(trials: Iterable[FrozenTrial]) -> set[int]:
    """Numbers of the trials that were begun again under another number."""
    return {number for trial in trials for number in begun_before(trial)}


def counted(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that count: each of a series of retries once, by its last one."""
    gone = superseded(trials)
    return [trial for trial in trials if trial.number not in gone and SURPLUS not in trial.user_attrs]


def place_in_line(trials: Sequence[FrozenTrial], number: int) -> int:
    """How many trials were begun before one, retries and surplus ones not counted.

    Numbers are given out one by one by the storage, so that of two workers that ask for the last
    trial at once, one finds out that it came too late.
    """
    return sum(
        trial.number < number and not begun_before(trial) and SURPLUS not in trial.user_attrs for trial in trials
    )


def ask(study: Study) -> Trial:
    """The next trial: one that waits to be begun again, or a new one."""
    with warnings.catch_warnings():
        # Optuna gives signs of life in `Study.optimize` alone; see `signs_of_life`.
        warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed")
        return study.ask()


def signs_of_life(study: Study, trial: Trial) -> BaseHeartbeatThread:
    """Tells a storage that can be told so, again and again, that a trial's worker is alive; a context manager.

    As `Study.optimize` does, which would replace a storage's error by errors of its own.

    Args:
        study: the trial's.
        trial: that a worker is at.
    """
    storage = study._storage
    if is_heartbeat_enabled(storage):
        # The first one here, so that no trial is without.
        storage.record_heartbeat(trial._trial_id)
    return get_heartbeat_thread(trial._trial_id, storage)


def begin_again(study: Study, trial: FrozenTrial, retries: int) -> None:
    """Puts an interrupted trial, which has been told as failed, back into the queue."""
    Retry(retries)(study, trial)


def wait_for(study: Study, seconds: float) -> bool:
    """Waits for a storage to answer again; whether it does.

    Args:
        study: whose storage it is.
        seconds: how long at most.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            return True
        except STORAGE_ERRORS:
            if time.monotonic() > until:
                return False
            time.sleep(1)
