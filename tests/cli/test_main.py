"""Tests of how `hps` ends, whatever happens to its output."""

import importlib
import os
import subprocess
import sys

import pytest

from tests.disks import NEEDS_FULL_DEVICE


def run(argv, output):
    """Status and errors of `hps` that writes to a file descriptor, which Python buffers."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "hps_lightning", *argv]
    done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, env=environment, text=True, timeout=60)
    return done.returncode, done.stderr


@pytest.mark.parametrize("argv", [["--version"], ["help"], ["models", "--help"], ["models"]])
def test_a_reader_that_has_gone_is_no_error(argv):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert run(argv, writer) == (0, "")
    finally:
        os.close(writer)


@pytest.mark.parametrize("by_rich", [False, True])
@pytest.mark.parametrize(("command", "status"), [("models", 0), ("fit", 141), ("explore", 141)])
def test_a_training_whose_reader_has_gone_has_not_ended(monkeypatch, capsys, command, status, by_rich):
    # By name, since the package has the function of the same name.
    module = importlib.import_module("hps_lightning.cli.main")

    def gone(argv):
        try:
            raise BrokenPipeError
        except BrokenPipeError:
            if by_rich:
                raise SystemExit(1)  # noqa: B904 (as rich's Console.on_broken_pipe does)
            raise

    monkeypatch.setattr(module, "_run", gone)
    assert module.main([command]) == status
    assert (f"whoever read the output has gone; `hps {command}` has stopped" in capsys.readouterr().err) == (status > 0)


@NEEDS_FULL_DEVICE
def test_an_output_that_takes_nothing_is_one_error():
    with open("/dev/full", "w") as full:
        status, errors = run(["--version"], full)
    assert status == 2
    assert errors == "hps: error: the output cannot be written: No space left on device.\n"


def test_ctrl_c_has_a_status_of_its_own(monkeypatch, capsys):
    # By name, since the package has the function of the same name.
    module = importlib.import_module("hps_lightning.cli.main")

    def stop(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_run", stop)
    assert module.main(["models"]) == 130
    assert capsys.readouterr().err == "hps: interrupted\n"
