import dataclasses

import pytest

from hps_lightning import paper, zoo
from hps_lightning.report.reproduction import (
    CONVENTIONS,
    MODULE,
    MODULE_AND_MOMENTUM,
    Cost,
    cost,
    disagreements,
    explaining,
    rows,
    variant_of,
)


@pytest.fixture(scope="module")
def table_rows():
    return rows([])


def row_of(table_rows, table, model):
    (row,) = [row for row in table_rows if row.printed.table == table and row.printed.model.endswith(model)]
    return row


def test_every_row_of_tables_1_to_4_is_a_network_of_its_family_width_and_stages(table_rows):
    assert len(table_rows) == 35
    for row in table_rows:
        assert row.variant.family == row.printed.family
        if row.printed.width is not None:
            assert row.variant.arguments["width"] == row.printed.width
        if row.printed.stages is not None:
            assert tuple(row.variant.arguments["stages"]) == row.printed.stages


@pytest.mark.parametrize(
    ("table", "model", "name"),
    [
        ("1", "06-0.5x-v1", "hps_06_05x"),
        ("1", "21-1x-v2.0", "hps_21_1x_v2"),
        ("4", "06-1.0x", "hps_06_1x"),
        ("4", "06-0.50x", "hps_06_05x"),
        ("4", "Modified SqueezeNext", "modified_squeezenext_23_1x"),
    ],
)
def test_names_that_the_tables_write_differently_are_recognised(table_rows, table, model, name):
    assert row_of(table_rows, table, model).variant is zoo.find_variant(name)


def test_a_name_that_no_network_has_is_refused():
    printed = dataclasses.replace(paper.results()[4], model="High Performance SqueezeNext-99-3x")
    with pytest.raises(LookupError, match="99-3x"):
        variant_of(printed)


def test_sizes_are_explained_within_three_percent_or_not_at_all():
    computed = Cost(parameters=1, macs=1, size_mb={MODULE: 1.0, MODULE_AND_MOMENTUM: 2.0})
    assert explaining(1.03, computed) == (MODULE,)
    assert explaining(0.97, computed) == ()
    assert explaining(1.95, computed) == (MODULE_AND_MOMENTUM,)
    assert explaining(1.5, computed) == ()


def test_rows_have_the_convention_that_explains_them(table_rows):
    assert row_of(table_rows, "2", "SqueezeNet-v1.0").explained_by == (MODULE,)
    assert row_of(table_rows, "3", "SqueezeNet-v1.0").explained_by == (MODULE_AND_MOMENTUM,)
    assert row_of(table_rows, "4", "Modified SqueezeNext").explained_by == (MODULE_AND_MOMENTUM,)
    for model in ("06-1x", "06-0.75x", "08-0.5x", "14-1.5x"):
        row = row_of(table_rows, "2", model)
        assert (row.explained_by, row.other_fits) == ((), ())


def test_hps_21_and_23_print_the_sizes_of_table_5s_network(table_rows):
    table5 = zoo.find_variant("hps_23_1x")
    for model, convention in (("21-1x-v2", MODULE), ("21-1x-v3", MODULE), ("23-1x", MODULE_AND_MOMENTUM)):
        row = row_of(table_rows, "2", f"SqueezeNext-{model}")
        assert row.explained_by == ()
        assert row.other_fits == ((table5, convention),)


def test_a_cost_is_that_of_the_network_with_the_data_sets_classes():
    found = cost("hps_06_05x", "cifar10")
    assert (found.parameters, found.macs) == (67_670, 3_890_432)
    assert list(found.size_mb) == list(CONVENTIONS)
    assert cost("hps_14_15x", "cifar100").parameters == 1_212_592


def test_tables_disagree_in_three_figures(table_rows):
    found = {(one.variant.name, one.quantity): one.printed for one in disagreements(table_rows)}
    assert found == {
        ("hps_21_1x_v3", "size_mb"): (("1", 2.614), ("2", 2.614), ("4", 2.62)),
        ("hps_21_1x_v3", "seconds_per_epoch"): (("1", 18.0), ("2", 18.0), ("4", 16.0)),
        ("hps_06_05x", "seconds_per_epoch"): (("1", 7.0), ("2", 7.0), ("4", 6.0)),
    }


def test_rows_without_a_run_of_ours_have_none(table_rows):
    assert all(row.ours is None for row in table_rows)
