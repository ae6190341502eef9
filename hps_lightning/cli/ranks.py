"""Several processes that train one network: where one dies, all end within seconds, and say which one and why.

Lightning ends such a job too, but by SIGKILL and without a word, or with the traceback of a lost
connection; and a process whose launcher was killed may wait for it for half an hour, on a GPU.

Who dies tells the others why through the store that the processes met in, if it still can. What was
killed cannot: where this command has started the processes itself, it sees how they end, and they
see whether it is still there. torchrun and srun watch over theirs themselves.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from hps_lightning.callbacks.checkpoints import checkpoint_command, last_checkpoint
from hps_lightning.errors import UserError

GRACE = 5.0
"""Seconds that a process has to notice by itself that another one is gone; one that waits on a GPU never does."""

_PERIOD = 0.2
_END = 60.0
_LAUNCHER = "HPS_LAUNCHER"
_KEY = "hps/died"
# What torch.distributed's backends say; gloo raises plain RuntimeErrors.
_LOST = ("gloo", "connection closed by peer", "connection reset by peer", "nccl")


class RankError(UserError):
    """Another process of the training has died; the message says which one, why, and how to go on."""


class EndTogether(Callback):
    """Tells the other processes of a training why this one ends."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begins to watch whether the process that started this one lives."""
        _job.trainer = trainer
        if os.environ.get(_LAUNCHER) == str(os.getppid()):
            _job.watched = True
            threading.Thread(target=_watch_launcher, args=(os.getppid(),), name="launcher-watch", daemon=True).start()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves the reason in the store; a lost connection is none, and neither is a signal that reaches all."""
        if trainer.world_size > 1 and isinstance(exception, Exception) and not is_lost_connection(exception):
            with contextlib.suppress(Exception):
                _job.where().set(f"{_KEY}/{trainer.global_rank}", _reason(exception))


class _Job:
    """What this process knows of the others.

    Attributes:
        launcher: of those that it has started.
        trainer: the training.
        store: where they leave their reasons; None for that in which they have met.
        watched: whether the one that started it tells what has happened.
    """

    def __init__(self) -> None:
        self.launcher: WatchedLauncher | None = None
        self.trainer: Trainer | None = None
        self.store: dist.Store | None = None
        self.watched = False

    def where(self) -> dist.Store:
        """The store."""
        return self.store or dist.distributed_c10d._get_default_store()

    def reasons(self) -> dict[int, str]:
        """Those that have been left, by rank.

        Raises:
            Exception: the store is gone.
        """
        found: dict[int, str] = {}
        for rank in range(self.trainer.world_size if self.trainer is not None else 0):
            key = f"{_KEY}/{rank}"
            if self.where().check([key]):
                found[rank] = self.where().get(key).decode()
        return found


_job = _Job()


class WatchedLauncher(_SubprocessScriptLauncher):
    """Lightning's launcher, which says how a process that it has started has died."""

    def __init__(self, launcher: _SubprocessScriptLauncher) -> None:
        super().__init__(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)
        self._over = threading.Event()

    def launch(self, function: Any, *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        """Starts the others, then calls the function; as Lightning's, but for who watches."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            os.environ[_LAUNCHER] = str(os.getpid())
            self._call_children_scripts()
            _job.launcher = self
            threading.Thread(target=self._watch, name="rank-watch", daemon=True).start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def dead(self) -> dict[int, str]:
        """The processes that have ended other than well, by their rank, and how."""
        first = self.cluster_environment.node_rank() * self.num_processes + 1
        return {first + number: _ended(each) for number, each in enumerate(self.procs) if each.poll()}

    def _watch(self) -> None:
        while not self._over.wait(_PERIOD):
            # The connection tells the main thread sooner or later; on a GPU it may be too late.
            if self.dead() and not self._over.wait(GRACE):
                try:
                    message = _message(_died())
                except Exception:
                    message = _message(self.dead())
                self.end(wait=False)
                _end_process(message)

    def end(self, wait: bool) -> None:
        """Waits for the processes that this one has started, or ends them."""
        self._over.set()
        deadline = time.monotonic() + _END
        while wait and any(each.poll() is None for each in self.procs) and time.monotonic() < deadline:
            time.sleep(0.05)
        # SIGTERM reaches no process that waits in a collective.
        self.kill(signal.SIGKILL)
        for each in self.procs:
            with contextlib.suppress(subprocess.TimeoutExpired):
                each.wait(GRACE)


def watch(trainer: Trainer, store: dist.Store | None) -> None:
    """Has a trainer that starts its own processes watch over them.

    Args:
        trainer: before its training.
        store: one that outlives all processes, for their reasons; None for that in which they meet.
    """
    _job.store = store
    launcher = trainer.strategy.launcher
    if type(launcher) is _SubprocessScriptLauncher:
        trainer.strategy._launcher = WatchedLauncher(launcher)


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Leaves no process of a training behind, and none waiting, when this one ends.

    Raises:
        RankError: in place of a lost connection.
    """
    try:
        yield
    except BaseException as error:
        if not is_lost_connection(error):
            _end(wait=False)
            _tell_torchrun(error)
            raise
        died = _await_reason()
        _end(wait=False)
        raise RankError(_message(died, _reason(error))) from error
    _end(wait=True)


def is_lost_connection(error: BaseException) -> bool:
    """Whether an exception says no more than that another process no longer answers."""
    if isinstance(error, dist.DistError):
        return True
    return type(error) is RuntimeError and any(word in str(error).lower() for word in _LOST)


def _end(wait: bool) -> None:
    launcher, _job.launcher = _job.launcher, None
    if launcher is not None:
        launcher.end(wait)


def _tell_torchrun(error: BaseException) -> None:
    """Writes the reason where torchrun looks for it, and says it at the end of its output."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ and isinstance(error, Exception):
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)


def _await_reason() -> dict[int, str]:
    """The processes that have died and why, as soon as it is known; none where nobody can tell."""
    deadline = time.monotonic() + GRACE
    asks = not _job.watched
    died: dict[int, str] = {}
    while time.monotonic() < deadline:
        if asks:
            try:
                died = _died()
            except Exception:
                # It was rank 0's, which is gone; torch would complain each time.
                asks = False
        # Whoever has started this process is to see first who died first.
        if died and _job.launcher is not None:
            break
        time.sleep(_PERIOD)
    return died


def _died() -> dict[int, str]:
    dead = _job.launcher.dead() if _job.launcher is not None else {}
    return {**dead, **_job.reasons()}


def _message(died: dict[int, str], otherwise: str = "") -> str:
    who = "; ".join(f"rank {rank} has died: {reason.rstrip('.')}" for rank, reason in sorted(died.items()))
    who = who or f"another process of this training has died, or the connection to it is lost ({otherwise})"
    return f"{who}. All processes of the training end.{_way_out()}"


def _way_out() -> str:
    checkpoint = last_checkpoint(_job.trainer) if _job.trainer is not None else None
    if not checkpoint:
        return ""
    classifier = type(_job.trainer.lightning_module)
    return f" It can go on: {checkpoint_command('fit', os.path.relpath(checkpoint), classifier)}"


def _ended(process: subprocess.Popen[Any]) -> str:
    """How a process ended, in words."""
    status = process.returncode
    if status >= 0:
        return f"it ended with status {status}, for the reason that it has printed"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = "unknown"
    hint = ", as the system does where memory runs out" if -status == signal.SIGKILL else ""
    return f"killed by signal {-status} ({name}{hint})"


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    if isinstance(error, UserError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _watch_launcher(parent: int) -> None:
    """Ends this process when the one that started it, which is rank 0, is gone."""
    while os.getppid() == parent:
        time.sleep(_PERIOD)
    _end_process(_message({0: "its process has gone without a word, as one that was killed"}))


def _end_process(message: str) -> None:
    # The main thread may wait for an answer that never comes, in code that no exception reaches.
    with contextlib.suppress(OSError):
        print(f"hps: error: {message}", file=sys.stderr, flush=True)
    os._exit(2)
