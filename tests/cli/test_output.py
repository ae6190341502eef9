import contextlib
import io

import pytest
from rich.console import Console

from hps_lightning.cli.output import SteadyOutput, steady_output
from tests.disks import NEEDS_FULL_DEVICE


@NEEDS_FULL_DEVICE
def test_a_full_disk_is_not_noticed(monkeypatch):
    full = open("/dev/full", "w", encoding="utf-8", buffering=1)  # noqa: SIM115 (what waits cannot be written)
    try:
        with pytest.raises(OSError, match="No space left"):
            print("lost", file=full)
        monkeypatch.setattr("sys.stdout", full)
        with steady_output():
            print("x" * 100_000, flush=True)
            Console().print("a table")
    finally:
        with contextlib.suppress(OSError):
            full.close()


def test_everything_else_is(monkeypatch):
    class Pipe(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        print("x", file=SteadyOutput(Pipe()))
    stream = io.StringIO()
    print("x", file=SteadyOutput(stream))
    assert stream.getvalue() == "x\n"
    assert not SteadyOutput(stream).isatty()
