"""How many processes torchrun or srun has started together, and whether a command is for as many."""

import os
import re

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

from hps_lightning.errors import UserError


def started_together() -> int:
    """How many processes a launcher, of whatever kind, says that it has started together with this one."""
    counts = (os.environ.get(name, "") for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"))
    return max((int(count) for count in counts if count.isdecimal()), default=1)


def started_here() -> int | None:
    """How many of them torchrun or srun has started on this host; None without either.

    A job of SLURM that calls `hps` without srun has started one.
    """
    if TorchElasticEnvironment.detect():
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if SLURMEnvironment.detect():
        # Such as 2(x3),1.
        tasks = re.match(r"\d+", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
        return int(tasks.group()) if tasks else 1
    return None


def check_processes(trainer: Trainer, command: str) -> None:
    """Refuses to run beside others that would each do the same.

    Args:
        trainer: of this process.
        command: of `hps`, which only in "fit" shares its work out.

    Raises:
        UserError: torchrun or srun has started more, or fewer, processes than the trainer's devices on all hosts.
    """
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, TorchElasticEnvironment):
        launcher, started = "torchrun has started", int(os.environ.get("WORLD_SIZE", "1"))
    elif isinstance(environment, SLURMEnvironment):
        asked = "SLURM_STEP_NUM_TASKS" in os.environ
        launcher = "srun has started" if asked else "In a job of SLURM, `hps` without srun is"
        started = int(os.environ["SLURM_STEP_NUM_TASKS"]) if asked else 1
    else:
        # Lightning starts them itself, or those of a plugin of the user's do.
        return
    planned = trainer.num_devices * trainer.num_nodes
    if started == planned:
        return
    way_out = (
        "Start as many, or say how many work on each host, and on how many hosts: --trainer.devices N "
        "--trainer.num_nodes M --trainer.strategy ddp."
        if command == "fit"
        else f"`hps {command}` works in one; start it once."
    )
    processes = f"{started} process{'es' * (started > 1)}"
    raise UserError(f"{launcher} {processes}, and this command is for {planned}. {way_out}")
