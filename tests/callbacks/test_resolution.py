import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from hps_lightning.callbacks import ProgressiveResolution
from hps_lightning.errors import UserError
from hps_lightning.modules import HPSClassifier, MobileNetClassifier, SqueezeNetClassifier

from .tiny import ARGUMENTS, LIGHTNING_WARNINGS, TinyData, tiny, tiny_trainer

pytestmark = list(LIGHTNING_WARNINGS)


def watched(module):
    """The side of each batch's images as they reach the first convolution, by what it was done for."""
    sides = {"train": [], "val": []}

    def note(layer, inputs):
        sides["train" if module.training else "val"].append(inputs[0].shape[-1])

    module.network.stem.register_forward_pre_hook(note)
    return sides


def fit(folder, module, *callbacks, data=None, **arguments):
    arguments = {"max_epochs": 4, "logger": False, "num_sanity_val_steps": 0, **arguments}
    trainer = tiny_trainer(folder, *callbacks, **arguments)
    trainer.fit(module, data or TinyData(images=8))
    return trainer


@pytest.mark.parametrize(
    ("arguments", "epochs", "expected"),
    [
        ({}, 4, [0.5, 0.75, 1, 1]),
        ({}, 8, [0.5, 0.5, 0.75, 0.75, 1, 1, 1, 1]),
        ({}, 1, [0.5]),
        ({"until": 1e-310}, 2, [0.5, 1]),
        ({}, 2, [0.5, 1]),
        ({}, 5, [0.5, 0.5, 0.75, 1, 1]),
        ({"steps": 1}, 4, [0.5, 0.5, 1, 1]),
        ({"steps": 4, "until": 1.0}, 4, [0.5, 0.625, 0.75, 0.875]),
        ({"start": 0.25, "steps": 3, "until": 0.75}, 8, [0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1, 1]),
        # More sizes than epochs: some are left out.
        ({"start": 0.2, "steps": 8, "until": 0.5}, 4, [0.2, 0.6, 1, 1]),
        ({"until": 0.1}, 4, [0.5, 1, 1, 1]),
        ({"start": 1.0}, 4, [1, 1, 1, 1]),
        ({"start": 1}, 2, [1, 1]),
    ],
)
def test_the_schedule(arguments, epochs, expected):
    callback = ProgressiveResolution(**arguments)
    assert [callback.resolution(epoch, epochs) for epoch in range(epochs)] == pytest.approx(expected)


def test_the_sides_are_whole_from_the_epoch_that_is_meant():
    # Every percentage of a training that is a whole number of epochs.
    cases = [(percent, epochs) for epochs in (25, 100, 200) for percent in range(1, 101) if percent * epochs % 100 == 0]
    late = [
        (percent, epochs)
        for percent, epochs in cases
        if ProgressiveResolution(until=percent / 100).resolution(percent * epochs // 100, epochs) != 1
    ]
    assert late == []


def test_what_the_network_sees_grows_from_epoch_to_epoch(tmp_path):
    module = tiny()
    sides = watched(module)
    fit(tmp_path, module, ProgressiveResolution())
    # Two batches an epoch.
    assert sides["train"] == [16] * 2 + [24] * 2 + [32] * 4
    assert sides["val"] == [32] * 8
    assert module.network.resolution == 1


def test_without_the_callback_all_is_seen_whole(tmp_path):
    module = tiny()
    sides = watched(module)
    fit(tmp_path, module)
    assert set(sides["train"]) == {32}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # Two steps an epoch.
        ({"max_epochs": 100, "max_steps": 8}, [16, 24, 32, 32]),
        ({"max_epochs": 100, "max_steps": 7}, [16, 24, 32, 32]),
    ],
)
def test_the_training_may_be_as_long_as_its_steps(tmp_path, arguments, expected):
    module = tiny()
    sides = watched(module)
    fit(tmp_path, module, ProgressiveResolution(), **arguments)
    assert sides["train"][::2] == expected


def test_a_network_with_a_resolution_of_its_own_ends_there(tmp_path):
    torch.manual_seed(0)
    module = HPSClassifier(**ARGUMENTS, resolution=0.75)
    sides = watched(module)
    fit(tmp_path, module, ProgressiveResolution(steps=1))
    assert sides["train"] == [12] * 4 + [24] * 4
    assert set(sides["val"]) == {24}
    assert module.network.resolution == 0.75


def test_mobilenet_has_a_resolution_too(tmp_path):
    torch.manual_seed(0)
    module = MobileNetClassifier(num_classes=3, width=0.1)
    sides = watched(module)
    fit(tmp_path, module, ProgressiveResolution(steps=1), max_epochs=2)
    assert sides["train"] == [16] * 2 + [32] * 2


def test_validation_between_two_batches_sees_all(tmp_path):
    module = tiny()
    sides = watched(module)
    fit(tmp_path, module, ProgressiveResolution(start=0.25, until=1.0), max_epochs=1, val_check_interval=1)
    assert sides["train"] == [8] * 2
    assert sides["val"] == [32] * 4


def test_checkpoints_hold_the_network_s_own_resolution(tmp_path):
    class Note(Callback):
        seen = ()

        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            self.seen += (pl_module.network.resolution,)

    module, note = tiny(), Note()
    files = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    fit(tmp_path, module, note, files, ProgressiveResolution(), max_epochs=2, enable_checkpointing=True)
    assert set(note.seen) == {1.0}
    saved = sorted(tmp_path.glob("*.ckpt"))
    assert len(saved) == 4
    for file in saved:
        loaded = HPSClassifier.load_from_checkpoint(file, weights_only=True)
        assert loaded.network.resolution == 1
        assert loaded.hparams["resolution"] == 1


def test_a_resumed_training_goes_on_at_its_epoch_s_size(tmp_path):
    class Stop(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "one.ckpt")

    fit(tmp_path, tiny(), ProgressiveResolution(), Stop(), max_epochs=4)
    module = tiny()
    sides = watched(module)
    trainer = tiny_trainer(tmp_path, ProgressiveResolution(), max_epochs=4, logger=False, num_sanity_val_steps=0)
    trainer.fit(module, TinyData(images=8), ckpt_path=tmp_path / "one.ckpt", weights_only=True)
    assert sides["train"] == [24] * 2 + [32] * 4


def test_a_second_training_starts_small_again(tmp_path):
    module = tiny()
    sides = watched(module)
    callback = ProgressiveResolution(steps=1)
    for _ in range(2):
        fit(tmp_path, module, callback, max_epochs=2)
    assert sides["train"] == [16, 16, 32, 32] * 2


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_training_that_is_broken_off_leaves_the_whole_size(tmp_path, error):
    def spend(stage):
        if stage == "train":
            raise error

    module = tiny(spend=spend)
    # Lightning ends the process on an interruption.
    with pytest.raises((error, SystemExit)):
        fit(tmp_path, module, ProgressiveResolution())
    assert module.network.resolution == 1


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("start", 0),
        ("start", -0.5),
        ("start", 1.5),
        ("start", float("nan")),
        ("until", 0),
        ("until", 1.01),
        ("until", float("nan")),
        ("steps", 0),
        ("steps", -1),
    ],
)
def test_arguments_out_of_range_are_named(argument, value):
    with pytest.raises(UserError, match=rf"^ProgressiveResolution: {argument} must be .*, got {value}\.$"):
        ProgressiveResolution(**{argument: value})


def test_a_network_without_a_resolution_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"SqueezeNet has no resolution multiplier; leave the callback out"):
        fit(tmp_path, SqueezeNetClassifier(num_classes=3), ProgressiveResolution())


def test_a_size_that_is_too_small_for_the_network_is_refused(tmp_path):
    with pytest.raises(UserError, match="start"):
        fit(tmp_path, tiny(), ProgressiveResolution(start=0.05))


@pytest.mark.parametrize("start", [0.005, 0.3, 0.6])
@pytest.mark.parametrize("steps", [1, 3, 5, 7])
def test_the_last_size_is_the_whole_one_exactly(start, steps):
    assert ProgressiveResolution(start, until=0.5, steps=steps).resolution(epoch=9, max_epochs=10) == 1.0
