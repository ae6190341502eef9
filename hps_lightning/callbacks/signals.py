"""The signals that end a training: Ctrl+C, and what `kill`, SLURM and other schedulers send."""

import os
import signal
import threading
from types import FrameType

import torch
from lightning.pytorch import Trainer

from hps_lightning.scheduler_signals import schedulers_signals

_NOTICE = b"\nhps: stopping where the training can go on from; Ctrl+C again ends it at once.\n"


class StopSignals:
    """Notes SIGINT and a scheduler's signals, so that a training can end between two steps instead of in one's middle.

    A second Ctrl+C ends the process at once. A signal that the process ignores stays ignored.
    """

    def __init__(self) -> None:
        self._received = 0
        self._interrupts = 0

    def watch(self, trainer: Trainer) -> None:
        """Begins to note them. Lightning puts the earlier handlers back when a training ends."""
        # Lightning itself has noted it since the training began, and would end it with a traceback.
        self._received = signal.SIGTERM if trainer.received_sigterm else 0
        self._interrupts = 0
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, *schedulers_signals()):
            handler = signal.getsignal(number)
            # SIGUSR1 may be somebody's already, such as Lightning's own way of requeuing a job.
            taken = number not in (signal.SIGINT, signal.SIGTERM) and handler is not signal.SIG_DFL
            if handler is not signal.SIG_IGN and not taken:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = self._received or number
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt
            # Not print, which fails where the signal comes in the middle of another.
            os.write(2, _NOTICE)

    def received(self, trainer: Trainer) -> int:
        """The signal that any of the processes that train together has got; 0 if there is none."""
        if trainer.world_size == 1:
            return self._received
        # They have to end in the same step.
        number = torch.tensor(self._received, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(number, reduce_op="max"))
