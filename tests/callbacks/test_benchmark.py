import json
import math
import platform
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from hps_lightning import complexity
from hps_lightning.callbacks import EpochLines, benchmark
from hps_lightning.callbacks.benchmark import Benchmark, EpochCost, _network_cost, summarise

from .tiny import ARGUMENTS, LIGHTNING_WARNINGS, RESUME_WARNING, TinyData, tiny, tiny_trainer

pytestmark = [*LIGHTNING_WARNINGS, pytest.mark.train]

TRAIN_STEP, VAL_STEP, CHECKPOINT = 1.0, 16.0, 256.0


class Clock:
    """Time that only steps and checkpoints take."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def spend(self, activity):
        self.now += {"train": TRAIN_STEP, "val": VAL_STEP}[activity]


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(benchmark, "perf_counter", clock)
    return clock


class SlowCheckpoint(ModelCheckpoint):
    def __init__(self, clock, **arguments):
        super().__init__(**arguments)
        self.clock = clock

    def _save_checkpoint(self, trainer, filepath):
        super()._save_checkpoint(trainer, filepath)
        self.clock.now += CHECKPOINT


class SlowStart(Callback):
    """Takes its time between the last training step and the validation, as starting workers does."""

    def __init__(self, clock):
        self.clock = clock

    def on_train_batch_end(self, trainer, *_):
        if trainer.is_last_batch:
            self.clock.now += CHECKPOINT


def report(folder: Path) -> dict:
    return json.loads((folder / "run" / "version_0" / "benchmark.json").read_text())


def test_training_time_excludes_validation_sanity_check_and_checkpoints(tmp_path, clock):
    checkpoint = SlowCheckpoint(clock, monitor="val/accuracy", save_top_k=-1, save_on_train_epoch_end=False)
    arguments = {"enable_checkpointing": True, "num_sanity_val_steps": 2}
    trainer = tiny_trainer(tmp_path, Benchmark(), SlowStart(clock), checkpoint, **arguments)
    trainer.fit(tiny(spend=clock.spend), datamodule=TinyData())
    assert clock.now > 6 * CHECKPOINT
    epochs = report(tmp_path)["epochs"]
    assert [epoch["epoch"] for epoch in epochs] == [0, 1, 2]
    for epoch in epochs:
        assert epoch["train_seconds"] == 3 * TRAIN_STEP
        assert epoch["val_seconds"] == 2 * VAL_STEP
        assert epoch["epoch_seconds"] == 3 * TRAIN_STEP + 2 * VAL_STEP
        assert epoch["images_per_second"] == 10 / (3 * TRAIN_STEP)


def test_validation_in_the_middle_of_an_epoch_is_kept_apart_too(tmp_path, clock):
    trainer = tiny_trainer(tmp_path, Benchmark(), val_check_interval=1, num_sanity_val_steps=0)
    trainer.fit(tiny(spend=clock.spend), datamodule=TinyData())
    for epoch in report(tmp_path)["epochs"]:
        assert (epoch["train_seconds"], epoch["val_seconds"]) == (3 * TRAIN_STEP, 3 * 2 * VAL_STEP)


def test_the_real_clock_keeps_training_and_validation_apart(tmp_path):
    def sleep_in_validation(activity):
        time.sleep(0.15 if activity == "val" else 0)

    trainer = tiny_trainer(tmp_path, Benchmark(), max_epochs=2)
    trainer.fit(tiny(spend=sleep_in_validation), datamodule=TinyData())
    for epoch in report(tmp_path)["epochs"]:
        assert epoch["val_seconds"] >= 0.3
        assert epoch["train_seconds"] > 0


@pytest.mark.parametrize(("limit", "images"), [(1.0, 10), (2, 8)])
def test_images_are_those_that_trained(tmp_path, limit, images):
    tiny_trainer(tmp_path, Benchmark(), max_epochs=1, limit_train_batches=limit).fit(tiny(), datamodule=TinyData())
    assert report(tmp_path)["epochs"][0]["images"] == images


def test_without_validation_there_is_no_validation_time(tmp_path, capsys):
    tiny_trainer(tmp_path, Benchmark(), max_epochs=2).fit(tiny(), datamodule=TinyData(protocol="full"))
    content = report(tmp_path)
    assert content["time"]["val_seconds"] is None
    assert content["time"]["epoch_seconds"] == content["time"]["train_seconds"] > 0
    assert content["metrics"]["best"] is None
    assert content["protocol"] == "full"
    assert "none" in capsys.readouterr().out


def test_times_reach_the_logger(tmp_path, clock):
    tiny_trainer(tmp_path, Benchmark()).fit(tiny(spend=clock.spend), datamodule=TinyData())
    events = EventAccumulator(str(tmp_path / "run" / "version_0")).Reload()
    expected = {
        "time/train_seconds": 3 * TRAIN_STEP,
        "time/val_seconds": 2 * VAL_STEP,
        "time/epoch_seconds": 3 * TRAIN_STEP + 2 * VAL_STEP,
        "time/images_per_second": 10 / (3 * TRAIN_STEP),
    }
    for name, value in expected.items():
        assert [event.value for event in events.Scalars(name)] == pytest.approx([value] * 3)


@RESUME_WARNING
@pytest.mark.parametrize(
    "arguments",
    [
        {"monitor": "val/accuracy", "save_top_k": -1, "save_on_train_epoch_end": False},
        {"save_top_k": -1, "save_on_train_epoch_end": True},
    ],
    ids=["saved after validation", "saved at the epoch's end"],
)
def test_a_resume_continues_the_count(tmp_path, clock, arguments):
    checkpoint = ModelCheckpoint(dirpath=tmp_path / "checkpoints", filename="{epoch}", **arguments)
    first = tiny_trainer(tmp_path, Benchmark(), checkpoint, max_epochs=3, enable_checkpointing=True)
    first.fit(tiny([0.3, 0.9, 0.6], clock.spend), datamodule=TinyData())

    # Epoch 2 is trained again, more slowly: the first time must not count.
    def slower(activity):
        clock.spend(activity)
        clock.spend(activity)

    second = tiny_trainer(tmp_path, Benchmark(), max_epochs=4)
    second.fit(
        tiny([0, 0, 0.7, 0.8], slower),
        datamodule=TinyData(),
        ckpt_path=str(tmp_path / "checkpoints" / "epoch=1.ckpt"),
        weights_only=True,
    )
    content = report(tmp_path)
    steps = [3, 3, 6, 6]
    assert [epoch["epoch"] for epoch in content["epochs"]] == [0, 1, 2, 3]
    assert [epoch["train_seconds"] for epoch in content["epochs"]] == [n * TRAIN_STEP for n in steps]
    assert [epoch["val_seconds"] for epoch in content["epochs"]] == [n / 3 * 2 * VAL_STEP for n in steps]
    assert [epoch["images"] for epoch in content["epochs"]] == [10] * 4
    assert [epoch["warm_up"] for epoch in content["epochs"]] == [True, False, True, False]
    assert content["metrics"]["best"] == {"epoch": 1, "val/accuracy": pytest.approx(0.9)}
    assert content["time"]["total_seconds"] == sum(epoch["epoch_seconds"] for epoch in content["epochs"])


@RESUME_WARNING
@pytest.mark.filterwarnings("ignore:.*resuming from a checkpoint that ended before the epoch ended")
def test_a_resume_in_the_middle_of_an_epoch_counts_both_parts(tmp_path, clock):
    checkpoint = ModelCheckpoint(
        dirpath=tmp_path / "checkpoints", filename="{step}", every_n_train_steps=1, save_top_k=-1
    )
    first = tiny_trainer(tmp_path, Benchmark(), checkpoint, max_epochs=1, enable_checkpointing=True)
    first.fit(tiny(spend=clock.spend), datamodule=TinyData())
    second = tiny_trainer(tmp_path, Benchmark(), max_epochs=1)
    second.fit(
        tiny(spend=clock.spend),
        datamodule=TinyData(),
        ckpt_path=str(tmp_path / "checkpoints" / "step=1.ckpt"),
        weights_only=True,
    )
    (epoch,) = report(tmp_path)["epochs"]
    assert (epoch["train_seconds"], epoch["val_seconds"]) == (3 * TRAIN_STEP, 2 * VAL_STEP)


@RESUME_WARNING
def test_a_resume_from_the_last_step_of_an_epoch_keeps_that_epoch(tmp_path, clock):
    checkpoint = ModelCheckpoint(dirpath=tmp_path / "checkpoints", filename="{step}", every_n_train_steps=3)
    first = tiny_trainer(tmp_path, Benchmark(), checkpoint, max_epochs=1, enable_checkpointing=True)
    first.fit(tiny(spend=clock.spend), datamodule=TinyData())
    second = tiny_trainer(tmp_path, Benchmark(), max_epochs=2)
    second.fit(
        tiny(spend=clock.spend),
        datamodule=TinyData(),
        ckpt_path=str(tmp_path / "checkpoints" / "step=3.ckpt"),
        weights_only=True,
    )
    epochs = report(tmp_path)["epochs"]
    assert [(epoch["epoch"], epoch["train_seconds"]) for epoch in epochs] == [(0, 3 * TRAIN_STEP), (1, 3 * TRAIN_STEP)]


def test_a_training_without_a_step_writes_nothing(tmp_path):
    module = tiny()
    module.on_train_batch_start = lambda batch, batch_idx: -1
    tiny_trainer(tmp_path, Benchmark(), max_epochs=1).fit(module, datamodule=TinyData())
    assert list(tmp_path.rglob("benchmark.json")) == []


@RESUME_WARNING
def test_resuming_a_finished_training_leaves_its_report(tmp_path):
    checkpoint = ModelCheckpoint(dirpath=tmp_path / "checkpoints", save_last=True)
    first = tiny_trainer(tmp_path, Benchmark(), checkpoint, max_epochs=1, enable_checkpointing=True)
    first.fit(tiny(), datamodule=TinyData())
    before = report(tmp_path)
    second = tiny_trainer(tmp_path, Benchmark(), max_epochs=1)
    second.fit(tiny(), datamodule=TinyData(), ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"), weights_only=True)
    assert report(tmp_path) == before
    assert before["metrics"]["final"]["val/accuracy"] >= 0


def test_one_callback_serves_two_trainings(tmp_path):
    callback = Benchmark()
    for epochs in (2, 1):
        tiny_trainer(tmp_path, callback, max_epochs=epochs).fit(tiny(), datamodule=TinyData())
        assert len(report(tmp_path)["epochs"]) == epochs


def test_report(tmp_path, capsys):
    module = tiny(scores=[0.2, 0.5, 0.4])
    tiny_trainer(tmp_path, Benchmark("costs.json")).fit(module, datamodule=TinyData())
    text = (tmp_path / "run" / "version_0" / "costs.json").read_text()
    content = json.loads(text, parse_constant=pytest.fail)
    network = module.network
    assert content["network"] == {
        "parameters": complexity.count_parameters(network),
        "macs": complexity.count_macs(network),
        "image_size": [3, 32, 32],
        "state_dict_bytes": complexity.state_dict_bytes(network),
        "module_bytes": complexity.module_bytes(network),
        "module_and_momentum_bytes": complexity.module_and_momentum_bytes(network),
    }
    assert content["model"]["class"] == "tests.callbacks.tiny.Tiny"
    assert ARGUMENTS.items() <= content["model"]["arguments"].items()
    assert (content["dataset"], content["protocol"], content["batch_size"]) == ("made", "holdout", 4)
    assert (content["devices"], content["precision"]) == (1, "32-true")
    assert content["time"]["epochs"] == 3
    assert content["time"]["epochs_counted"] == 2
    assert content["metrics"]["best"] == {"epoch": 1, "val/accuracy": pytest.approx(0.5)}
    assert content["metrics"]["final"]["val/accuracy"] == pytest.approx(0.4)
    assert content["metrics"]["final"]["train/loss"] > 0
    assert content["versions"]["torch"] == torch.__version__
    assert content["versions"]["python"] == platform.python_version()
    assert None not in content["versions"].values()
    assert content["hardware"]["cpu"]
    assert content["hardware"]["threads"] == torch.get_num_threads()
    assert content["hardware"]["gpu"] is None
    assert 50e6 < content["memory"]["process_peak_bytes"] < content["hardware"]["memory_bytes"]
    assert [path.name for path in (tmp_path / "run" / "version_0").glob(".*")] == []
    printed = capsys.readouterr().out
    assert f"{content['network']['parameters']:,}" in printed
    assert "50.00% in epoch 2" in printed


def test_an_earlier_epochs_validation_is_not_the_last_ones(tmp_path, capsys):
    trainer = tiny_trainer(tmp_path, Benchmark(), EpochLines(), check_val_every_n_epoch=2, enable_progress_bar=True)
    trainer.fit(tiny(), datamodule=TinyData())
    assert set(report(tmp_path)["metrics"]["final"]) == {"train/loss", "train/accuracy"}
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert ["val/accuracy" in line for line in lines] == [False, True, False]


def test_a_diverged_training_still_makes_valid_json(tmp_path):
    module = tiny()
    with torch.no_grad():
        module.network.classifier.weight.fill_(math.nan)
    tiny_trainer(tmp_path, Benchmark(), max_epochs=1).fit(module, datamodule=TinyData())
    text = (tmp_path / "run" / "version_0" / "benchmark.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["metrics"]["final"]["val/loss"] is None


def test_without_a_logger_the_file_lies_in_the_root(tmp_path):
    tiny_trainer(tmp_path, Benchmark(), max_epochs=1, logger=False).fit(tiny(), datamodule=TinyData())
    assert json.loads((tmp_path / "benchmark.json").read_text())["time"]["epochs_counted"] == 1


@pytest.mark.filterwarnings("ignore:.*was not found in the filesystem.*")
def test_a_fast_dev_run_writes_and_prints_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_trainer(tmp_path, Benchmark(), fast_dev_run=True).fit(tiny(), datamodule=TinyData())
    assert list(tmp_path.rglob("*.json")) == []
    assert "multiply-accumulates" not in capsys.readouterr().out


def test_a_report_that_cannot_be_written_costs_a_warning(tmp_path, capsys):
    (tmp_path / "run" / "version_0" / "benchmark.json").mkdir(parents=True)
    trainer = tiny_trainer(tmp_path, Benchmark(), max_epochs=1)
    with pytest.warns(UserWarning, match=r"could not be written to .*benchmark\.json"):
        trainer.fit(tiny(), datamodule=TinyData())
    assert "multiply-accumulates" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "run" / "version_0").glob(".*")] == []


def test_sizes_are_of_the_network_as_it_was_built(tmp_path):
    # Lightning trains with batch norms of another class where it is told to share their statistics.
    module = tiny()
    expected = _network_cost(module, {})
    module.network = nn.SyncBatchNorm.convert_sync_batchnorm(module.network)
    assert any(isinstance(norm, nn.SyncBatchNorm) for norm in module.network.modules())
    assert _network_cost(module, {}) == expected


def test_measuring_does_not_change_the_training(tmp_path):
    with_benchmark, without = tiny(), tiny()
    tiny_trainer(tmp_path, Benchmark()).fit(with_benchmark, datamodule=TinyData())
    tiny_trainer(tmp_path).fit(without, datamodule=TinyData())
    for name, value in without.network.state_dict().items():
        assert torch.equal(value, with_benchmark.network.state_dict()[name]), name


def test_summary_leaves_the_warm_up_out():
    epochs = [EpochCost(0, 50.0, 9.0, 100, warm_up=True)]
    assert summarise(epochs)["train_seconds"] == 50
    epochs += [EpochCost(epoch, seconds, None, 100) for epoch, seconds in ((1, 10.0), (2, 30.0), (3, 20.0))]
    epochs[3].val_seconds = 4.0
    assert summarise(epochs) == {
        "epochs": 4,
        "epochs_counted": 3,
        "train_seconds": 20.0,
        "val_seconds": 4.0,
        "epoch_seconds": 24.0,
        "images_per_second": 5.0,
        "total_seconds": 123.0,
    }
