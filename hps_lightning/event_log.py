"""TensorBoard's event files, written so that a full disk neither ends a training nor spoils the file."""

import contextlib
import io
import itertools
import os
import socket
import time
from collections import deque
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import FileWriter, SummaryWriter

from hps_lightning.errors import say_trouble
from hps_lightning.files import replaced_whole

_FLUSH_SECONDS = 1.0
_FLUSH_BYTES = 1 << 16
_KEPT_BYTES = 1 << 26

_NUMBERS = itertools.count()


def tensorboards(trainer: Trainer) -> list[TensorBoardLogger]:
    """The loggers of a training that write for TensorBoard."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


class SteadyTensorBoardLogger(TensorBoardLogger):
    """Lightning's TensorBoard logger, except that a disk that takes nothing does not end the training.

    What cannot be written is kept in memory, up to 64 MB, and written as soon as that is possible.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        """What writes the summaries."""
        if self._experiment is None:
            self._experiment = _Summaries(log_dir=self.log_dir, **self._kwargs)
        return self._experiment

    @rank_zero_only
    def save(self) -> None:
        """Writes what is still in memory, and the hyper-parameters where that is possible."""
        self.experiment.flush()
        path = Path(self.log_dir) / self.NAME_HPARAMS_FILE
        if path.parent.is_dir() and not path.is_file():
            # The event file says itself where it cannot be written; there is nothing else to do for this one.
            with contextlib.suppress(OSError), replaced_whole(path) as aside:
                save_hparams_to_yaml(aside, self.hparams)


class EventFile:
    """An event file, with the methods of TensorBoard's ``EventFileWriter``, whose place it takes.

    TensorBoard's own leaves part of an event where the disk is full, behind which readers find
    nothing more, and raises the error at some later event.

    Args:
        folder: where the file is made, with the first event that is written.
        suffix: of its name.
    """

    def __init__(self, folder: Path, suffix: str = "") -> None:
        self._folder, self._suffix = folder, suffix
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._written = 0.0
        self._troubled = False
        self._open()

    def _open(self) -> None:
        # As TensorBoard and its readers have it, which take files in the order of their names: the last part keeps
        # those of one second and process apart, and in order.
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS):06d}"
        self.path = self._folder / (name + self._suffix)
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def get_logdir(self) -> str:
        """The folder."""
        return str(self._folder)

    def add_event(self, event: Event) -> None:
        """Takes an event, which is written soon, together with others, or when flushed."""
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        self._waiting.append(record.getvalue())
        self._bytes += len(self._waiting[-1])
        if self._bytes > _FLUSH_BYTES or time.monotonic() - self._written > _FLUSH_SECONDS:
            self.flush()
        while self._bytes > _KEPT_BYTES:
            self._bytes -= len(self._waiting.popleft())

    def flush(self) -> None:
        """Writes all events that wait, whole, or leaves them waiting."""
        if not self._waiting:
            return
        self._written = time.monotonic()
        try:
            self._append(b"".join(self._waiting))
        except OSError as error:
            if not self._troubled:
                self._troubled = True
                say_trouble(
                    f"{self.path} cannot be written: {error.strerror or error}. The training goes on; TensorBoard "
                    "shows the rest if it can be written before the end."
                )
            return
        self._troubled = False
        self._waiting.clear()
        self._bytes = 0

    def _append(self, content: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab", buffering=0) as file:
            before = file.tell()
            try:
                written = 0
                while written < len(content):
                    written += file.write(content[written:])
            except OSError:
                # Half an event would hide all later ones.
                file.truncate(before)
                raise

    def close(self) -> None:
        """Writes what waits."""
        self.flush()

    def reopen(self) -> None:
        """Starts another file."""
        self._open()


class _Summaries(SummaryWriter):
    def _get_file_writer(self) -> FileWriter:
        if self.file_writer is None:
            self.file_writer = _EventFiles(Path(self.log_dir), self.filename_suffix)
            self.all_writers = {self.file_writer.get_logdir(): self.file_writer}
            if self.purge_step is not None:
                step, self.purge_step = self.purge_step, None
                self.file_writer.add_event(Event(file_version="brain.Event:2"), step)
                self.file_writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step)
        return self.file_writer


class _EventFiles(FileWriter):
    def __init__(self, folder: Path, suffix: str) -> None:
        # Not that of the superclass, which would open a file.
        self.event_writer: Any = EventFile(folder, suffix)
