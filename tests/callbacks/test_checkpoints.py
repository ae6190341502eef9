"""Tests of which checkpoints a training leaves, where, and what of them it finds again after a move."""

import shutil
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from hps_lightning.callbacks import BestCheckpoint, LastCheckpoint, WeightsCheckpoint
from hps_lightning.callbacks.checkpoints import best_checkpoint, last_checkpoint
from hps_lightning.errors import UserError
from tests.callbacks.tiny import LIGHTNING_WARNINGS, TinyData, tiny, tiny_trainer

pytestmark = [
    *LIGHTNING_WARNINGS,
    # TinyData's loaders begin anew; what they give is not looked at here.
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
CHECKPOINTS = Path("run", "version_0", "checkpoints")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"every_n_epochs": -1}, "every_n_epochs"),
        ({"every_n_train_steps": 0}, "every_n_train_steps"),
        ({"train_time_interval": timedelta(0)}, "train_time_interval"),
    ],
)
def test_intervals_are_positive(arguments, part):
    with pytest.raises(UserError, match=part):
        LastCheckpoint(**arguments)


class Saves(Callback):
    """Notes where checkpoints are written: the step, and how many validations there were before."""

    def __init__(self):
        self.at, self.validations = [], 0

    def on_validation_end(self, trainer, pl_module):
        self.validations += not trainer.sanity_checking

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.at.append((trainer.global_step, self.validations))


@pytest.mark.parametrize(
    ("last", "arguments", "expected"),
    [
        # Epochs of 3 steps.
        ({}, {}, [(3, 1), (6, 2)]),
        ({"every_n_epochs": 2}, {}, [(6, 2)]),
        ({"every_n_epochs": 3}, {}, [(6, 2)]),
        ({"every_n_epochs": 0, "every_n_train_steps": 4}, {}, [(4, 1), (6, 2)]),
        # What is due in an epoch's last step is saved at its end, and once.
        ({"every_n_epochs": 0, "every_n_train_steps": 3}, {}, [(3, 1), (6, 2)]),
        ({"every_n_train_steps": 1}, {}, [(1, 0), (2, 0), (3, 1), (4, 1), (5, 1), (6, 2)]),
        ({"train_time_interval": timedelta(microseconds=1)}, {}, [(1, 0), (2, 0), (3, 1), (4, 1), (5, 1), (6, 2)]),
        ({"train_time_interval": timedelta(days=1)}, {}, [(3, 1), (6, 2)]),
        # A validation after the first step and after the second, then one at the end.
        ({"every_n_train_steps": 1}, {"val_check_interval": 1}, [(3, 3), (6, 6)]),
        # No gradients are left behind.
        (
            {"train_time_interval": timedelta(microseconds=1)},
            {"accumulate_grad_batches": 2},
            [(1, 0), (2, 1), (3, 1), (4, 2)],
        ),
    ],
)
def test_checkpoints_are_written_where_a_training_can_go_on(tmp_path, last, arguments, expected):
    saves = Saves()
    callbacks = (LastCheckpoint(**last), saves)
    trainer = tiny_trainer(tmp_path, *callbacks, max_epochs=2, enable_checkpointing=True, **arguments)
    trainer.fit(tiny(), datamodule=TinyData())
    assert saves.at == expected


def run(folder, scores, go_on_from=None, others=(), protocol="holdout"):
    """A training of as many epochs as there are scores; gives its trainer."""
    logger = TensorBoardLogger(folder, name="run", version=0, default_hp_metric=False)
    kept = (BestCheckpoint(), LastCheckpoint(), WeightsCheckpoint())
    trainer = tiny_trainer(folder, *others, *kept, max_epochs=len(scores), enable_checkpointing=True, logger=logger)
    path = None if go_on_from is None else str(go_on_from / CHECKPOINTS / "last.ckpt")
    trainer.fit(tiny(scores), datamodule=TinyData(protocol=protocol), ckpt_path=path, weights_only=True)
    return trainer


def epoch(path):
    return torch.load(path, weights_only=True)["epoch"]


@pytest.mark.parametrize("folder", ["moved", "another"])
@pytest.mark.parametrize(("second", "best"), [(0.1, 0), (0.95, 1)])
def test_the_best_one_is_found_after_a_move(tmp_path, folder, second, best):
    run(tmp_path / "begun", [0.9])
    (tmp_path / "begun").rename(tmp_path / "moved")
    again = run(tmp_path / folder, [0.9, second], tmp_path / "moved")
    checkpoints = tmp_path / folder / CHECKPOINTS
    assert best_checkpoint(again) == str(checkpoints / "best.ckpt")
    assert last_checkpoint(again) == str(checkpoints / "last.ckpt")
    assert [epoch(checkpoints / f"{name}.ckpt") for name in ("best", "last", "weights")] == [best, 1, best]
    # What the training went on from stays as it was.
    assert epoch(tmp_path / "moved" / CHECKPOINTS / "best.ckpt") == (best if folder == "moved" else 0)


def spoil(path):
    path.write_bytes(path.read_bytes()[:1000])


def replace(path):
    run(path.parents[4] / "other", [0.7, 0.8])
    shutil.copy(path.parents[4] / "other" / CHECKPOINTS / "best.ckpt", path)


@pytest.mark.parametrize("change", [Path.unlink, spoil, replace])
def test_a_best_one_that_is_lost_gives_way_to_the_best_from_then_on(tmp_path, capsys, change):
    run(tmp_path / "begun", [0.9])
    change(tmp_path / "begun" / CHECKPOINTS / "best.ckpt")
    again = run(tmp_path / "another", [0.9, 0.1, 0.3, 0.2], tmp_path / "begun")
    assert best_checkpoint(again) == str(tmp_path / "another" / CHECKPOINTS / "best.ckpt")
    assert epoch(best_checkpoint(again)) == 2
    assert ("is not taken along" in capsys.readouterr().err) == (change is spoil)


def test_what_is_best_without_validation_is_not_what_was_best_with_it(tmp_path):
    run(tmp_path, [0.9])
    again = run(tmp_path, [0.9, 0.9], tmp_path, protocol="full")
    assert best_checkpoint(again) is None
    assert [epoch(tmp_path / CHECKPOINTS / f"{name}.ckpt") for name in ("last", "weights")] == [1, 1]


def test_a_further_checkpoint_by_another_metric_decides_nothing(tmp_path):
    # By the smallest accuracy, and kept elsewhere.
    further = ModelCheckpoint(tmp_path / "others", monitor="val/accuracy", mode="min", save_last=True)
    trainer = run(tmp_path, [0.1, 0.9, 0.5], others=[further])
    assert list((tmp_path / "others").iterdir())
    checkpoints = tmp_path / CHECKPOINTS
    assert best_checkpoint(trainer) == str(checkpoints / "best.ckpt")
    assert last_checkpoint(trainer) == str(checkpoints / "last.ckpt")
    assert epoch(checkpoints / "weights.ckpt") == 1


def test_an_evaluation_elsewhere_copies_nothing(tmp_path):
    run(tmp_path / "begun", [0.9])
    kept = (BestCheckpoint(), LastCheckpoint(), WeightsCheckpoint())
    trainer = tiny_trainer(tmp_path / "elsewhere", *kept, enable_checkpointing=True, logger=False)
    last = str(tmp_path / "begun" / CHECKPOINTS / "last.ckpt")
    trainer.validate(tiny([0.9]), datamodule=TinyData(), ckpt_path=last, weights_only=True, verbose=False)
    assert not list((tmp_path / "elsewhere").rglob("*.ckpt"))


def test_weights_that_cannot_be_written_do_not_end_a_training_badly(tmp_path, capsys):
    (tmp_path / CHECKPOINTS / "weights.ckpt").mkdir(parents=True)
    trainer = run(tmp_path, [0.9])
    assert trainer.state.finished
    assert f"has ended without it; {tmp_path / CHECKPOINTS / 'best.ckpt'} holds the same" in capsys.readouterr().err
