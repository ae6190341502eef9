import math

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hps_lightning import __version__
from hps_lightning.callbacks import Resume
from hps_lightning.engine import NativeUnavailableError
from hps_lightning.errors import UserError
from hps_lightning.modules import RECORD_FORMAT, RECORD_KEY, HPSClassifier, ImageClassifier
from hps_lightning.networks.squeezenext import ConvUnit
from tests.engine.test_fused import needs_compiler
from tests.modules import LIGHTNING_WARNINGS
from tests.optim.test_schedules import CASES, IDS

pytestmark = LIGHTNING_WARNINGS

CLASSES = 7


def _data(count=20):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, 8, 8, generator=generator), torch.arange(count) % CLASSES


def _loader(batch_size=4, soft=False):
    images, labels = _data()
    return DataLoader(TensorDataset(images, F.one_hot(labels, CLASSES).float() if soft else labels), batch_size)


class Data(LightningDataModule):
    """As our own says what it is, with or without validation."""

    def __init__(self, validates):
        super().__init__()
        self.validates = validates

    def train_dataloader(self):
        return _loader()

    def val_dataloader(self):
        return _loader() if self.validates else []

    def record(self):
        return {"dataset": "made up", "classes": ["a", "b"]}


class Rates(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


class _StopAfter(Callback):
    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch + 1 == self.epochs


def _linear(**arguments):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, CLASSES))
    return ImageClassifier(network, CLASSES, **arguments)


def _sgd(lr=0.01):
    return {"class_path": "SGD", "init_args": {"lr": lr}}


def _trainer(**arguments):
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return Trainer(accelerator="cpu", **dict.fromkeys(quiet, False), **arguments)


def _conv(**arguments):
    torch.manual_seed(0)
    return HPSClassifier(CLASSES, stages=[1, 1, 1, 1], width=0.25, optimizer=_sgd(), **arguments)


def test_forward_is_the_network():
    module = _conv().eval()
    images, _ = _data()
    torch.testing.assert_close(module(images), module.network(images))


def test_convolutions_run_in_channels_last():
    module = _conv()
    seen = []
    module.network.stem.register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    module(_data()[0])
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert module.network.stem.conv.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True])
def test_training_logs_loss_and_accuracy_of_the_epoch(soft, smoothing):
    module = _linear(optimizer=_sgd(lr=0.0), label_smoothing=smoothing)
    images, labels = _data()
    logits = module(images)
    trainer = _trainer(max_epochs=1)
    trainer.fit(module, _loader(soft=soft))
    metrics = trainer.callback_metrics
    assert set(metrics) == {"train/loss", "train/accuracy"}
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    assert metrics["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["train/accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())


def test_validation_and_test_log_loss_accuracy_and_top5():
    module = _linear(label_smoothing=0.1)
    images, labels = _data()
    logits = module(images)
    expected = {
        # Smoothing is the training's affair.
        "loss": F.cross_entropy(logits, labels).item(),
        "accuracy": (logits.argmax(1) == labels).float().mean().item(),
        "top5": (logits.topk(5).indices == labels[:, None]).any(1).float().mean().item(),
    }
    assert 0 < expected["accuracy"] < expected["top5"] < 1
    # The last batch is smaller, and counts for less.
    (validation,) = _trainer().validate(module, _loader(batch_size=6), verbose=False)
    (test,) = _trainer().test(module, _loader(batch_size=6), verbose=False)
    assert validation == pytest.approx({f"val/{name}": value for name, value in expected.items()}, rel=1e-5)
    assert test == pytest.approx({f"test/{name}": value for name, value in expected.items()}, rel=1e-5)


def test_top5_of_fewer_than_five_classes_is_always_right():
    module = ImageClassifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), 3)
    images, labels = _data()
    (metrics,) = _trainer().validate(module, DataLoader(TensorDataset(images, labels % 3), 5), verbose=False)
    assert metrics["val/top5"] == 1


def test_prediction_gives_probabilities():
    module = _conv().eval()
    images, _ = _data()
    batches = _trainer().predict(module, DataLoader(TensorDataset(images, images), 20))
    torch.testing.assert_close(batches[0], module(images).softmax(1))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_any_precision_trains_and_is_judged(precision):
    trainer = _trainer(max_epochs=1, precision=precision)
    trainer.fit(_conv(), _loader(), _loader())
    assert {"train/loss", "val/loss", "val/accuracy"} <= set(trainer.callback_metrics)
    assert all(math.isfinite(value) for value in trainer.callback_metrics.values())


def test_evaluation_stays_in_float32_under_autocast():
    module = _conv().eval()
    images, _ = _data()
    with torch.no_grad():
        plain = module(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert module(images).dtype == torch.bfloat16
            probabilities = module.predict_step((images, None), 0)
            half = module.predict_step((images.bfloat16(), None), 0)
    assert probabilities.dtype == torch.float32
    assert torch.equal(probabilities, plain.softmax(1))
    assert half.dtype == torch.float32


@pytest.mark.parametrize("method", ["validate", "test"])
def test_validation_in_mixed_precision_equals_validation_in_float32(method):
    full, mixed = (
        getattr(_trainer(precision=precision), method)(_conv(), _loader(), verbose=False)[0]
        for precision in ("32-true", "bf16-mixed")
    )
    assert full == mixed


@pytest.mark.parametrize("method", ["validation_step", "test_step"])
def test_evaluation_hands_logits_and_labels_to_callbacks(method):
    outputs = []

    class Note(Callback):
        def on_validation_batch_end(self, trainer, pl_module, result, batch, batch_idx, dataloader_idx=0):
            outputs.append((result, batch))

        on_test_batch_end = on_validation_batch_end

    module = _conv()
    run = getattr(_trainer(callbacks=[Note()]), method.removesuffix("_step").replace("validation", "validate"))
    run(module, _loader(), verbose=False)
    assert len(outputs) == 5
    for result, (images, labels) in outputs:
        assert set(result) == {"logits", "labels"}
        torch.testing.assert_close(result["logits"], module.eval()(images))
        assert torch.equal(result["labels"], labels)


@pytest.mark.parametrize(("name", "arguments", "interval", "part"), CASES, ids=IDS)
def test_lightning_steps_the_schedule_as_it_is_meant(name, arguments, interval, part):
    rates = Rates()
    if name == "ReduceLROnPlateau":
        # A metric that is never better than the first: the rate is too small to change it.
        arguments = {**arguments, "monitor": "val/top5", "mode": "max"}
    module = _linear(optimizer=_sgd(1e-6), lr_scheduler={"class_path": name, "init_args": arguments})
    _trainer(max_epochs=6, callbacks=[rates], num_sanity_val_steps=0).fit(module, _loader(), _loader())
    assert rates.seen == pytest.approx([1e-6 * part(step) for step in range(30)], rel=1e-6, abs=1e-15)


def test_a_schedule_counts_optimizer_steps_where_gradients_are_accumulated():
    module = _linear(optimizer=_sgd(), lr_scheduler={"class_path": "CosineAnnealingLR"})
    trainer = _trainer(max_epochs=4, accumulate_grad_batches=2)
    trainer.fit(module, _loader())
    assert trainer.global_step == 4 * 3
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_a_training_cut_short_by_max_steps_finishes_under_one_cycle():
    module = _linear(optimizer=_sgd(), lr_scheduler={"class_path": "OneCycleLR"})
    trainer = _trainer(max_epochs=3, max_steps=11)
    trainer.fit(module, _loader())
    assert trainer.global_step == 11


@pytest.mark.parametrize("name", ["OneCycleLR", "CosineAnnealingLR"])
def test_a_schedule_over_the_whole_training_ends_where_max_steps_ends_it(name):
    rates = Rates()
    module = _linear(optimizer=_sgd(), lr_scheduler={"class_path": name})
    _trainer(max_epochs=3, max_steps=11, callbacks=[rates]).fit(module, _loader())
    assert len(rates.seen) == 11
    assert rates.seen[-1] < 0.03 * max(rates.seen)


@pytest.mark.parametrize("batch_size", [5, 2])
@pytest.mark.parametrize("name", ["OneCycleLR", "CyclicLR", "StepLR"])
def test_a_schedule_of_steps_goes_on_over_epochs_of_as_many(tmp_path, name, batch_size):
    schedule = {"class_path": name}
    trainer = _trainer(max_epochs=2, callbacks=[_StopAfter(1)])
    trainer.fit(_linear(optimizer=_sgd(), lr_scheduler=schedule), _loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")

    def go_on(path):
        module, trainer = _linear(optimizer=_sgd(), lr_scheduler=schedule), _trainer(max_epochs=2)
        trainer.fit(module, _loader(batch_size), ckpt_path=path, weights_only=True)

    if name == "StepLR":
        go_on(tmp_path / "last.ckpt")
        return
    with pytest.raises(UserError, match=rf"{name} was laid out over an epoch of 5 .* over {20 // batch_size};"):
        go_on(tmp_path / "last.ckpt")
    if name == "CyclicLR":
        # As an earlier version left it.
        content = torch.load(tmp_path / "last.ckpt", weights_only=True)
        del content["hps_lightning_steps"]
        torch.save(content, tmp_path / "old.ckpt")
        go_on(tmp_path / "old.ckpt")


def test_a_schedule_that_max_steps_ends_is_not_stretched(tmp_path):
    schedule = {"class_path": "OneCycleLR"}
    trainer = _trainer(max_epochs=3, max_steps=10)
    trainer.fit(_linear(optimizer=_sgd(), lr_scheduler=schedule), _loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"a training of 10 optimizer steps.*over 15; leave trainer.max_steps"):
        _trainer(max_epochs=3).fit(
            _linear(optimizer=_sgd(), lr_scheduler=schedule),
            _loader(),
            ckpt_path=tmp_path / "last.ckpt",
            weights_only=True,
        )


def test_a_training_cut_short_by_max_steps_keeps_the_length_of_an_epoch():
    rates = Rates()
    schedule = {"class_path": "CosineAnnealingWarmRestarts", "init_args": {"T_0": 1}}
    module = _linear(optimizer=_sgd(), lr_scheduler=schedule)
    _trainer(max_epochs=30, max_steps=12, callbacks=[rates]).fit(module, _loader())
    # Five batches an epoch: the rate starts again after each.
    assert [step for step, rate in enumerate(rates.seen) if rate == pytest.approx(0.01)] == [0, 5, 10]


# Lightning wonders about the empty list that stands for no validation.
@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero:UserWarning")
@pytest.mark.parametrize(("validates", "monitor"), [(True, "val/loss"), (False, "train/loss")])
def test_plateau_watches_what_the_data_module_has(validates, monitor):
    module = _linear(optimizer=_sgd(), lr_scheduler={"class_path": "ReduceLROnPlateau"})
    trainer = _trainer(max_epochs=2)
    trainer.fit(module, datamodule=Data(validates))
    assert trainer.lr_scheduler_configs[0].monitor == monitor


def test_plateau_watches_the_training_where_no_validation_is_given():
    module = _linear(optimizer=_sgd(), lr_scheduler={"class_path": "ReduceLROnPlateau"})
    trainer = _trainer(max_epochs=2)
    trainer.fit(module, _loader())
    assert trainer.lr_scheduler_configs[0].monitor == "train/loss"


def _plateau(*callbacks, **arguments):
    """A trainer, a module whose metric never gets better, so that each look halves the rate, and the steps' rates."""
    schedule = {"monitor": "val/top5", "mode": "max", "patience": 0, "factor": 0.5}
    torch.manual_seed(0)
    module = _linear(optimizer=_sgd(1e-6), lr_scheduler={"class_path": "ReduceLROnPlateau", "init_args": schedule})
    trainer = _trainer(callbacks=[Rates(), Resume(), *callbacks], num_sanity_val_steps=0, max_epochs=6, **arguments)
    return trainer, module, trainer.callbacks[0].seen


@pytest.mark.parametrize(("arguments", "looks"), [
    ({"check_val_every_n_epoch": 1}, [1, 2, 3, 4, 5]),
    ({"check_val_every_n_epoch": 2}, [2, 4]),
    ({"check_val_every_n_epoch": 7}, []),
    ({"val_check_interval": 0.4}, [1, 2, 3, 4, 5]),
    ({"val_check_interval": 7, "check_val_every_n_epoch": None}, [2, 3, 5]),
])  # fmt: skip
def test_plateau_looks_once_at_each_validation(arguments, looks):
    trainer, module, rates = _plateau(**arguments)
    trainer.fit(module, _loader(), _loader())
    epochs = [rates[5 * epoch] for epoch in range(6)]
    # The first look has nothing to compare with.
    expected = [1e-6 * 0.5 ** max(0, sum(look <= epoch for look in looks) - 1) for epoch in range(6)]
    assert epochs == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable")
def test_plateau_knows_after_an_interruption_whether_the_epoch_has_validated(tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            # After the epoch's one validation, and before its end.
            if trainer.global_step == 14:
                trainer.save_checkpoint(tmp_path / "inside.ckpt")

    arguments = {"val_check_interval": 3}
    trainer, module, whole = _plateau(Save(), **arguments)
    trainer.fit(module, _loader(), _loader())
    trainer, module, rest = _plateau(**arguments)
    trainer.fit(module, _loader(), _loader(), ckpt_path=tmp_path / "inside.ckpt", weights_only=True)
    assert len(set(whole)) > 3
    assert rest == pytest.approx(whole[-len(rest) :])


def test_a_record_tells_of_a_validation_of_the_very_weights_alone():
    told = {}

    class Ask(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            told[trainer.global_step] = "val/accuracy" in pl_module.record()["metrics"]

        def on_train_epoch_end(self, trainer, pl_module):
            told[trainer.global_step] = "val/accuracy" in pl_module.record()["metrics"]

    trainer = _trainer(max_epochs=4, check_val_every_n_epoch=2, callbacks=[Ask()])
    trainer.fit(_linear(), _loader(), _loader())
    assert [step for step, validated in told.items() if validated] == [10, 20]
    assert len(told) == 20


def test_batches_whose_gradients_accumulate_drop_apart(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    masks = []

    class Mask(nn.Module):
        def forward(self, images):
            masks.append(F.dropout(torch.ones(64), 0.5, self.training))
            return images

    def fit(accumulate):
        masks.clear()
        module = ImageClassifier(nn.Sequential(Mask(), nn.Flatten(), nn.Linear(3 * 8 * 8, CLASSES)), CLASSES)
        _trainer(max_epochs=1, accumulate_grad_batches=accumulate).fit(module, _loader())
        return [mask.tolist() for mask in masks]

    first, second = fit(2), fit(2)
    assert first == second
    assert len({tuple(mask) for mask in first}) == 5
    # The first of each step drops what it drops without accumulation.
    assert [first[0], first[2], first[4]] == fit(1)[:3]


@pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable")
def test_a_module_that_is_fitted_again_inside_an_epoch_logs_it(tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 1:
                trainer.save_checkpoint(tmp_path / "inside.ckpt")

    module = _linear()
    _trainer(max_epochs=1, callbacks=[Save()]).fit(module, _loader())
    again = _trainer(max_epochs=1)
    again.fit(module, _loader(), ckpt_path=tmp_path / "inside.ckpt", weights_only=True)
    assert "train/loss" in again.callback_metrics


def test_the_default_optimizer_is_the_paper_s():
    trainer = _trainer(max_epochs=1)
    trainer.fit(_linear(), _loader())
    (optimizer,) = trainer.optimizers
    assert type(optimizer) is torch.optim.SGD
    expected = {"lr": 0.1, "nesterov": True, "weight_decay": 5e-4}
    assert expected.items() <= optimizer.param_groups[0].items()
    assert trainer.lr_scheduler_configs == []


# Lightning warns of a training that has no end, which is refused right after.
@pytest.mark.filterwarnings("ignore:`max_epochs` was not set:UserWarning")
@pytest.mark.parametrize("arguments", [{"max_epochs": -1}, {"max_steps": 3}])
def test_a_training_without_a_number_of_epochs_is_refused(arguments):
    with pytest.raises(UserError, match="A training needs a number of epochs"):
        _trainer(**arguments).fit(_linear(), _loader())


@pytest.mark.parametrize(
    ("argument", "spec", "message"),
    [
        ("optimizer", {"class_path": "Adm"}, "no optimizer called 'Adm'. Did you mean Adam"),
        ("optimizer", {"class_path": "os.system"}, "no optimizer called 'os.system'"),
        ("optimizer", {"class_path": "SGD", "init_args": {"lr": -1.0}}, "SGD cannot be made with"),
        ("lr_scheduler", {"class_path": "Step"}, "no learning rate schedule called 'Step'"),
        ("lr_scheduler", {"class_path": "StepLR", "init_args": {"gamma": 0}}, "gamma must be greater than 0"),
    ],
)
def test_mistakes_in_the_specifications_are_the_user_s(argument, spec, message):
    with pytest.raises(UserError, match=message):
        _trainer(max_epochs=1).fit(_linear(**{argument: spec}), _loader())


@pytest.mark.parametrize("value", [-0.1, 1.0, 2, math.nan])
def test_label_smoothing_out_of_range_is_refused(value):
    with pytest.raises(UserError, match=f"label_smoothing must be at least 0 and less than 1, got {value}"):
        _linear(label_smoothing=value)


def test_a_record_without_a_trainer_says_which_model_it_is():
    module = _conv(label_smoothing=0.1)
    assert module.record() == {
        "format": RECORD_FORMAT,
        "version": __version__,
        "model": {
            "class_path": "HPSClassifier",
            "init_args": {
                "num_classes": CLASSES,
                "stages": [1, 1, 1, 1],
                "width": 0.25,
                "resolution": 1.0,
                "activation": "relu",
                "dropout": 0.0,
                "inplace": True,
                "skip_unread": False,
                "optimizer": _sgd(),
                "lr_scheduler": None,
                "label_smoothing": 0.1,
                "decay_norm_and_bias": True,
            },
        },
    }


def test_a_checkpoint_holds_the_record_in_plain_types(tmp_path):
    trainer = _trainer(max_epochs=2)
    module = _conv()
    trainer.fit(module, datamodule=Data(validates=True))
    trainer.save_checkpoint(tmp_path / "module.ckpt")
    record = torch.load(tmp_path / "module.ckpt", weights_only=True)[RECORD_KEY]
    assert set(record) == {"format", "version", "model", "epoch", "max_epochs", "metrics", "dataset", "classes"}
    assert (record["epoch"], record["max_epochs"]) == (2, 2)
    assert set(record["metrics"]) == {"train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/top5"}
    assert {type(value) for value in record["metrics"].values()} == {float}
    assert record["model"]["init_args"]["stages"] == [1, 1, 1, 1]
    assert (record["dataset"], record["classes"]) == ("made up", ["a", "b"])


def test_a_checkpoint_rebuilds_the_module(tmp_path):
    trainer = _trainer(max_epochs=1)
    module = _conv()
    trainer.fit(module, _loader())
    trainer.save_checkpoint(tmp_path / "module.ckpt")
    loaded = HPSClassifier.load_from_checkpoint(tmp_path / "module.ckpt", weights_only=True).eval()
    images, _ = _data()
    assert torch.equal(loaded(images), module.eval()(images))


def _two_units(**arguments):
    """Shallow: a deep network with batches as small as these makes another training out of any rounding."""
    torch.manual_seed(0)
    units = [nn.Sequential(nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True)) for channels in (3, 8)]
    network = nn.Sequential(*units, nn.Flatten(), nn.Linear(8 * 4 * 4, CLASSES))
    return ImageClassifier(network, CLASSES, **arguments)


def _losses(module, **arguments):
    """The training's loss of each epoch."""

    class Note(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            losses.append(trainer.callback_metrics["train/loss"].item())

    losses = []
    arguments = {"max_epochs": 3, **arguments}
    _trainer(callbacks=[Note()], **arguments).fit(module, _loader())
    return losses


@needs_compiler
def test_a_training_on_a_cpu_goes_through_the_kernels():
    module, kinds = _conv(), {}
    assert (module.fused, module.kernels) == (None, "PyTorch's")
    module.network.stem.register_forward_hook(
        lambda stem, images, output: kinds.setdefault(module.training, set()).add(type(stem))
    )
    _trainer(max_epochs=2).fit(module, _loader(), _loader())
    assert module.kernels == "fused"
    assert module.fused.units == sum(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())
    assert kinds[False] == {ConvUnit}
    assert ConvUnit not in kinds[True]
    assert type(module.network.stem) is ConvUnit


@needs_compiler
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_kernels_train_as_pytorch_s_own(monkeypatch, precision):
    module = _two_units(optimizer=_sgd(0.05))
    fused = _losses(module, precision=precision)
    assert module.fused.units == 2
    monkeypatch.setenv("HPS_EAGER", "1")
    module = _two_units(optimizer=_sgd(0.05))
    eager = _losses(module, precision=precision)
    assert (module.fused, module.kernels) == (None, "PyTorch's (HPS_EAGER is set)")
    assert fused == pytest.approx(eager, rel=1e-3 if precision == "32-true" else 2e-2)
    # It does learn.
    assert fused[-1] < 0.8 * fused[0]


@needs_compiler
def test_the_variable_holds_for_each_training(monkeypatch):
    module = _conv()
    monkeypatch.setenv("HPS_EAGER", "0")
    _trainer(max_epochs=1).fit(module, _loader())
    assert module.fused is not None
    monkeypatch.setenv("HPS_EAGER", "1")
    _trainer(max_epochs=1).fit(module, _loader())
    assert (module.fused, module.kernels) == (None, "PyTorch's (HPS_EAGER is set)")


class Graphs(Callback):
    """Stands where a GPU's graphs would, and counts."""

    def on_train_start(self, trainer, pl_module):
        self.calls, self.network, pl_module.graphed = 0, pl_module.network, self

    def __call__(self, images):
        self.calls += 1
        return self.network(images)


@pytest.mark.parametrize(("batches", "graphed"), [(1, True), (2, False)])
def test_gradients_that_add_up_go_without_graphs(batches, graphed):
    module, graphs = _linear(), Graphs()
    trainer = _trainer(max_epochs=1, accumulate_grad_batches=batches, callbacks=[graphs])
    trainer.fit(module, _loader())
    assert graphs.calls == (trainer.num_training_batches if graphed else 0)
    assert module.graphed is None


class Scaled(ImageClassifier):
    def forward(self, images):
        return super().forward(images) / 2


@pytest.mark.parametrize("own", ["forward", "hook"])
def test_what_a_graph_of_the_network_would_leave_out_goes_without_graphs(own):
    module, graphs = _linear(), Graphs()
    if own == "forward":
        module.__class__ = Scaled
    else:
        module.register_forward_hook(lambda *_: None)
    _trainer(max_epochs=1, callbacks=[graphs]).fit(module, _loader())
    assert graphs.calls == 0


def test_a_training_that_an_error_broke_off_leaves_nothing_to_the_next():
    class Breaks(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            raise OSError("the disk is full")

    module, clean = _linear(optimizer=_sgd(lr=0.0)), _trainer(max_epochs=1)
    with pytest.raises(OSError, match="the disk is full"):
        _trainer(max_epochs=1, callbacks=[Breaks()]).fit(module, _loader(batch_size=3))
    clean.fit(module, _loader())
    expected = F.cross_entropy(module(_data()[0]), _data()[1])
    torch.testing.assert_close(clean.callback_metrics["train/loss"], expected.detach())


def test_without_a_compiler_it_trains_and_says_why(monkeypatch):
    def refuse(network):
        raise NativeUnavailableError("no C++ compiler was found")

    monkeypatch.setattr("hps_lightning.modules.classifier.FusedTraining", refuse)
    module = _conv()
    assert all(math.isfinite(loss) for loss in _losses(module))
    assert module.fused is None
    assert module.kernels == "PyTorch's, which are slower (no C++ compiler was found)"


def test_a_network_without_units_for_the_kernels_says_so(monkeypatch):
    # Nor does it need a compiler.
    monkeypatch.setenv("CXX", "/nowhere/c++")
    module = _linear(optimizer=_sgd())
    _losses(module)
    assert module.kernels == "PyTorch's"


@pytest.mark.parametrize("method", ["validate", "test"])
def test_evaluation_alone_needs_no_kernels(monkeypatch, method):
    def refuse(network):
        raise AssertionError("nothing is trained here")

    monkeypatch.setattr("hps_lightning.modules.classifier.FusedTraining", refuse)
    module = _conv()
    getattr(_trainer(), method)(module, _loader(), verbose=False)
    assert module.kernels == "PyTorch's"


def test_the_optimizer_updates_all_parameters_at_once():
    trainer = _trainer(max_epochs=1)
    trainer.fit(_linear(), _loader())
    assert trainer.optimizers[0].defaults["fused"] is True


def test_where_first_steps_may_be_skipped_the_momentum_has_a_value():
    # PyTorch's fused SGD makes room for it in a step that it skips.
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    trainer = _trainer(max_epochs=1, plugins=[plugin])
    trainer.fit(_linear(optimizer=_sgd()), _loader())
    assert not trainer.optimizers[0].defaults["fused"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped(precision, algorithm):
    module = _linear(optimizer=_sgd(lr=1.0))
    before = [parameter.detach().clone() for parameter in module.network.parameters()]
    clipped = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": algorithm}
    trainer = _trainer(max_epochs=1, max_steps=1, precision=precision, **clipped)
    trainer.fit(module, _loader())
    assert not trainer.optimizers[0].defaults["fused"]
    change = torch.cat([(now - then).flatten() for now, then in zip(module.network.parameters(), before, strict=True)])
    size = change.norm() if algorithm == "norm" else change.abs().max()
    assert size.item() == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("decay", [True, False])
def test_norms_and_biases_may_go_without_weight_decay(decay):
    module = _conv(decay_norm_and_bias=decay)
    trainer = _trainer(max_epochs=1)
    trainer.fit(module, _loader())
    assert module.hparams["decay_norm_and_bias"] is decay
    groups = trainer.optimizers[0].param_groups
    assert len(groups) == (1 if decay else 2)
    if not decay:
        assert {parameter.ndim for parameter in groups[0]["params"]} == {2, 4}
        assert {parameter.ndim for parameter in groups[1]["params"]} == {1}


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_loss_that_is_no_number_is_logged_as_such(epoch):
    class Spoil(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            # One step of several: the average of the others would hide it.
            if trainer.current_epoch == epoch and batch_idx == 2:
                batch[0].fill_(math.nan)

    images, labels = _data()
    module = _linear(optimizer=_sgd(lr=0.0))
    trainer = _trainer(max_epochs=epoch + 1, callbacks=[Spoil()])
    trainer.fit(module, DataLoader(TensorDataset(images, labels), 4))
    assert math.isnan(trainer.callback_metrics["train/loss"])


class Watch(Callback):
    """Keeps the weights at the start of each epoch, and what a checkpoint would say of the training's length."""

    def on_train_epoch_start(self, trainer, pl_module):
        self.weights = {name: value.clone() for name, value in pl_module.network.named_parameters()}
        self.planned = pl_module.record()["max_epochs"]


def test_averaged_weights_are_left_alone_by_the_epoch_that_measures_their_statistics():
    module, watch = _conv(), Watch()
    averaging = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)
    # Without a validation between, which would clear the gradients.
    trainer = _trainer(max_epochs=3, callbacks=[averaging, watch], log_every_n_steps=1)
    trainer.fit(module, _loader())
    assert trainer.current_epoch == 4, "the epoch of the statistics took place"
    assert watch.planned == 3, "and is no part of what was laid out"
    for name, value in module.network.named_parameters():
        assert torch.equal(value, watch.weights[name]), name
