import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import SingleDeviceStrategy

from hps_lightning.callbacks import BestCheckpoint, Guards, LastCheckpoint
from hps_lightning.callbacks.guards import non_finite
from hps_lightning.errors import DivergedError
from tests.callbacks.tiny import LIGHTNING_WARNINGS, Tiny, TinyData, tiny, tiny_trainer

pytestmark = [*LIGHTNING_WARNINGS]

STEPS = 3
"""Of an epoch: 10 images in batches of 4."""


class LossAt(Callback):
    """Makes the loss of a step wrong, counted from 1; the weights become NaN by it."""

    def __init__(self, step: int, value: float = math.nan) -> None:
        self.step, self.value = step, value

    def on_fit_start(self, trainer, pl_module) -> None:
        training_step = pl_module.training_step

        def wrong(batch, batch_idx):
            loss = training_step(batch, batch_idx)
            return loss * self.value if trainer.global_step + 1 == self.step else loss

        pl_module.training_step = wrong


class WeightAt(Callback):
    """Makes a weight infinite after a given step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            next(pl_module.network.parameters()).data[0] = math.inf


def train(folder, *callbacks, module=None, **arguments):
    trainer = tiny_trainer(folder, *callbacks, enable_checkpointing=True, **arguments)
    trainer.fit(module or tiny(), TinyData())
    return trainer


def fails(folder, *callbacks, **arguments) -> str:
    with pytest.raises(DivergedError) as raised:
        train(folder, *callbacks, **arguments)
    return str(raised.value)


@pytest.mark.parametrize(("value", "word"), [(math.nan, "NaN"), (math.inf, "infinite"), (-math.inf, "infinite")])
def test_a_loss_that_is_no_number_ends_the_training_at_its_step(tmp_path, value, word):
    message = fails(tmp_path, LossAt(2, value), Guards())
    assert f"the loss is {word} at step 2, in epoch 1 of 3, with the learning rate 0.1." in message
    assert "no checkpoint yet" in message
    assert "--optimizer.lr" in message


def test_the_last_sound_checkpoint_stays_and_is_named(tmp_path):
    message = fails(tmp_path, LossAt(STEPS + 2), BestCheckpoint(), Guards(), LastCheckpoint())
    path = tmp_path / "run" / "version_0" / "checkpoints" / "last.ckpt"
    assert f"The last sound checkpoint is {path}" in message
    assert f"--init_weights {path}" in message
    assert "smaller rate: python -m hps_lightning fit --" in message, "its class is in no package"
    for file in path.parent.glob("*.ckpt"):
        checkpoint = torch.load(file, weights_only=True)
        assert checkpoint["global_step"] == STEPS
        assert non_finite(checkpoint["state_dict"].items()) is None
    assert sorted(file.name for file in path.parent.iterdir()) == ["best.ckpt", "last.ckpt"]


@pytest.mark.parametrize("step", [1, STEPS, STEPS + 1])
def test_weights_that_are_no_numbers_reach_no_checkpoint(tmp_path, step):
    # Before the others, as a training that goes wrong between two steps.
    message = fails(tmp_path, WeightAt(step), Guards(), BestCheckpoint(), LastCheckpoint(every_n_train_steps=1))
    assert "diverged" in message
    for file in tmp_path.rglob("*.ckpt"):
        assert non_finite(torch.load(file, weights_only=True)["state_dict"].items()) is None


def test_a_checkpoint_of_a_diverged_training_is_refused_whoever_writes_it(tmp_path):
    trainer = train(tmp_path, Guards(), LastCheckpoint())
    next(trainer.lightning_module.network.parameters()).data.fill_(math.nan)
    trainer.state.fn = "fit"
    with pytest.raises(DivergedError, match="weights"):
        trainer.save_checkpoint(tmp_path / "mine.ckpt")
    assert not (tmp_path / "mine.ckpt").exists()


def test_a_validation_that_is_no_number_ends_nothing(tmp_path):
    # As that of a sound training may be while its batch norms know few batches.
    class Unsound(Tiny):
        def validation_step(self, batch, batch_idx):
            self.log("val/loss", math.nan if self.trainer.current_epoch == 1 else 0.5, batch_size=len(batch[0]))

    torch.manual_seed(0)
    module = Unsound(num_classes=3, stages=[1, 1, 1, 1], width=0.1)
    assert train(tmp_path, Guards(), LastCheckpoint(), module=module).current_epoch == 3


def test_losses_that_are_looked_at_later_name_their_own_step(tmp_path, monkeypatch):
    # As on a GPU, or in several processes.
    monkeypatch.setattr("lightning.pytorch.Trainer.world_size", property(lambda trainer: 2))
    monkeypatch.setattr(LastCheckpoint, "on_train_batch_end", Callback.on_train_batch_end)
    message = fails(tmp_path, LossAt(2), Guards(), log_every_n_steps=STEPS)
    assert "at step 2, in epoch 1 of 3" in message


@pytest.mark.parametrize(("every", "ends_after"), [(1, 2), (2, 2), (STEPS, STEPS)])
def test_losses_are_looked_at_as_often_as_they_are_logged(tmp_path, monkeypatch, every, ends_after):
    class Ended(Callback):
        def on_exception(self, trainer, pl_module, exception):
            self.after = trainer.global_step

    monkeypatch.setattr("lightning.pytorch.Trainer.world_size", property(lambda trainer: 2))
    ended = Ended()
    fails(tmp_path, LossAt(2), ended, Guards(), log_every_n_steps=every)
    assert ended.after == ends_after


def test_the_loss_of_another_process_ends_this_one_too(tmp_path, monkeypatch):
    monkeypatch.setattr(SingleDeviceStrategy, "reduce_boolean_decision", lambda self, decision, all=True: False)
    assert "the loss of another process is" in fails(tmp_path, Guards())


def test_who_wants_to_see_a_training_diverge_can(tmp_path):
    trainer = train(tmp_path, LossAt(2), Guards("ignore"), LastCheckpoint())
    assert trainer.current_epoch == 3
    assert math.isnan(trainer.callback_metrics["train/loss"])


def test_a_sound_training_is_left_alone(tmp_path):
    with_guard = train(tmp_path / "a", Guards()).callback_metrics
    without = train(tmp_path / "b").callback_metrics
    assert {name: float(value) for name, value in with_guard.items()} == {
        name: float(value) for name, value in without.items()
    }


def test_the_rate_that_is_named_is_that_of_the_step_and_the_option_sets_a_tenth(tmp_path):
    module = tiny()
    module.optimizer_spec = {"class_path": "SGD", "init_args": {"lr": 0.5}}
    module.lr_scheduler_spec = {"class_path": "OneCycleLR", "init_args": {"max_lr": 0.8, "pct_start": 0.5}}
    message = fails(tmp_path, LossAt(1), Guards(), module=module)
    assert "with the learning rate 0.032" in message
    assert message.endswith("--lr_scheduler.max_lr 0.08")
