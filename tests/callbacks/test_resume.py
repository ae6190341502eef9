"""What Lightning forgets of a training: random state, metrics, and curves that neither repeat nor miss a point."""

import random

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from hps_lightning.callbacks import LastCheckpoint, Resume
from hps_lightning.callbacks.resume import random_state, set_random_state
from tests.callbacks.tiny import LIGHTNING_WARNINGS, TinyData, tiny, tiny_trainer

pytestmark = [
    *LIGHTNING_WARNINGS,
    # TinyData's loaders begin anew; what they give is not looked at here.
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


@pytest.fixture(autouse=True)
def files_in_order(monkeypatch):
    """Keeps two log files of one second in order: TensorBoard numbers them without zeros, and sorts them by name."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(10**6))


class KilledError(Exception):
    """Ends a training without a word to its callbacks, as SIGKILL does."""


class Diary(Callback):
    """Logs in every step and epoch, and draws numbers; dies where it is told to."""

    def __init__(self, die_in=None, after=False):
        self.die_in, self.after = die_in, after
        self.drawn = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.drawn.append((random.random(), np.random.rand()))
        pl_module.log("diary/step", float(trainer.global_step), on_step=True, on_epoch=False)

    def on_train_epoch_end(self, trainer, pl_module):
        pl_module.log("diary/epoch", float(trainer.current_epoch))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.die_in:
            raise KilledError


def trainer(folder, *callbacks, steps=None, **arguments):
    last = LastCheckpoint(every_n_train_steps=steps)
    logger = TensorBoardLogger(folder, name="run", version=0, default_hp_metric=False)
    return tiny_trainer(folder, last, Resume(), *callbacks, enable_checkpointing=True, logger=logger, **arguments)


def checkpoint(folder):
    return str(folder / "run" / "version_0" / "checkpoints" / "last.ckpt")


def go_on(folder, module, *callbacks, **arguments):
    resumed = trainer(folder, *callbacks, **arguments)
    resumed.fit(module, datamodule=TinyData(), ckpt_path=checkpoint(folder), weights_only=True)
    return resumed


def logged(folder):
    log = EventAccumulator(str(folder / "run" / "version_0")).Reload()
    return {tag: [(event.step, event.value) for event in log.Scalars(tag)] for tag in log.Tags()["scalars"]}


def seed():
    random.seed(5)
    np.random.seed(5)


@pytest.mark.parametrize("die_in", [2, 3, 5, 8])
def test_a_training_that_was_killed_logs_and_draws_as_one_that_was_not(tmp_path, die_in):
    seed()
    whole = Diary()
    trainer(tmp_path / "whole", whole).fit(tiny(), datamodule=TinyData())
    seed()
    killed, after = Diary(die_in), Diary()
    with pytest.raises(KilledError):
        trainer(tmp_path / "parts", killed, steps=2).fit(tiny(), datamodule=TinyData())
    go_on(tmp_path / "parts", tiny(), after, steps=2)
    expected = logged(tmp_path / "whole")
    assert [step for step, _ in expected["diary/step"]] == list(range(9))
    found = logged(tmp_path / "parts")
    assert found.keys() == expected.keys()
    for tag in ("diary/step", "diary/epoch", "epoch"):
        assert found[tag] == expected[tag], tag
    assert whole.drawn[9 - len(after.drawn) :] == after.drawn


def test_an_epoch_that_goes_on_half_way_counts_all_its_images(tmp_path):
    counted = []

    class Count(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            counted.append(int(pl_module.train_metrics["loss"].images))

    with pytest.raises(KilledError):
        trainer(tmp_path, Diary(2), steps=2, max_epochs=1).fit(tiny(), datamodule=TinyData())
    killed = torch.load(checkpoint(tmp_path), weights_only=True)["hps_lightning_resume"]["sums"]
    assert int(killed["train_metrics.loss"]["images"]) == 8
    go_on(tmp_path, tiny(), Count(), max_epochs=1)
    # These loaders begin with a whole batch again.
    assert counted == [8 + 4]


def test_nothing_is_lost_between_the_last_checkpoint_and_the_end(tmp_path):
    class Die(Callback):
        """After the last epoch's checkpoint, before its metrics are logged."""

        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            trainer._logger_connector.update_train_epoch_metrics = self.die

        def die(self):
            raise KilledError

    trainer(tmp_path / "whole", Diary(), max_epochs=1).fit(tiny(), datamodule=TinyData())
    with pytest.raises(KilledError):
        trainer(tmp_path / "parts", Diary(), Die(), max_epochs=1).fit(tiny(), datamodule=TinyData())
    assert "train/loss" not in logged(tmp_path / "parts")
    ended = go_on(tmp_path / "parts", tiny(), max_epochs=1)
    expected = logged(tmp_path / "whole")
    assert "train/loss" in expected
    assert logged(tmp_path / "parts") == expected
    assert float(ended.callback_metrics["train/loss"]) == pytest.approx(expected["train/loss"][0][1])
    # Once is enough.
    go_on(tmp_path / "parts", tiny(), max_epochs=1)
    assert logged(tmp_path / "parts") == expected


def test_logs_that_a_checkpoint_does_not_know_are_left_alone(tmp_path):
    for name in ("one", "two"):
        trainer(tmp_path / name, max_epochs=1).fit(tiny(), datamodule=TinyData())
    stranger = tmp_path / "two" / "run" / "version_0"
    before = {path: path.read_bytes() for path in stranger.glob("events*")}
    resumed = trainer(tmp_path / "two", max_epochs=2)
    resumed.fit(tiny(), datamodule=TinyData(), ckpt_path=checkpoint(tmp_path / "one"), weights_only=True)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("condition", "epochs"),
    [({"patience": 1}, 2), ({"stopping_threshold": 0.45}, 1), ({"stopping_threshold": 0.8}, 3)],
    ids=["patience", "a threshold in the first epoch", "a threshold"],
)
def test_a_training_that_had_stopped_early_does_not_train_on(tmp_path, condition, epochs):
    def stopping():
        return EarlyStopping("val/accuracy", mode="max", **condition)

    first = trainer(tmp_path, stopping(), max_epochs=9)
    first.fit(tiny([0.5, 0.4, 0.9, 0.9]), datamodule=TinyData())
    assert first.current_epoch == epochs
    again = go_on(tmp_path, tiny([0.5, 0.4, 0.9, 0.9]), stopping(), max_epochs=9)
    assert again.global_step == first.global_step
    if "stopping_threshold" in condition:
        condition["stopping_threshold"] = 0.95
        again = go_on(tmp_path, tiny([0.5, 0.4, 0.9, 0.9, 0.96]), stopping(), max_epochs=9)
        assert again.global_step > first.global_step


def test_random_state_comes_back():
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    # An odd number of them leaves one in reserve.
    np.random.randn(3), random.gauss(0, 1)
    state = random_state()

    def draw():
        return random.random(), random.gauss(0, 1), np.random.randn(5).tolist(), torch.rand(5).tolist()

    first = draw()
    assert draw() != first
    set_random_state(state)
    assert draw() == first
