import re

import pytest

from hps_lightning.modules import CLASSIFIERS
from hps_lightning.optim import SCHEDULES


def undocumented(text):
    """The options of a help text that say nothing but their type."""
    options = re.split(r"\n  (?=-)", text)[1:]
    return [
        option.split()[0]
        for option in options
        if re.match(r"\(type: |$", re.sub(r"^-\S.*?(  |\n)", "", option.replace("\r", ""), count=1).strip())
    ]


def test_the_check_itself_finds_an_option_without_help():
    text = (
        "options:\n  --a A  what a is (type: int)\n  --b B\n          (type: int, default: 1)\n  --c C      (type: x)"
    )
    assert undocumented(text) == ["--b", "--c"]


@pytest.mark.parametrize("command", ["fit", "predict"])
def test_every_argument_has_a_help_text(hps, command):
    status, out, _ = hps(command, "--help")
    assert status == 0
    assert "--data.protocol" in out
    assert undocumented(out) == []


@pytest.mark.parametrize("name", [classifier.__name__ for classifier in CLASSIFIERS.values()])
def test_every_argument_of_a_network_has_a_help_text(hps, name):
    status, out, _ = hps("fit", f"--model.help={name}")
    assert status == 0
    assert "--model.label_smoothing" in out
    assert undocumented(out) == []


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_every_argument_of_a_schedule_has_a_help_text(hps, name):
    status, out, _ = hps("fit", f"--lr_scheduler.help={name}")
    assert status == 0
    assert "--lr_scheduler." in out
    assert undocumented(out) == []


def test_help_without_a_command_shows_the_commands(hps):
    for argv in ([], ["--help"]):
        status, out, _ = hps(*argv)
        assert status == 0
        assert "hps fit --config hps.yaml" in out


def test_version(hps):
    assert hps("--version")[1].startswith("hps_lightning 0.")
