"""What a training prints, where the disk that takes it may fill up."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from hps_lightning.files import DISK_ERRORS


class SteadyOutput:
    """A text stream whose writer does not notice a full disk; what does not fit is missing.

    Args:
        stream: where the text goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes a text, or loses it."""
        with _unnoticed():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Writes what waits, or lets it wait."""
        with _unnoticed():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def steady_output() -> Iterator[None]:
    """Lets what is printed in a block get lost rather than end it, as in ``hps fit > log`` on a full disk."""
    with contextlib.redirect_stdout(SteadyOutput(sys.stdout)):
        yield


@contextlib.contextmanager
def _unnoticed() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
