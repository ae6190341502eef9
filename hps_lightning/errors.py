"""A user's mistake, as opposed to a fault of ours, and what goes wrong without ending anything."""

import contextlib
import signal
import sys


class UserError(Exception):
    """What the user gave cannot be used; the message names the value and the way out.

    The command line prints the message alone and ends with status 2.
    """


class DivergedError(UserError):
    """A training's loss or weights are no finite numbers any more; smaller steps are the way out."""


# Lightning ends a training orderly for a KeyboardInterrupt alone.
class TrainingStopped(KeyboardInterrupt):
    """A training has ended at a signal, after its state was saved.

    Attributes:
        signal: which one, such as ``signal.SIGTERM``.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)


def say_trouble(message: str) -> None:
    """Prints what went wrong beside the work, which goes on."""
    # Where the disk is full, so may be the file that takes our output.
    with contextlib.suppress(OSError):
        print(f"hps: warning: {message}", file=sys.stderr, flush=True)
