"""Tests of what is said of names that nothing bears."""

import pytest

from hps_lightning.names import LONGEST, did_you_mean, near, no_name, no_network, shown

KNOWN = ("SGD", "Adam", "Adamax", "RMSprop")


@pytest.mark.parametrize(
    ("typed", "expected"), [("sgd", ["SGD"]), ("ADAMX", ["Adamax"]), ("rmsprob", ["RMSprop"]), ("zebra", [])]
)
def test_capitals_do_not_matter(typed, expected):
    assert near(typed, KNOWN) == expected


def test_the_most_alike_come_first():
    assert near("adama", KNOWN, most=3) == ["Adamax", "Adam"]
    assert near("adama", KNOWN, cutoff=0.9, most=3) == ["Adamax"]


def test_nothing_is_asked_where_nothing_is_near():
    assert did_you_mean("zebra", KNOWN) == ""
    assert did_you_mean("adem", KNOWN) == " Did you mean Adam?"


def test_the_last_part_of_a_path_is_compared():
    message = no_name("optimizer", "torch.optim.SDG", KNOWN)
    assert message == (
        "There is no optimizer called 'torch.optim.SDG'. Did you mean SGD? Known: SGD, Adam, Adamax, RMSprop."
    )


def test_networks_near_each_other_are_all_offered():
    message = no_network("hps_06", ["hps_06_1x", "hps_06_05x", "squeezenet_v1_1"])
    assert message.startswith("There is no network called 'hps_06'. Did you mean hps_06_1x or hps_06_05x? `hps models`")


def test_a_long_name_is_cut():
    assert shown("x" * LONGEST) == repr("x" * LONGEST)
    assert len(shown("x" * 10_000)) == LONGEST + 2
