"""Trainings that torchrun or SLURM starts again: the same command goes on with the run that it began.

Both start a job's processes anew with the same arguments, and say so in their environment. A run
says in ``job.json`` which job and command it is of, so that a restart finds it; a command that is
typed again is another job, and begins another run.
"""

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch import Callback, LightningModule, Trainer

from hps_lightning.callbacks.run_directory import run_directory
from hps_lightning.errors import UserError
from hps_lightning.files import write_text
from hps_lightning.runs import Run

JOB_FILE = "job.json"

_PATIENCE = timedelta(minutes=5)


@dataclass(frozen=True)
class Job:
    """What a scheduler calls the job that this process is part of.

    Attributes:
        name: the same after each restart, and no other job's.
        restarted: whether the scheduler has started it before, or may have.
    """

    name: str
    restarted: bool

    @classmethod
    def current(cls) -> "Job | None":
        """That of this process, or None without a scheduler that starts jobs again.

        Raises:
            UserError: torchrun is to start it again on several hosts, and was not told what to call it, or keeps what
                dead processes have left.
        """
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        slurm = os.environ.get("SLURM_JOB_ID")
        if slurm:
            requeued = os.environ.get("SLURM_RESTART_COUNT") or "0"
            cluster = os.environ.get("SLURM_CLUSTER_NAME", "")
            return cls(f"slurm {cluster} {slurm}", (attempt, requeued) != ("0", "0"))
        name = os.environ.get("TORCHELASTIC_RUN_ID")
        if not name:
            return None
        several = _restarts_on_several_hosts()
        if several and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            raise UserError(
                "torchrun --max-restarts on several hosts leaves to the new processes what the dead ones told each "
                "other; start it on each host with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun ..."
            )
        if name == "none":
            if several:
                raise UserError(
                    "torchrun --max-restarts on several hosts needs --rdzv_id NAME, a name that no other job has, so "
                    "that all of them find the training again."
                )
            # The folder of this torchrun's logs is its own, and has one of each attempt.
            logs = os.environ.get("TORCHELASTIC_ERROR_FILE", "").split(f"{os.sep}attempt_")[0]
            name = f"none {socket.gethostname()} {logs}"
        # Each host counts for itself, and not where another one's processes have died: the count may be 0 here.
        return cls(f"torchrun {name}", several or attempt != "0")

    def find_run(self, network: Path, command: Sequence[str]) -> Run | None:
        """The newest run that this job has begun by this command, or None.

        Args:
            network: the folder of a network's runs, ``runs/NAME``.
            command: the arguments of `hps fit`, as typed.
        """
        found: list[tuple[int, Path]] = []
        for file in network.glob(f"version_*/{JOB_FILE}"):
            try:
                content = json.loads(file.read_text(encoding="utf-8"))
                written = file.stat().st_mtime_ns
            except (OSError, ValueError):
                continue
            if content == self._described(command):
                found.append((written, file.parent))
        if not found:
            return None
        return Run(network.parent, network.name, max(found)[1].name)

    def _described(self, command: Sequence[str]) -> dict[str, object]:
        return {"job": self.name, "command": list(command)}


def _restarts_on_several_hosts() -> bool:
    """Whether torchrun may start this process again together with those of other hosts."""
    several = os.environ.get("GROUP_WORLD_SIZE", "1") != "1"
    return several and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"


class JobRecord(Callback):
    """Says in a run's folder which job it is of.

    Args:
        job: the scheduler's.
        command: the arguments of `hps fit`, as typed.
        checkpoint: what this process goes on from, or None.
    """

    def __init__(self, job: Job, command: Sequence[str], checkpoint: Path | None) -> None:
        self.job = job
        self.command = list(command)
        self.checkpoint = checkpoint

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the file.

        Raises:
            UserError: the processes do not go on from the same checkpoint.
        """
        if stage != "fit" or trainer.fast_dev_run:
            return
        mine = None if self.checkpoint is None else str(self.checkpoint)
        first = trainer.strategy.broadcast(mine)
        if first != mine:
            raise UserError(
                f"Rank 0 goes on from {first or 'the start'}, rank {trainer.global_rank} from {mine or 'the start'}: "
                "the folder of the runs must be one that all hosts share."
            )
        folder = run_directory(trainer)
        if folder is None or "://" in folder or not trainer.is_global_zero:
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_text(Path(folder, JOB_FILE), json.dumps(self.job._described(self.command)) + "\n")


def meet_anew() -> dist.Store | None:
    """Has the processes that torchrun has started again meet at a place of their own.

    torchrun's own store outlives them, with what the dead ones left there: the new ones would call those up, fail, or
    wait for ever (pytorch/pytorch#135712; seen with gloo in PyTorch 2.14).

    Returns:
        What torchrun's store holds of this attempt; None where this is the first one, or the store is rank 0's.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.PrefixStore(f"hps/attempt_{attempt}", dist.TCPStore(host, port, is_master=False, timeout=_PATIENCE))
    if os.environ["RANK"] == "0":
        store.set("port", str(find_free_network_port()))
    os.environ["MASTER_PORT"] = store.get("port").decode()
    # Rank 0 serves there itself.
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    return store
