"""A job that SLURM or torchrun starts again: in one process; `tests/test_distributed.py` has torchrun itself."""

import json
import os
import signal

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback

from hps_lightning.cli.scheduler_jobs import JOB_FILE, Job, JobRecord, meet_anew
from hps_lightning.errors import UserError
from hps_lightning.runs import Run

from .conftest import TINY

VARIABLES = (
    *("GROUP_WORLD_SIZE", "TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_USE_AGENT_STORE"),
    *("MASTER_ADDR", "MASTER_PORT", "RANK"),
    *("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_CLUSTER_NAME"),
    *("SLURM_NTASKS", "SLURM_JOB_NAME", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"),
    *("SLURM_NTASKS_PER_NODE", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"),
    *("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_ERROR_FILE"),
)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return lambda **values: [monkeypatch.setenv(name, value) for name, value in values.items()]


def logs(name, attempt=0):
    return os.path.join("/tmp", "torchelastic_a", name, f"attempt_{attempt}", "0", "error.json")


def test_without_a_scheduler_there_is_no_job():
    assert Job.current() is None


@pytest.mark.parametrize(
    ("values", "restarted"),
    [
        ({"SLURM_JOB_ID": "7"}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "0"}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2"}, True),
        ({"TORCHELASTIC_RUN_ID": "mine", "TORCHELASTIC_RESTART_COUNT": "0"}, False),
        ({"TORCHELASTIC_RUN_ID": "mine", "TORCHELASTIC_RESTART_COUNT": "1"}, True),
        ({"SLURM_JOB_ID": "7", "TORCHELASTIC_RUN_ID": "mine", "TORCHELASTIC_RESTART_COUNT": "1"}, True),
    ],
)
def test_a_scheduler_says_whether_it_has_started_the_job_before(environment, values, restarted):
    environment(**values)
    assert Job.current().restarted == restarted


def test_a_job_has_one_name_in_all_its_attempts_and_no_other_job_has(environment):
    def name(**values):
        environment(**values)
        return Job.current().name

    torchrun = [
        name(TORCHELASTIC_RUN_ID="none", TORCHELASTIC_ERROR_FILE=logs(run, attempt), TORCHELASTIC_RESTART_COUNT=attempt)
        for run in ("none_x", "none_y")
        for attempt in "012"
    ]
    assert len(set(torchrun)) == 2
    assert len(set(torchrun[:3])) == 1
    names = [name(TORCHELASTIC_RUN_ID="mine"), name(SLURM_JOB_ID="7"), name(SLURM_JOB_ID="8"), *torchrun]
    assert len(set(names)) == 5


def test_on_several_hosts_torchrun_must_be_told_a_name(environment):
    environment(TORCHELASTIC_RUN_ID="none", GROUP_WORLD_SIZE="2", TORCHELASTIC_MAX_RESTARTS="3")
    with pytest.raises(UserError, match="needs --rdzv_id NAME"):
        Job.current()
    environment(TORCHELASTIC_RUN_ID="mine", TORCHELASTIC_USE_AGENT_STORE="True")
    with pytest.raises(UserError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun"):
        Job.current()
    environment(TORCHELASTIC_USE_AGENT_STORE="False")
    # Whose own processes have not died counts no restart.
    assert Job.current() == Job("torchrun mine", True)
    environment(TORCHELASTIC_RUN_ID="none", TORCHELASTIC_MAX_RESTARTS="0")
    assert not Job.current().restarted


def test_the_newest_run_of_the_same_job_and_command_is_found(tmp_path):
    network = tmp_path / "runs" / "net-data"
    mine, command = Job("slurm 7", True), ["--config", "x.yaml"]
    kept = [
        (0, mine.name, command),
        (1, mine.name, ["--config", "y.yaml"]),
        (2, mine.name, command),
        (3, "slurm 8", command),
    ]
    for number, name, arguments in kept:
        folder = network / f"version_{number}"
        folder.mkdir(parents=True)
        (folder / JOB_FILE).write_text(json.dumps({"job": name, "command": arguments}))
        os.utime(folder / JOB_FILE, (100 + number, 100 + number))
    (network / "version_4").mkdir()
    for number, damaged in ((5, "{"), (6, "[]"), (7, "\udcff")):
        (network / f"version_{number}").mkdir()
        (network / f"version_{number}" / JOB_FILE).write_text(damaged, errors="surrogateescape")
    assert mine.find_run(network, command) == Run(tmp_path / "runs", "net-data", "version_2")
    assert mine.find_run(network, ["--config", "z.yaml"]) is None
    assert mine.find_run(tmp_path / "nowhere", command) is None


class Strategy:
    def __init__(self, first):
        self.first = first

    def broadcast(self, value):
        return self.first


class Rank1:
    is_global_zero, global_rank, log_dir, fast_dev_run = False, 1, None, False

    def __init__(self, first):
        self.strategy = Strategy(first)


def test_processes_that_see_other_checkpoints_do_not_train_together(tmp_path):
    record = JobRecord(Job("slurm 7", True), [], None)
    record.setup(Rank1(None), None, "fit")
    record.setup(Rank1("runs/last.ckpt"), None, "test")
    with pytest.raises(UserError, match=r"Rank 0 goes on from runs/last.ckpt, rank 1 from the start: .* share"):
        record.setup(Rank1("runs/last.ckpt"), None, "fit")


def test_processes_that_are_started_again_meet_at_a_port_of_their_own(environment):
    torchrun = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    ports = set()
    for attempt in "012":
        environment(
            MASTER_ADDR="localhost",
            MASTER_PORT=str(torchrun.port),
            TORCHELASTIC_USE_AGENT_STORE="True",
            TORCHELASTIC_RESTART_COUNT=attempt,
        )
        met = []
        for rank in "01":
            environment(RANK=rank, MASTER_PORT=str(torchrun.port), TORCHELASTIC_USE_AGENT_STORE="True")
            meet_anew()
            met.append((os.environ["MASTER_PORT"], os.environ["TORCHELASTIC_USE_AGENT_STORE"]))
        assert met[0] == met[1]
        assert (met[0] == (str(torchrun.port), "True")) == (attempt == "0")
        ports.add(met[0][0])
    assert len(ports) == 3
    # Where torchrun keeps no store there is nothing to leave.
    environment(MASTER_PORT="7", TORCHELASTIC_USE_AGENT_STORE="False")
    meet_anew()
    assert os.environ["MASTER_PORT"] == "7"


FIT = ["fit", "--model=hps_06_05x", *TINY, "--trainer.max_epochs=3"]
RUNS = "runs/hps-digits"


def dying(epoch):
    # Options that add to a list are not to add again when the training goes on.
    return [
        "--trainer.callbacks+=tests.dying.Die",
        "--trainer.callbacks.rank=0",
        f"--trainer.callbacks.epoch={epoch}",
        "--trainer.callbacks.how=lost",
    ]


def versions(folder):
    return sorted(path.name for path in (folder / RUNS).iterdir())


def checkpoint(folder, version=0):
    return torch.load(folder / RUNS / f"version_{version}" / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.train
def test_lightnings_own_way_of_going_on_under_slurm_is_not_taken(hps, tmp_path, environment):
    environment(SLURM_JOB_ID="7", SLURM_NTASKS="1", SLURM_JOB_NAME="job", SLURM_PROCID="0", SLURM_LOCALID="0")
    environment(SLURM_NODEID="0")
    stray = tmp_path / "hpc_ckpt_1.ckpt"
    stray.write_bytes(b"of another training")
    status, _, err = hps(*FIT)
    assert status == 2
    assert "hpc_ckpt_1.ckpt lies where Lightning looks under SLURM" in err
    stray.unlink()
    before = signal.getsignal(signal.SIGUSR1)
    try:
        # It would save amid a step.
        status, _, err = hps(*FIT, "--trainer.callbacks+=tests.cli.test_scheduler_jobs.TimeIsUp")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert status == 128 + signal.SIGUSR1, err
    assert checkpoint(tmp_path)["global_step"] == 2
    assert not list(tmp_path.glob("hpc_ckpt*"))


class TimeIsUp(Callback):
    """Gets the signal of ``#SBATCH --signal=USR1@90`` in the second step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1:
            os.kill(os.getpid(), signal.SIGUSR1)


@pytest.mark.train
def test_a_requeued_job_goes_on_by_the_same_command(hps, tmp_path, environment):
    command = [*FIT, *dying(1)]
    environment(SLURM_JOB_ID="7")
    with pytest.raises(MemoryError):
        hps(*command)
    assert checkpoint(tmp_path)["epoch"] == 0
    environment(SLURM_RESTART_COUNT="1")
    status, out, err = hps(*command)
    assert status == 0, err
    assert f"Continuing {RUNS}/version_0/checkpoints/last.ckpt exactly where it stopped." in out
    assert versions(tmp_path) == ["version_0"]
    # Requeued once more after its end, it has nothing left to do.
    ended = checkpoint(tmp_path)
    status, out, err = hps(*command)
    assert status == 0, err
    assert versions(tmp_path) == ["version_0"]
    assert checkpoint(tmp_path)["global_step"] == ended["global_step"] == 6
    # Another command of the same job begins anew; here it does the same, uninterrupted.
    status, out, err = hps(*FIT)
    assert status == 0, err
    assert "Continuing" not in out
    assert versions(tmp_path) == ["version_0", "version_1"]
    for name, value in checkpoint(tmp_path, 1)["state_dict"].items():
        assert torch.equal(ended["state_dict"][name], value), name


@pytest.mark.train
def test_a_job_that_died_before_its_first_checkpoint_begins_anew_in_its_folder(hps, tmp_path, environment):
    command = [*FIT, *dying(0)]
    environment(TORCHELASTIC_RUN_ID="mine", TORCHELASTIC_RESTART_COUNT="0")
    with pytest.raises(MemoryError):
        hps(*command)
    assert not list(tmp_path.glob("**/*.ckpt"))
    environment(TORCHELASTIC_RESTART_COUNT="1")
    status, out, err = hps(*command)
    assert status == 0, err
    assert "Continuing" not in out
    assert versions(tmp_path) == ["version_0"]
    assert checkpoint(tmp_path)["epoch"] == 2


@pytest.mark.train
def test_who_names_a_checkpoint_decides_himself(hps, tmp_path, environment):
    environment(SLURM_JOB_ID="7", SLURM_RESTART_COUNT="1")
    for _ in range(2):
        status, _, err = hps(*FIT, "--trainer.max_epochs=1", "--ckpt_path=null")
        assert status == 0, err
    assert versions(tmp_path) == ["version_0", "version_1"]
