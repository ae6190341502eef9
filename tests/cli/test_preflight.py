"""Tests of what is found before a training has left anything on the disk."""

import warnings

import pytest

from hps_lightning.cli import preflight
from hps_lightning.errors import UserError
from tests.prepared import prepare

DIGITS = ["--model=hps", "--data.dataset=digits"]
STEPS = ["--lr_scheduler=OneCycleLR", "--lr_scheduler.max_lr=0.1"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--trainer.accumulate_grad_batches=0"], r"^trainer.accumulate_grad_batches must be at least 1, got 0\.$"),
        (["--trainer.check_val_every_n_epoch=0"], r"^trainer.check_val_every_n_epoch must be at least 1, got 0\.$"),
        (["--trainer.gradient_clip_val=-1"], r"^trainer.gradient_clip_val must be at least 0, got -1"),
        (["--trainer.gradient_clip_val=.nan"], r"^trainer.gradient_clip_val must be at least 0, got nan"),
        (["--trainer.devices=100000"], r"^trainer.devices must be at most 1024, got 100000\.$"),
        (
            ["--trainer.enable_checkpointing=false"],
            r"^trainer.enable_checkpointing false: .* writes checkpoints; ",
        ),
        (["--trainer.barebones=true"], r"^trainer.barebones true: .* writes checkpoints and logs; leave it out\.$"),
        (["--trainer.sync_batchnorm=true", "--trainer.accelerator=cpu"], r"^trainer.sync_batchnorm true: .* on cpu"),
        (
            ["--optimizer.fused=true", "--trainer.gradient_clip_val=1", "--trainer.precision=bf16-mixed"],
            r"^optimizer.fused true and trainer.gradient_clip_val 1(\.0)? do not go together under .* bf16-mixed",
        ),
        (
            [*STEPS, "--trainer.callbacks+=GradientAccumulationScheduler", "--trainer.callbacks.scheduling={4: 2}"],
            r"^GradientAccumulationScheduler changes .* over which OneCycleLR is laid out\.",
        ),
        (
            ["--lr_scheduler=ReduceLROnPlateau", "--lr_scheduler.monitor=val/los"],
            r"^lr_scheduler: monitor 'val/los' is nothing that this training logs; .*val/loss",
        ),
        (
            ["--best_checkpoint.monitor=val/loss"],
            r"^best_checkpoint: a val/loss is better where it is smaller, but mode is max; set mode to min\.$",
        ),
        (
            ["--lr_scheduler=ReduceLROnPlateau", "--lr_scheduler.monitor=val/accuracy"],
            r"^lr_scheduler: a val/accuracy is better where it is greater, but mode is min; set mode to max\.$",
        ),
        (
            ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/top5"],
            r"^EarlyStopping: a val/top5 is better where it is greater, but mode is min",
        ),
        (["--best_checkpoint.monitor=val/acc"], r"^best_checkpoint: monitor 'val/acc' is nothing .* val/accuracy"),
        (
            ["--data.protocol=full", "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"],
            r"^EarlyStopping: monitor 'val/loss' is nothing that this training logs; it logs train/accuracy, ",
        ),
        (
            [
                "--model=squeezenet_v1_1",
                "--trainer.callbacks+=StochasticWeightAveraging",
                "--trainer.callbacks.swa_lrs=0.01",
            ],
            r"^StochasticWeightAveraging leaves .* without batch norm\. Take EMAWeightAveraging\.$",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_a_training_would_stumble_over_is_one_line(tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    # Lightning warns of some of them first.
    warnings.simplefilter("ignore")
    with pytest.raises(UserError, match=message) as raised:
        prepare([*DIGITS, *argv])
    assert len(str(raised.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_fused_step_without_a_first_momentum_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # As under 16-mixed, for which Lightning takes bf16-mixed on a CPU.
    monkeypatch.setattr("hps_lightning.cli.preflight._scales_gradients", lambda trainer: True)
    argv = [*DIGITS, "--trainer.precision=bf16-mixed", "--optimizer=SGD", "--optimizer.momentum=0.9"]
    with pytest.raises(UserError, match=r"^optimizer.fused true and trainer.precision .* with a momentum, .* leave o"):
        prepare([*argv, "--optimizer.fused=true"])
    prepare([*argv, "--optimizer.fused=false"])


@pytest.mark.parametrize(
    "argv",
    [
        ["--trainer.num_sanity_val_steps=-1"],
        ["--trainer.log_every_n_steps=0"],
        ["--trainer.gradient_clip_val=0"],
        # Epochs of another number of steps do not matter to what follows epochs.
        [
            *("--lr_scheduler=StepLR", "--lr_scheduler.step_size=2"),
            *("--trainer.callbacks+=GradientAccumulationScheduler", "--trainer.callbacks.scheduling={4: 2}"),
        ],
        # Without validation, none is best, and nobody watches for it.
        ["--data.protocol=full", "--best_checkpoint.monitor=val/accuracy"],
    ],
    ids=lambda argv: argv[0],
)
def test_what_only_looks_like_a_mistake_is_none(tmp_path, monkeypatch, argv):
    monkeypatch.chdir(tmp_path)
    warnings.simplefilter("ignore")
    assert prepare([*DIGITS, *argv]) is not None


def test_a_monitor_without_its_package_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install psutil"):
        prepare([*DIGITS, "--trainer.callbacks+=DeviceStatsMonitor", "--trainer.accelerator=cpu"])
