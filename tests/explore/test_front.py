import csv
import io
from dataclasses import replace

import pytest
from optuna.trial import TrialState
from rich.console import Console

from hps_lightning.errors import UserError
from hps_lightning.explore.front import (
    choose,
    front_markdown,
    front_of,
    front_table,
    nothing_meets,
    rows_csv,
    rows_of,
)
from tests.explore.made import trial

OBJECTIVES = ["error", "size_bytes"]


def rows(*points):
    trials = [trial(i, {"error": error, "size_bytes": size}) for i, (error, size) in enumerate(points)]
    return rows_of(trials)


def test_front_holds_what_no_other_beats():
    found = front_of(rows((0.3, 100), (0.2, 200), (0.3, 101), (0.1, 300), (0.25, 300)), OBJECTIVES)
    assert [row.number for row in found] == [3, 1, 0]


def test_of_equal_trials_the_first_stays():
    assert [row.number for row in front_of(rows((0.3, 100), (0.3, 100)), OBJECTIVES)] == [0]


def test_only_trials_that_are_done_and_within_limits_count():
    trials = [
        trial(0, {"error": 0.5, "size_bytes": 100}),
        trial(1, {"error": 0.1, "size_bytes": 10}, over={"size_bytes": 0.5}),
        trial(2, {"error": 0.1, "size_bytes": 10}, TrialState.PRUNED),
        trial(3, {"size_bytes": 10}, TrialState.PRUNED, over={"size_bytes": 0.5}),
        trial(4, {"size_bytes": 10}, TrialState.FAIL, failure="no memory"),
        trial(5, {"error": 0.1, "size_bytes": 10}, TrialState.RUNNING),
    ]
    found = rows_of(trials)
    states = ["done", "over the limits", "stopped early", "over the limits", "failed", "running"]
    assert [row.state for row in found] == states
    assert [row.number for row in front_of(found, OBJECTIVES)] == [0]


def test_the_best_is_chosen_within_limits():
    found = rows((0.3, 100), (0.2, 200), (0.1, 300))
    assert choose(found, OBJECTIVES, {}).number == 2
    assert choose(found, OBJECTIVES, {"size_bytes": 250}).number == 1
    assert choose(found, OBJECTIVES, {"size_bytes": 100}).number == 0
    assert choose(found, OBJECTIVES, {}, 1).number == 1


def test_limits_that_none_meets_name_the_nearest():
    with pytest.raises(UserError) as error:
        choose(rows((0.3, 100_000), (0.2, 200_000)), OBJECTIVES, {"size_bytes": 5_000})
    assert "None of 2 trials" in str(error.value)
    assert "size_bytes at most 5.0 kB" in str(error.value)
    assert "size_bytes 100.0 kB (trial 0)" in str(error.value)


@pytest.mark.parametrize("state", ["failed", "stopped early"])
def test_where_all_trials_failed_limits_are_not_blamed(state):
    (row,) = rows((0.5, 100))
    failed = replace(row, state=state, note="killed by signal 9")
    error = str(nothing_meets([failed], {"size_bytes": 1000}))
    assert error == f"No trial of the study is done. Trial 0 {state}: killed by signal 9"
    over = replace(row, number=1, state="over the limits")
    assert "meets the limits" in str(nothing_meets([failed, over], {"size_bytes": 10}))


def test_a_limit_on_what_was_not_measured_says_what_was():
    with pytest.raises(UserError, match="has not measured latency_ms, only error, size_bytes"):
        choose(rows((0.3, 100), (0.2, 200)), OBJECTIVES, {"latency_ms": 2})


def test_a_trial_that_there_is_not_cannot_be_chosen():
    with pytest.raises(UserError, match="no trial 7"):
        choose(rows((0.3, 100)), OBJECTIVES, {}, 7)
    with pytest.raises(UserError, match="Trial 0 failed: no memory"):
        choose(rows_of([trial(0, {}, TrialState.FAIL, failure="no memory")]), OBJECTIVES, {})


def test_tables_say_the_same():
    options = {"model.stages": [1, 2], "lr_scheduler": None}
    found = rows_of([trial(4, {"error": 0.1234, "size_bytes": 45_678}, options=options, folder="runs/x")])
    written = list(csv.DictReader(io.StringIO(rows_csv(found))))
    assert written[0]["error"] == "0.1234"
    assert written[0]["size_bytes"] == "45678"
    assert written[0]["model.stages"] == "1 2"
    assert written[0]["lr_scheduler"] == "none"
    assert written[0]["folder"] == "runs/x"
    markdown = front_markdown(found, OBJECTIVES, {})
    assert markdown.splitlines()[2] == "| 4 | 12.34 | 45.7 | stages 1 2, lr_scheduler none |"
    console = Console(file=io.StringIO(), width=200)
    console.print(front_table(found, OBJECTIVES, {}))
    for text in ("12.34", "45.7", "stages 1 2, lr_scheduler none"):
        assert text in console.file.getvalue()
