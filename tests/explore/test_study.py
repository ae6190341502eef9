import json

import optuna
import pytest
from optuna.trial import TrialState

from hps_lightning.errors import UserError
from hps_lightning.explore.space import Space
from hps_lightning.explore.storage import default_url
from hps_lightning.explore.study import (
    RECORD_KEY,
    ask,
    begin_again,
    begun_before,
    claim_folder,
    counted,
    find_study,
    open_study,
    place_in_line,
    study_record,
)
from tests.explore.made import exploration


@pytest.fixture(params=["sqlite", "journal"])
def url(request, tmp_path):
    return default_url(tmp_path, "made") if request.param == "sqlite" else f"journal:///{tmp_path}/a/made.log"


def test_a_study_is_made_once_and_found_again(url):
    first = open_study(exploration(), url, 1)
    again = open_study(exploration(trials=9, seed=4, sampler="random"), url, 1)
    record = study_record(again, url)
    assert record == study_record(first, url)
    assert record["objectives"] == ["error", "size_bytes"]
    assert again.metric_names == ["error", "size_bytes"]
    assert study_record(find_study("made", url, 1), url) == record


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"space": Space.parse({"model.width": [0.1, 0.2]})}, "other space (model.width)"),
        ({"base": ["--model=mobilenet"]}, "another base"),
        ({"limits": {"size_bytes": 9.0}}, "other limits (size_bytes)"),
        ({"objectives": ["error", "macs"]}, "other objectives"),
        ({"objectives": ["error"]}, "other objectives"),
    ],
)
def test_another_exploration_under_the_same_name_is_refused(url, changes, text):
    open_study(exploration(), url, 1)
    with pytest.raises(UserError) as error:
        open_study(exploration(**changes), url, 1)
    assert text in str(error.value)
    assert "--study" in str(error.value)


def test_a_study_of_another_version_is_refused(url):
    study = open_study(exploration(), url, 1)
    study.set_user_attr(RECORD_KEY, {**study.user_attrs[RECORD_KEY], "format": 99, "version": "7.0"})
    for opened in (lambda: open_study(exploration(), url, 1), lambda: find_study("made", url, 1)):
        with pytest.raises(UserError) as error:
            opened()
        assert "format 99" in str(error.value)
        assert "'7.0'" in str(error.value)


def test_a_study_that_is_not_ours_is_refused(tmp_path):
    url = default_url(tmp_path, "made")
    (tmp_path / "explore").mkdir()
    study = optuna.create_study(storage=url, study_name="made", directions=["minimize"] * 2)
    study.add_trial(optuna.create_trial(values=[1, 2]))
    with pytest.raises(UserError, match="not made by `hps explore`"):
        open_study(exploration(), url, 1)
    assert len(study.trials) == 1


def test_an_empty_study_that_is_not_ours_is_taken_if_its_objectives_fit(tmp_path):
    url = default_url(tmp_path, "made")
    (tmp_path / "explore").mkdir()
    optuna.create_study(storage=url, study_name="made", directions=["minimize"] * 2)
    optuna.create_study(storage=url, study_name="single")
    assert open_study(exploration(), url, 1).metric_names == ["error", "size_bytes"]
    with pytest.raises(UserError, match="not made by `hps explore`"):
        open_study(exploration(study="single"), url, 1)


def test_a_study_that_there_is_not_is_not_made(url, tmp_path):
    with pytest.raises(UserError, match="There is no study made yet"):
        find_study("made", url, 1)
    assert list(tmp_path.iterdir()) == []
    open_study(exploration(), url, 1)
    with pytest.raises(UserError, match="has no study other; it has made"):
        find_study("other", url, 1)


def test_a_folder_of_another_study_is_left_alone(url, tmp_path):
    record = study_record(open_study(exploration(), url, 1), url)
    folder = tmp_path / "runs"
    claim_folder(folder, record)
    claim_folder(folder, record)
    before = (folder / "study.json").read_text()
    with pytest.raises(UserError, match="another study of that name"):
        claim_folder(folder, {**record, "id": "other"})
    assert (folder / "study.json").read_text() == before
    (folder / "study.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        claim_folder(folder, record)
    assert json.loads(before)["id"] == record["id"]


def test_a_trial_that_has_been_begun_as_often_as_it_may_stays_as_it_is(url):
    study = open_study(exploration(), url, 1)
    for _ in range(2):
        trial = ask(study)
        study.tell(trial, state=TrialState.FAIL)
        begin_again(study, study.get_trials(deepcopy=False)[trial.number], retries=1)
    assert [begun_before(trial) for trial in study.trials] == [[], [0]]


def test_a_series_of_retries_counts_as_one_trial(url):
    study = open_study(exploration(), url, 1)
    for _ in range(2):
        trial = ask(study)
        exploration().space.suggest(trial)
        study.tell(trial, state=TrialState.FAIL)
    begin_again(study, study.trials[0], retries=1)
    again = ask(study)
    assert again.number == 2
    assert exploration().space.suggest(again) == study.trials[0].params
    assert [trial.number for trial in counted(study.trials)] == [1, 2]
    study.tell(again, state=TrialState.FAIL)
    begin_again(study, study.trials[2], retries=1)
    assert len(study.trials) == 3, "one retry was granted"
    assert place_in_line(study.trials, 3) == 2
