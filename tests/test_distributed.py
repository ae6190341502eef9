"""Two processes on one machine train as one does: the same batches shared out, the same weights, the same metrics."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
    "--trainer.max_epochs=2",
    "--trainer.limit_train_batches=5",
]


def fit(folder, *options):
    hps = Path(sys.executable).with_name("hps")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [hps, *FIT, *options], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    run = folder / "runs" / "squeezenet_v1_1-digits" / "version_0"
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    facts = json.loads((run / "benchmark.json").read_text())
    return checkpoint, facts, done.stdout + done.stderr


def test_two_processes_equal_one(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, one_facts, _ = fit(tmp_path / "one")
    two, two_facts, printed = fit(tmp_path / "two", "--trainer.devices=2", "--trainer.strategy=ddp")
    moved = one["optimizer_states"][0]["state"]
    assert max(state["momentum_buffer"].abs().max() for state in moved.values()) > 1e-3
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value, rtol=0, atol=2e-6)
    assert (two_facts["devices"], two_facts["batch_size"]) == (2, 32)
    assert two_facts["epochs"][0]["images"] == 5 * 32
    # 143 images validate, an odd number.
    for name, value in one_facts["metrics"]["final"].items():
        assert two_facts["metrics"]["final"][name] == pytest.approx(value, abs=1e-6), name
    assert "sync_dist" not in printed
