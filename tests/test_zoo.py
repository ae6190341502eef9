import re

import pytest
import torch
from torch import nn

from hps_lightning import paper, zoo
from hps_lightning.errors import UserError

NUM_CLASSES = {"cifar10": 10, "cifar100": 100}
CONFIGURED = [row for row in paper.results() if row.stages]
VERSIONED = [row for row in paper.results() if row.family == "squeezenet"]


def _name(row):
    return f"table {row.table}, {row.dataset}, {row.model}"


@pytest.mark.parametrize("row", CONFIGURED, ids=_name)
def test_every_printed_configuration_has_its_variant(row):
    (variant,) = [variant for variant in zoo.ZOO.values() if variant.paper_name == row.model]
    assert variant.family == row.family
    assert variant.arguments == {"stages": list(row.stages), "width": row.width}
    assert row.dataset in variant.datasets
    assert variant.published(row.dataset) == row


@pytest.mark.parametrize("row", VERSIONED, ids=_name)
def test_every_printed_version_has_its_variant(row):
    (variant,) = [variant for variant in zoo.ZOO.values() if variant.paper_name == row.model]
    assert variant.family == row.family
    assert variant.arguments == {"version": re.search(r"v(\d\.\d)$", row.model)[1].replace(".", "_")}
    published = variant.published(row.dataset)
    assert (published.model, published.dataset, published.accuracy) == (row.model, row.dataset, row.accuracy)


def test_the_lists_of_rows_are_not_empty():
    assert (len(CONFIGURED), len(VERSIONED)) == (18, 5)


def test_names_are_unique_and_fit_a_command_line():
    assert len(zoo.ZOO) == len(zoo._VARIANTS)
    for name, variant in zoo.ZOO.items():
        assert name == variant.name
        assert re.fullmatch(r"[a-z0-9_]+", name)


def test_no_two_variants_of_a_family_are_the_same_network():
    networks = [(variant.family, str(sorted(variant.arguments.items()))) for variant in zoo.ZOO.values()]
    assert len(set(networks)) == len(networks)


def test_hps_23_1x_is_the_network_of_table_5():
    assert zoo.find_variant("hps_23_1x").arguments == {"stages": [6, 6, 8, 1], "width": 1.0}


@pytest.mark.parametrize("variant", zoo.ZOO.values(), ids=lambda variant: variant.name)
def test_every_variant_builds_for_its_data_sets(variant):
    assert variant.datasets
    for dataset in variant.datasets:
        with torch.device("meta"):
            network = variant.build(NUM_CLASSES[dataset]).eval()
            assert network(torch.zeros(2, 3, 32, 32)).shape == (2, NUM_CLASSES[dataset])
        assert type(network) is zoo.FAMILIES[variant.family]


@pytest.mark.parametrize("variant", zoo.ZOO.values(), ids=lambda variant: variant.name)
def test_published_is_the_row_of_the_data_set_or_nothing(variant):
    for dataset in NUM_CLASSES:
        row = variant.published(dataset)
        printed = {row.model for row in paper.results() if row.dataset == dataset}
        if variant.paper_name in printed:
            assert (row.model, row.dataset) == (variant.paper_name, dataset)
        else:
            assert row is None


@pytest.mark.parametrize("variant", zoo.ZOO.values(), ids=lambda variant: variant.name)
def test_a_paper_name_is_printed_for_every_data_set_of_the_variant(variant):
    for dataset in variant.datasets if variant.paper_name else ():
        assert variant.published(dataset) is not None


def test_published_prefers_the_row_with_the_configuration():
    # Table 1 prints the same name without one, and comes first.
    assert zoo.find_variant("squeezenext_23_1x").published("cifar10").table == "2"
    assert zoo.find_variant("squeezenext_23_1x").published("cifar100").accuracy == 60.37


def test_a_variant_that_the_tables_do_not_list_says_what_it_rests_on():
    for name in ("squeezed_cnn", "mobilenet", "hps_23_1x", "modified_squeezenext_23_1x"):
        assert zoo.find_variant(name).note


def test_names_tell_depth_and_width():
    for variant in zoo.ZOO.values():
        if "stages" in variant.arguments:
            depth, width = re.search(r"_(\d\d)_(\d+)x", variant.name).groups()
            assert int(depth) == sum(variant.arguments["stages"]) + 2
            # Written without its point: 0575 is 0.575, 15 is 1.5.
            assert float(width[0] + "." + width[1:]) == variant.arguments["width"]


def test_every_family_has_a_variant():
    assert {variant.family for variant in zoo.ZOO.values()} == set(zoo.FAMILIES)


def test_overrides_replace_the_variant_s_arguments_for_one_network_alone():
    variant = zoo.find_variant("hps_06_05x")
    with torch.device("meta"):
        network = variant.build(7, width=0.25, activation="elu")
        assert network.stem.conv.out_channels == 16
        assert network.classifier.out_features == 7
        assert any(isinstance(module, nn.ELU) for module in network.modules())
        assert variant.build().stem.conv.out_channels == 32


@pytest.mark.parametrize(
    ("typed", "suggested"), [("hps_06_5x", "hps_06_05x"), ("hps_23x", "hps_23_1x"), ("squeezenet", "squeezenet_v1_0")]
)
def test_an_unknown_name_suggests_near_ones(typed, suggested):
    with pytest.raises(UserError, match=rf"{typed}'\. Did you mean .*\b{suggested}\b"):
        zoo.find_variant(typed)


def test_a_name_near_none_points_to_the_list():
    with pytest.raises(UserError, match=r"'zzz'\. `hps models` lists them"):
        zoo.find_variant("zzz")


@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_name_is_found(name):
    assert zoo.find_variant(name).name == name


@pytest.mark.parametrize("variant", zoo.ZOO.values(), ids=lambda variant: variant.name)
def test_a_network_s_arguments_give_its_name_whatever_else_they_hold(variant):
    assert zoo.find_name(variant.family, {**variant.arguments, "dropout": 0.3, "num_classes": 7}) == variant.name


def test_arguments_of_no_variant_have_no_name():
    assert zoo.find_name("hps", {"stages": [1, 1, 1, 1], "width": 0.51}) is None
    assert zoo.find_name("hps", {"stages": [1, 1, 1, 1], "width": 0.5, "resolution": 0.5}) is None
    assert zoo.find_name("hps", {"stages": [1, 1, 1, 1], "width": 0.5, "activation": "elu"}) is None
    assert zoo.find_name(None, {}) is None


@pytest.mark.parametrize(
    ("family", "arguments", "words"),
    [
        ("hps", {"stages": [1, 2, 8, 1], "width": 1.0, "dropout": 0.3}, "hps_14_1x"),
        ("hps", {"stages": [1, 2, 8, 1], "width": 4.0}, "hps_14_1x with width 4"),
        ("hps", {"stages": [1, 2, 8, 1], "width": 1.0, "activation": "elu"}, "hps"),
        ("hps", {"stages": [3, 3, 3, 3], "width": 4.0}, "hps"),
    ],
)
def test_a_network_is_described_by_its_name_and_another_width(family, arguments, words):
    assert zoo.describe(family, arguments) == words
