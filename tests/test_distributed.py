"""Two processes on one machine train as one does and end together; torchrun starts them again where they stopped."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from hps_lightning.checkpoint import write_whole
from hps_lightning.data import ImageDataModule
from hps_lightning.modules import RECORD_KEY, HPSClassifier
from tests.cli.conftest import UNSEEN

pytestmark = pytest.mark.train

# A network without batch norm, whose statistics are those of each process's share, and images that
# nothing random changes: what is left to differ is the order of sums.
FIT = [
    "fit",
    "--model=squeezenet_v1_1",
    "--model.dropout=0",
    "--data.dataset=digits",
    "--data.batch_size=32",
    "--data.augmentation.flip=false",
    "--data.augmentation.crop_padding=0",
    "--optimizer=SGD",
    "--optimizer.lr=0.05",
    "--trainer.accelerator=cpu",
    "--trainer.precision=32-true",
    "--trainer.max_epochs=3",
    "--trainer.limit_train_batches=3",
    *UNSEEN,
]


HPS = Path(sys.executable).with_name("hps")
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]
CHECKPOINT = Path("runs", "squeezenet_v1_1-digits", "version_0", "checkpoints", "last.ckpt")


def run(folder, command):
    """Runs a command until none of its processes holds its output any more; they have a minute times ten for it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, complaints = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, printed, complaints


def fit(folder, *options):
    """Trains to the end; returns the checkpoint, what was measured, and the output."""
    status, printed, complaints = run(folder, [HPS, *FIT, *options])
    assert status == 0, complaints
    checkpoint = torch.load(folder / CHECKPOINT, weights_only=True)
    facts = json.loads((folder / CHECKPOINT.parents[1] / "benchmark.json").read_text())
    return checkpoint, facts, printed + complaints


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A training of two processes that nothing interrupts."""
    return fit(tmp_path_factory.mktemp("two"), *TWO)


def test_two_processes_equal_one(tmp_path, two):
    one, one_facts, _ = fit(tmp_path)
    two, two_facts, printed = two
    moved = one["optimizer_states"][0]["state"]
    assert max(state["momentum_buffer"].abs().max() for state in moved.values()) > 1e-3
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value, rtol=0, atol=2e-6)
    assert (two_facts["devices"], two_facts["batch_size"]) == (2, 32)
    assert two_facts["epochs"][0]["images"] == 3 * 32
    assert "val/accuracy" in one_facts["metrics"]["final"]
    # 143 images validate, an odd number.
    for name, value in one_facts["metrics"]["final"].items():
        assert two_facts["metrics"]["final"][name] == pytest.approx(value, abs=1e-6), name
    assert "sync_dist" not in printed


def test_a_run_for_development_ends(tmp_path):
    status, printed, complaints = run(tmp_path, [HPS, *FIT, *TWO, "--trainer.fast_dev_run=true"])
    assert status == 0, complaints
    assert "train/accuracy" in printed


def dying(rank, epoch, how="SIGKILL", attempt=0):
    """The options that let a process die."""
    values = {"rank": rank, "epoch": epoch, "how": how, "attempt": attempt}
    return [
        "--trainer.callbacks+=tests.dying.Die",
        *(f"--trainer.callbacks.{name}={value}" for name, value in values.items()),
    ]


@pytest.mark.parametrize(
    ("rank", "how", "status", "reason"),
    [
        (1, "SIGKILL", 2, "killed by signal 9 (SIGKILL, as the system does where memory runs out)"),
        (0, "SIGKILL", -9, "its process has gone without a word, as one that was killed"),
        (1, "no room for 3 GiB", 2, "MemoryError: no room for 3 GiB"),
    ],
)
def test_a_process_that_dies_ends_the_others_with_its_reason(tmp_path, tally, rank, how, status, reason):
    ended, _, complaints = run(tmp_path, [HPS, *FIT, *TWO, *dying(rank, 1, how)])
    assert ended == status
    errors = [line for line in complaints.splitlines() if line.startswith("hps: error:")]
    assert errors == [
        f"hps: error: rank {rank} has died: {reason}. All processes of the training end. "
        f"It can go on: hps fit --ckpt_path {CHECKPOINT}"
    ]
    # Who dies of an exception says where; who only lost the connection does not.
    assert complaints.count("Traceback") == (how != "SIGKILL")
    assert "gloo" not in complaints
    assert (tmp_path / CHECKPOINT).is_file()
    tally("kills survived")


def test_torchrun_starts_a_training_again_where_it_stopped(tmp_path, tally, two):
    torchrun = [HPS.with_name("torchrun"), "--nproc_per_node=2", "--max-restarts=3", "--no-python"]
    # A port that is free, and no --rdzv_id.
    torchrun += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
    deaths = [*dying(1, 1), *dying(0, 2, "no room for 3 GiB", attempt=1)]
    # Without being told, it has as many devices as processes.
    status, printed, complaints = run(tmp_path, [*torchrun, HPS, *FIT, *deaths])
    assert status == 0, complaints
    assert "failed (exitcode: -9) local_rank: 1" in complaints
    assert "MemoryError: no room for 3 GiB" in complaints
    # Both processes of both restarts say what they go on from.
    assert printed.count(f"Continuing {CHECKPOINT} exactly where it stopped.") == 4
    assert len(list((tmp_path / "runs").glob("*/*"))) == 1
    whole, killed = two[0], torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert (killed["epoch"], killed["global_step"]) == (2, 9)
    for name, value in whole["state_dict"].items():
        assert torch.equal(killed["state_dict"][name], value), name
    momenta = [each["optimizer_states"][0]["state"] for each in (whole, killed)]
    for index, state in momenta[0].items():
        assert torch.equal(momenta[1][index]["momentum_buffer"], state["momentum_buffer"])
    tally("kills survived", 2)


def test_processes_that_would_each_do_the_same_are_refused(tmp_path):
    torchrun = [HPS.with_name("torchrun"), "--standalone", "--nproc_per_node=2", "--no-python"]
    status, _, complaints = run(tmp_path, [*torchrun, HPS, *FIT, "--trainer.devices=1"])
    assert status != 0
    assert "hps: error: torchrun has started 2 processes, and this command is for 1. Start as many, or" in complaints
    assert list(tmp_path.iterdir()) == []


def test_what_keeps_a_state_goes_on_in_both_processes_after_a_signal_to_one(tmp_path):
    """Batch norm, averaged weights, a teacher and a schedule: what each rank must have alike."""
    teacher = HPSClassifier(stages=[1, 1, 1, 1], width=0.1)
    data = ImageDataModule("digits")
    record = {**teacher.record(), **data.record()}
    write_whole({"state_dict": teacher.state_dict(), RECORD_KEY: record}, tmp_path / "teacher.ckpt")
    command = [HPS, "fit", "--model=hps", "--model.width=0.2", "--model.dropout=0.2", "--data.dataset=digits"]
    command += ["--data.batch_size=32", "--trainer.accelerator=cpu", "--trainer.limit_train_batches=4"]
    command += ["--trainer.max_epochs=2", "--lr_scheduler=OneCycleLR", *UNSEEN, *TWO]
    command += ["--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks+=Distillation"]
    command += [f"--trainer.callbacks.teacher={tmp_path / 'teacher.ckpt'}"]
    states = []
    for name, further in (("whole", []), ("parts", dying(1, 1, "SIGTERM"))):
        (tmp_path / name).mkdir()
        status, printed, complaints = run(tmp_path / name, [*command, *further])
        folder = Path("runs", "hps-digits", "version_0")
        last = folder / "checkpoints" / "last.ckpt"
        if further:
            assert status == 128 + signal.SIGTERM, complaints
            assert "interrupted by SIGTERM in epoch 2 of 2" in printed
            # It would interrupt once more.
            path = tmp_path / name / folder / "config.yaml"
            config = yaml.safe_load(path.read_text())
            config["trainer"]["callbacks"] = [
                callback for callback in config["trainer"]["callbacks"] if "Die" not in callback["class_path"]
            ]
            path.write_text(yaml.safe_dump(config))
            status, printed, complaints = run(tmp_path / name, [HPS, "fit", f"--ckpt_path={last}"])
        assert status == 0, complaints
        states.append(torch.load(tmp_path / name / last, weights_only=True))
    whole, parts = states
    assert whole["global_step"] == parts["global_step"] == 8
    for name, value in whole["state_dict"].items():
        assert torch.equal(parts["state_dict"][name], value), name
