import dataclasses
import re
from collections import Counter

import pytest

from hps_lightning.paper import PaperResult, claims, results, table5


def test_every_row_of_every_table_is_there():
    assert Counter(row.table for row in results()) == {"1": 9, "2": 12, "3": 9, "4": 5, "text": 5}


def test_a_full_row():
    (row,) = [row for row in results() if row.table == "2" and row.model.endswith("21-1x-v3")]
    assert row == PaperResult(
        table="2",
        dataset="cifar10",
        model="High Performance SqueezeNext-21-1x-v3",
        family="hps",
        width=1.0,
        stages=(2, 4, 12, 1),
        accuracy=92.5,
        size_mb=2.614,
        seconds_per_epoch=18.0,
    )


def test_what_is_not_printed_is_none():
    (row,) = [row for row in results() if row.model == "Maxout networks"]
    assert (row.width, row.stages, row.size_mb, row.seconds_per_epoch) == (None, None, None, None)
    assert row.accuracy == 90.65


def test_cifar_100_is_table_3():
    assert {row.table for row in results() if row.dataset == "cifar100"} == {"3"}
    assert {row.dataset for row in results()} == {"cifar10", "cifar100"}


def test_numbers_are_plausible():
    for row in results():
        assert 50 < row.accuracy < 100
        assert (row.size_mb is None) == (row.seconds_per_epoch is None) == (row.family == "cited")
        assert row.size_mb is None or 0.3 < row.size_mb < 13


def test_names_agree_with_depth_and_width():
    named = 0
    for row in results():
        match = re.search(r"-(\d\d)-([\d.]+)x", row.model)
        if match:
            named += 1
            assert float(match[2]) == row.width
            if row.stages:
                assert int(match[1]) == sum(row.stages) + 2  # the stem and the spatial resolution
    assert named == 28


def test_a_model_keeps_its_accuracy_from_table_to_table():
    by_name = {}
    for row in results():
        by_name.setdefault((row.dataset, row.model), set()).add(row.accuracy)
    assert all(len(accuracies) == 1 for accuracies in by_name.values())


def test_rows_cannot_be_changed():
    row = results()[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.accuracy = 100.0


def test_table_5_is_as_printed():
    rows = table5()
    assert len(rows) == 34
    assert rows[0]["layer"] == "Convolution 1"
    assert rows[-1]["layer"] == "FCC"
    by_layer = {row["layer"]: row for row in rows}
    # Its errors stay: the tests of the networks name them.
    assert by_layer["Convolution 34"]["parameters"] == "1528"
    assert by_layer["Convolution 106"]["in_c"] == "256"
    assert by_layer["Adaptive Average Pool"]["parameters"] == ""
    assert sum(int(row["repeat"]) for row in rows) == 34 + 5 * 6


def test_table_5_holds_whole_numbers():
    for row in table5():
        for column, text in row.items():
            if column not in ("layer", "stage"):
                assert re.fullmatch(r"\d*", text), (row["layer"], column)


def test_claims_name_networks_of_the_tables_and_quote_their_figures():
    names = {row.model for row in results()} | {row.family for row in results()} | {""}
    for claim in claims():
        assert {claim.network, claim.baseline} <= names
        assert claim.section
        for figure in (claim.claimed, claim.second):
            # The one figure that the text writes in other units.
            written = "370KB" if figure == "0.37" else figure
            assert written in claim.quote, claim
