"""What torchrun and srun say of the processes that they start; `tests/test_distributed.py` has torchrun itself."""

from types import SimpleNamespace

import pytest
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

from hps_lightning.cli.launched import check_processes, started_here, started_together
from hps_lightning.errors import UserError

TORCHRUN = {"TORCHELASTIC_RUN_ID": "job", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
SRUN = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "job"}
SRUN |= {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}
# As a terminal on a node of a cluster has it, where Lightning starts the processes.
TERMINAL = {**SRUN, "SLURM_JOB_NAME": "bash", "SLURM_STEP_NUM_TASKS": "1"}


@pytest.fixture
def environment(monkeypatch):
    for name in {**TORCHRUN, **SRUN}:
        monkeypatch.delenv(name, raising=False)
    return lambda values: [monkeypatch.setenv(name, value) for name, value in values.items()]


@pytest.mark.parametrize(
    ("values", "together", "here"), [({}, 1, None), (TORCHRUN, 4, 2), (SRUN, 4, 2), (TERMINAL, 1, None)]
)
def test_what_a_launcher_says(environment, values, together, here):
    environment(values)
    assert (started_together(), started_here()) == (together, here)


def test_a_job_that_calls_without_srun_is_one_process(environment):
    environment({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "job"})
    assert (started_together(), started_here()) == (1, 1)


def trainer(environment, devices, nodes=1):
    connector = SimpleNamespace(cluster_environment=environment)
    return SimpleNamespace(_accelerator_connector=connector, num_devices=devices, num_nodes=nodes)


@pytest.mark.parametrize(
    ("values", "kind", "launcher"),
    [(TORCHRUN, TorchElasticEnvironment, "torchrun"), (SRUN, SLURMEnvironment, "srun")],
)
def test_as_many_are_started_as_train_together(environment, values, kind, launcher):
    environment(values)
    check_processes(trainer(kind(), 2, nodes=2), "fit")
    with pytest.raises(UserError, match=rf"^{launcher} has started 4 processes, and .* is for 2\. .*devices N"):
        check_processes(trainer(kind(), 2), "fit")
    with pytest.raises(UserError, match=r"is for 1\. `hps test` works in one; start it once\."):
        check_processes(trainer(kind(), 1), "test")


def test_torchrun_in_an_allocation_of_slurm_counts_its_own(environment):
    environment({**TORCHRUN, **TERMINAL, "SLURM_STEP_NUM_TASKS": "8"})
    check_processes(trainer(TorchElasticEnvironment(), 4), "fit")


def test_a_job_that_calls_without_srun_cannot_share_the_work(environment):
    environment({"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NAME": "job"})
    check_processes(trainer(SLURMEnvironment(), 1), "fit")
    with pytest.raises(UserError, match="`hps` without srun is 1 process, and this command is for 4"):
        check_processes(trainer(SLURMEnvironment(), 4), "fit")


@pytest.mark.parametrize("values", [{}, SRUN])
def test_where_lightning_starts_them_nothing_is_asked(environment, values):
    environment(values)
    check_processes(trainer(LightningEnvironment(), 2, nodes=2), "fit")
