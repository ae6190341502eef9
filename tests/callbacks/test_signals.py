import os
import signal
from types import SimpleNamespace

import pytest
import torch

from hps_lightning.callbacks.signals import StopSignals


@pytest.fixture(autouse=True)
def handlers():
    # A shell's background jobs ignore the first.
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def trainer(received_sigterm=False, others=()):
    def reduce(number, reduce_op):
        assert reduce_op == "max"
        return max([number, *map(torch.tensor, others)])

    strategy = SimpleNamespace(root_device=torch.device("cpu"), reduce=reduce)
    return SimpleNamespace(received_sigterm=received_sigterm, world_size=1 + len(others), strategy=strategy)


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_ends_nothing(number, capfd):
    signals = StopSignals()
    signals.watch(trainer())
    assert signals.received(trainer()) == 0
    send(number)
    assert signals.received(trainer()) == number
    assert ("Ctrl+C again" in capfd.readouterr().err) == (number == signal.SIGINT)


def test_what_slurm_sends_before_the_end_is_noted(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    before = signal.getsignal(signal.SIGUSR1)
    try:
        signals = StopSignals()
        signals.watch(trainer())
        send(signal.SIGUSR1)
        assert signals.received(trainer()) == signal.SIGUSR1
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_second_ctrl_c_ends_at_once(capfd):
    signals = StopSignals()
    signals.watch(trainer())
    send(signal.SIGTERM)
    send(signal.SIGINT)
    send(signal.SIGTERM)
    assert signals.received(trainer()) == signal.SIGTERM, "the first one counts"
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
    signals.watch(trainer())
    assert signals.received(trainer()) == 0


def test_what_is_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signals = StopSignals()
    signals.watch(trainer())
    send(signal.SIGINT)
    assert signals.received(trainer()) == 0


def test_one_that_came_before_is_not_forgotten():
    signals = StopSignals()
    signals.watch(trainer(received_sigterm=True))
    assert signals.received(trainer()) == signal.SIGTERM


def test_processes_agree():
    signals = StopSignals()
    signals.watch(trainer())
    assert signals.received(trainer(others=(0, 0))) == 0
    assert signals.received(trainer(others=(0, signal.SIGTERM))) == signal.SIGTERM
