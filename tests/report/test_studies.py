import json

import pytest

from hps_lightning.errors import UserError
from hps_lightning.explore.front import Row, rows_csv, rows_from_csv
from hps_lightning.report.studies import explorations, kept_memory, optimizer_studies
from tests.report.test_measured import HARDWARE, write


def trial(number, state, **values):
    options = {"model.stages": [1, 1, 1, 1], "optimizer.lr": 0.33511169}
    return Row(number, state, values, options, 6 if "error" in values else 0, "", "runs/x")


ROWS = [
    trial(0, "done", error=0.4, size_bytes=200_000.0),
    trial(1, "over the limits", size_bytes=500_000.0),
    trial(2, "stopped early", error=0.6, size_bytes=250_000.0),
]


def made_studies(results):
    """A study of each kind."""
    trained = [
        {"optimizer": "SGD", "rate": 0.1, "schedule": "cosine", "accuracies": [0.6, 0.7]},
        {"optimizer": "Adam", "rate": 0.01, "schedule": "step", "accuracies": [0.62]},
        {"optimizer": "SGD with Nesterov", "rate": 0.3, "schedule": "step", "accuracies": [0.61, 0.61]},
    ]
    summary = {"network": "hps_06_05x", "epochs": 6, "trained": trained}
    write(results / "optimizers-made.json", {"hardware": HARDWARE, "summary": summary})
    (results / "optimizers-made.md").write_text("| optimizer | step |\n|---|---|\n| Adam | 62.00 |\n")
    begun = {"network": "hps_06_1x", "epochs": 3, "trained": []}
    write(results / "optimizers-begun.json", {"hardware": HARDWARE, "summary": begun})
    (results / "optimizers-begun.md").write_text("The study is not finished: 1 trainings so far.\n")
    kept = {"activation": "relu", "inplace": True, "dtype": "float32", "kernels": "ours", "bytes": 12_500_000}
    write(results / "activation_memory-made.json", {"model": "hps_06_05x", "batch_size": 128, "kept": [kept]})
    record = {"objectives": ["error", "size_bytes"], "limits": {"size_bytes": 300_000}}
    write(results / "exploration-0.5x" / "study.json", record)
    (results / "exploration-0.5x" / "trials.csv").write_text(rows_csv(ROWS))


def test_studies_are_read(tmp_path):
    made_studies(tmp_path)
    begun, optimizers = optimizer_studies(tmp_path)
    assert (begun.source, begun.trained) == ("optimizers-begun.json", ())
    assert (optimizers.network, optimizers.epochs, optimizers.source) == ("hps_06_05x", 6, "optimizers-made.json")
    assert optimizers.trained[0].accuracies == (60.0, 70.0)
    assert optimizers.trained[0].accuracy == 65.0
    (memory,) = kept_memory(tmp_path)
    assert memory.kept[0]["bytes"] == 12_500_000
    (exploration,) = explorations(tmp_path)
    assert (exploration.name, exploration.objectives) == ("0.5x", ("error", "size_bytes"))
    assert [row.state for row in exploration.rows] == ["done", "over the limits", "stopped early"]


def test_a_table_of_trials_comes_back_with_numbers_and_texts():
    (first, *_) = found = rows_from_csv(rows_csv(ROWS))
    assert first.options == {"model.stages": "1 1 1 1", "optimizer.lr": 0.33511169}
    assert [(row.number, row.state, row.values, row.epochs) for row in found] == [
        (row.number, row.state, row.values, row.epochs) for row in ROWS
    ]


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("optimizers-a.json", "{}", optimizer_studies),
        ("optimizers-a.json", json.dumps({"runs": []}), optimizer_studies),
        ("activation_memory-a.json", "[]", kept_memory),
        ("exploration-a/study.json", "{", explorations),
        ("exploration-a/trials.csv", "trial\n", explorations),
    ],
)
def test_what_is_no_study_is_named(tmp_path, name, content, read):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".csv":
        (path.parent / "study.json").write_text(json.dumps({"objectives": ["error"], "limits": {}}))
    path.write_text(content)
    with pytest.raises(UserError, match=f"{name.split('/')[0]} is no result that a report can be made of"):
        read(tmp_path)


@pytest.mark.parametrize("text", ["", "trial\n", "a study,of something else\n1,2\n"])
def test_another_table_is_none_of_trials(text):
    with pytest.raises(KeyError):
        rows_from_csv(text)


def test_a_table_without_trials_has_none():
    assert rows_from_csv(rows_csv([])) == []
