"""The process of one trial: a run of `hps fit` that tells its worker how it goes, and stops when told to."""

import multiprocessing.connection
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.utilities import rank_zero_only

from hps_lightning.checkpoint_io import UnwrittenCheckpointsError
from hps_lightning.cli.hps_cli import HPSCLI
from hps_lightning.cli.lightning import run_cli
from hps_lightning.errors import DivergedError, UserError
from hps_lightning.explore.measure import network_costs
from hps_lightning.explore.quantities import ERROR
from hps_lightning.files import DISK_ERRORS

_METRIC = "val/accuracy"

# By which Lightning finds out that a process is one of several.
_JOB_VARIABLE = re.compile(
    r"(SLURM_.*|TORCHELASTIC_.*|RANK|LOCAL_RANK|GROUP_RANK|NODE_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE)$"
)


class _DeclinedError(Exception):
    """The worker does not want the network that it was told of."""


class Correspondent(Callback):
    """Tells a worker of the network before it is trained, and of the error after each epoch.

    Messages are pairs of a name and content; each is answered with whether to go on:

    - ``network``: ``epochs`` (of the whole training) and ``costs`` (None if they are known);
    - ``epoch``: its number, counted from 0, and the error.

    Args:
        connection: to the worker.
        measured: what of the network's costs is needed; None for nothing.
    """

    def __init__(self, connection: multiprocessing.connection.Connection, measured: Collection[str] | None) -> None:
        self._connection = connection
        self._measured = measured

    def _ask(self, name: str, content: Any) -> bool:
        try:
            self._connection.send((name, content))
            return self._connection.recv()
        except (EOFError, ConnectionError):
            # The worker wants no more of it.
            raise SystemExit(1) from None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what would choose by test images, and asks whether the network is wanted."""
        if stage != "fit":
            return
        protocol = getattr(trainer.datamodule, "protocol", None)
        if protocol != "holdout":
            raise UserError(
                f"An exploration compares errors on the hold-out; under the protocol {protocol!r} "
                + ("it would choose by the test images." if protocol == "paper" else "nothing validates.")
                + " Use data.protocol holdout."
            )
        if not trainer.max_epochs or trainer.max_epochs < 1:
            raise UserError(f"A trial needs a number of epochs, got trainer.max_epochs {trainer.max_epochs}.")
        if trainer.check_val_every_n_epoch != 1 or not trainer.limit_val_batches:
            raise UserError(
                "A trial validates in every epoch: leave out trainer.check_val_every_n_epoch "
                f"{trainer.check_val_every_n_epoch} and trainer.limit_val_batches {trainer.limit_val_batches}."
            )
        ends = _ends_early(trainer)
        if ends:
            raise UserError(
                f"A trial trains for all its epochs, since errors are compared after the last: leave out {ends}. The "
                "study's `pruner` stops what is clearly worse than others."
            )
        costs = None
        if self._measured is not None:
            costs = network_costs(pl_module.network, pl_module.record(), self._measured)
        if not self._ask("network", {"epochs": trainer.max_epochs, "costs": costs}):
            raise _DeclinedError

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells the epoch's error; a training that is not to go on ends in the usual way, with all its files."""
        if _METRIC not in trainer.callback_metrics:
            raise UserError(f"No {_METRIC} was measured; a trial has to validate in every epoch.")
        error = 1 - float(trainer.callback_metrics[_METRIC])
        if not self._ask("epoch", {"epoch": trainer.current_epoch, ERROR: error}):
            trainer.should_stop = True


def _ends_early(trainer: Trainer) -> str | None:
    """What may end a training before its last epoch, as the user calls it."""
    for callback in trainer.callbacks:
        if isinstance(callback, EarlyStopping):
            return type(callback).__name__
        if isinstance(callback, Timer):
            return "trainer.max_time"
    return None if trainer.max_steps == -1 else f"trainer.max_steps {trainer.max_steps}"


class _TrialCLI(HPSCLI):
    """`hps fit` for one trial."""

    def before_instantiate_classes(self) -> None:
        """Refuses what would start further processes by the worker's own command line."""
        super().before_instantiate_classes()
        trainer = self.config[self.subcommand].trainer
        if trainer.devices == "auto":
            # Where SLURM has started the worker: it does not train along.
            trainer.devices = 1
        devices = trainer.devices
        named = devices if isinstance(devices, list) else [one for one in str(devices).split(",") if one.strip()]
        # A number alone counts devices; a list, or a number with a comma, names them.
        counts = not isinstance(devices, list) and "," not in str(devices)
        if len(named) > 1 or (counts and named != ["1"]):
            raise UserError(
                f"trainer.devices {devices}: a trial trains on one device. For several GPUs start as many workers, "
                "each with its own: CUDA_VISIBLE_DEVICES=0 hps explore ..., CUDA_VISIBLE_DEVICES=1 hps explore ..."
            )


def train(
    connection: multiprocessing.connection.Connection,
    argv: list[str],
    measured: Collection[str] | None,
    log: str | None,
    environment: Mapping[str, str],
    own: Sequence[str] = (),
) -> None:
    """Runs `hps fit` in a process of its own.

    The last message is ``done``, ``declined``, ``diverged`` or ``refused`` (with the error or the
    user's mistake as text), or ``failed`` (with any other error as text).

    Args:
        connection: to the worker; see :class:`Correspondent`.
        argv: the arguments of `hps fit`.
        measured: see :class:`Correspondent`.
        log: where the output goes; nowhere if None.
        environment: the worker's, since the process that made this one may have an older one.
        own: see ``run_cli``.
    """
    os.environ.clear()
    # Where torchrun or srun has started several workers, each trial still trains alone, and logs.
    os.environ.update({name: value for name, value in environment.items() if not _JOB_VARIABLE.match(name)})
    rank_zero_only.rank = 0
    # Ctrl+C reaches all processes of a terminal; the worker decides what becomes of its trial.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_worker, daemon=True).start()
    _redirect(log)
    try:
        run_cli("fit", argv, partial(_TrialCLI, callbacks=[Correspondent(connection, measured)]), own=own)
        last = ("done", None)
    except _DeclinedError:
        last = ("declined", None)
    except UnwrittenCheckpointsError as error:
        # No fault of its arguments, with which it would be tried again.
        last = ("failed", str(error))
    except DivergedError as error:
        last = ("diverged", str(error))
    except UserError as error:
        # What this machine lacks is no fault of the arguments either.
        cause = error.__cause__
        lacking = isinstance(cause, torch.OutOfMemoryError) or getattr(cause, "errno", None) in DISK_ERRORS
        last = ("failed" if lacking else "refused", str(error))
    except Exception as error:
        traceback.print_exc()
        text = str(error).strip()
        last = ("failed", f"{type(error).__name__}: {text.splitlines()[0] if text else 'no further word'}")
    sys.stdout.flush()
    connection.send(last)
    connection.close()


def _end_with_worker() -> None:
    # A worker that is killed takes its training along: another one may begin it again elsewhere.
    parent_process().join()
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def _redirect(log: str | None) -> None:
    target = os.devnull if log is None else log
    if log is not None:
        Path(log).parent.mkdir(parents=True, exist_ok=True)
    file = open(target, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (open until the process ends)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = file
