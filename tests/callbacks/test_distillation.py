import math
import re

import pytest
import torch
from lightning.pytorch import Callback
from torch.nn import functional as F

from hps_lightning.callbacks import Distillation
from hps_lightning.checkpoint import load_classifier, read_checkpoint, write_whole
from hps_lightning.errors import UserError
from hps_lightning.modules import RECORD_KEY, HPSClassifier, MobileNetClassifier

from .tiny import ARGUMENTS, LIGHTNING_WARNINGS, RESUME_WARNING, TinyData, tiny, tiny_trainer

pytestmark = list(LIGHTNING_WARNINGS)


def save(path, module, **said):
    """A checkpoint of ``module`` as a training on :class:`TinyData` leaves it, but for what is ``said``."""
    record = {**module.record(), **TinyData().record(), **said}
    write_whole({"state_dict": module.state_dict(), RECORD_KEY: record}, path)
    return str(path)


@pytest.fixture
def teacher(tmp_path):
    torch.manual_seed(7)
    module = MobileNetClassifier(num_classes=3, width=0.1).eval()
    # Sure of itself, so that it is told from chance.
    with torch.no_grad():
        module.network.classifier.weight.mul_(500)
    return save(tmp_path / "teacher.ckpt", module)


def fit(folder, module, *callbacks, data=None, **arguments):
    arguments = {"logger": False, "num_sanity_val_steps": 0, **arguments}
    ckpt_path = arguments.pop("ckpt_path", None)
    trainer = tiny_trainer(folder, *callbacks, **arguments)
    trainer.fit(module, data or TinyData(), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def prepared(path, **arguments):
    callback = Distillation(path, **arguments)
    callback.prepare(tiny(), TinyData())
    return callback


def test_the_loss_is_that_of_hinton_vinyals_and_dean(teacher):
    callback = prepared(teacher, weight=0.3, temperature=2.0)
    images, logits = torch.randn(5, 3, 32, 32), torch.randn(5, 3, dtype=torch.float64)
    loss = callback.loss(images, logits, torch.tensor(1.7))
    with torch.no_grad():
        answers = load_classifier(teacher)(images).double()
    soft, own = (answers / 2).softmax(1), (logits / 2).softmax(1)
    divergence = (soft * (soft / own).log()).sum(1).mean()
    assert float(loss.detach()) == pytest.approx(0.7 * 1.7 + 0.3 * 4 * float(divergence), rel=1e-4)


def test_whoever_answers_as_the_teacher_has_nothing_to_learn_from_it(teacher):
    callback = prepared(teacher, weight=1.0)
    images = torch.randn(4, 3, 32, 32)
    logits = load_classifier(teacher)(images).detach().requires_grad_()
    loss = callback.loss(images, logits, torch.tensor(math.pi))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-5)
    assert logits.grad.abs().max() < 1e-5


def test_the_gradient_keeps_its_size_when_the_temperature_rises(teacher):
    images, logits = torch.randn(8, 3, 32, 32), torch.randn(8, 3)
    sizes = []
    for temperature in (20.0, 40.0):
        own = logits.clone().requires_grad_()
        prepared(teacher, weight=1.0, temperature=temperature).loss(images, own, torch.tensor(0.0)).backward()
        sizes.append(own.grad.norm())
    assert sizes[1] / sizes[0] == pytest.approx(1, abs=0.1)


def test_a_network_learns_what_its_teacher_answers_instead_of_the_labels(tmp_path, teacher):
    data = TinyData(images=8, protocol="full")
    images, labels = data.train_set.tensors
    answers = load_classifier(teacher)(images).softmax(1).detach()
    assert (answers.argmax(1) != labels).sum() >= 4, "else nothing tells the two apart"
    torch.manual_seed(0)
    module = HPSClassifier(**ARGUMENTS, optimizer={"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}})
    fit(tmp_path, module, Distillation(teacher, weight=1.0, temperature=1.0), data=data, max_epochs=60)
    # As in training: in batches of 4, whose own statistics norm them.
    learnt = torch.cat([module.train()(batch).softmax(1) for batch in images.split(4)])
    # From the labels alone it would come to lie 0.46 away; the last image or so may depend on rounding.
    assert (learnt - answers).abs().mean() < 0.2


def test_the_teacher_sees_what_the_network_sees_and_stays_as_it_is(tmp_path, teacher):
    callback, seen = Distillation(teacher), {"teacher": [], "network": []}
    module = tiny()
    callback.prepare(module, TinyData())
    before = {key: value.clone() for key, value in callback._network.state_dict().items()}
    callback._network.register_forward_pre_hook(lambda _, inputs: seen["teacher"].append(inputs[0].clone()))
    module.network.register_forward_pre_hook(
        lambda layer, inputs: seen["network"].append(inputs[0].clone()) if layer.training else None
    )
    fit(tmp_path, module, callback, max_epochs=1)
    # Three batches; none of validation.
    assert len(seen["teacher"]) == len(seen["network"]) == 3
    assert all(torch.equal(mine, its) for mine, its in zip(seen["teacher"], seen["network"], strict=True))
    assert not callback._network.training
    assert all(torch.equal(value, before[key]) for key, value in callback._network.state_dict().items())


def test_the_checkpoint_says_who_taught_and_holds_nothing_else_of_it(tmp_path, teacher):
    module = HPSClassifier(**ARGUMENTS)
    trainer = fit(tmp_path, module, Distillation(teacher, weight=0.5, temperature=3.0), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "taught.ckpt")
    content = read_checkpoint(tmp_path / "taught.ckpt")
    assert set(content["state_dict"]) == set(HPSClassifier(**ARGUMENTS).state_dict())
    said = content[RECORD_KEY]["distillation"]
    assert (said["weight"], said["temperature"]) == (0.5, 3.0)
    assert said["teacher"]["name"] == "mobilenet with width 0.1"
    assert said["teacher"]["protocol"] == "holdout"
    assert said["teacher"]["model"]["init_args"]["width"] == 0.1
    assert str(tmp_path) not in str(content[RECORD_KEY])
    (tmp_path / "teacher.ckpt").unlink()
    assert load_classifier(tmp_path / "taught.ckpt").num_classes == 3


def test_a_training_without_it_afterwards_has_no_teacher(tmp_path, teacher):
    module = tiny()
    trainer = fit(tmp_path, module, Distillation(teacher), max_epochs=1)
    assert "distillation" in module.record()
    trainer.validate(module, TinyData(), verbose=False)
    assert "distillation" not in module.record()
    assert Distillation(teacher).state_dict() == {}
    fit(tmp_path, module, max_epochs=1)
    assert module.distillation is None


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_it_teaches_in_every_precision(tmp_path, teacher, precision):
    trainer = fit(tmp_path, tiny(), Distillation(teacher), max_epochs=1, precision=precision)
    assert torch.isfinite(trainer.callback_metrics["train/loss"])


def test_labels_that_were_mixed_are_learnt_beside_it(tmp_path, teacher):
    class Mixed(TinyData):
        @staticmethod
        def _set(count, generator):
            images, labels = TinyData._set(count, generator).tensors
            return torch.utils.data.TensorDataset(images, F.one_hot(labels, 3).float())

    trainer = fit(tmp_path, tiny(), Distillation(teacher), data=Mixed(protocol="full"), max_epochs=1)
    assert torch.isfinite(trainer.callback_metrics["train/loss"])


def test_a_training_that_goes_on_ends_as_one_that_was_not_interrupted(tmp_path, teacher):
    class Stop(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "one.ckpt")

    whole = tiny()
    fit(tmp_path, whole, Distillation(teacher), Stop())
    again = tiny()
    fit(tmp_path, again, Distillation(teacher), Stop(), ckpt_path=tmp_path / "one.ckpt")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in whole.state_dict().items())
    other = tmp_path / "other.ckpt"
    save(other, HPSClassifier(**ARGUMENTS))
    with pytest.raises(UserError, match=r"other\.ckpt is not the teacher that this training began with"):
        fit(tmp_path, tiny(), Distillation(str(other)), Stop(), ckpt_path=tmp_path / "one.ckpt")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"dataset": "cifar10"}, "was trained on cifar10, and this training is on made"),
        ({"protocol": "full"}, r"\(protocol full\) has seen images that validate here.*--data.protocol full"),
        ({"protocol": "paper"}, "has seen images that validate here"),
        ({"data": {"val_fraction": 0.2, "split_seed": 0}}, "has seen images that validate here"),
    ],
)
def test_who_cannot_teach_is_refused(tmp_path, said, message):
    path = save(tmp_path / "teacher.ckpt", HPSClassifier(**ARGUMENTS), **said)
    with pytest.raises(UserError, match=message):
        fit(tmp_path, tiny(), Distillation(path))


def test_a_teacher_of_other_classes_is_refused(tmp_path):
    path = save(tmp_path / "teacher.ckpt", HPSClassifier(**{**ARGUMENTS, "num_classes": 4}))
    with pytest.raises(UserError, match="tells 4 classes apart, and this network 3"):
        fit(tmp_path, tiny(), Distillation(path))


def test_where_nothing_is_held_out_any_protocol_teaches(tmp_path, teacher):
    fit(tmp_path, tiny(), Distillation(teacher), data=TinyData(protocol="full"), max_epochs=1)
    path = save(tmp_path / "full.ckpt", HPSClassifier(**ARGUMENTS), protocol="full")
    fit(tmp_path, tiny(), Distillation(path), data=TinyData(protocol="full"), max_epochs=1)


def test_a_file_that_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match=r"There is no checkpoint .*missing\.ckpt"):
        fit(tmp_path, tiny(), Distillation(str(tmp_path / "missing.ckpt")))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("weight", 0),
        ("weight", -0.1),
        ("weight", 1.1),
        ("weight", float("nan")),
        ("temperature", 0),
        ("temperature", -1.0),
        ("temperature", float("inf")),
        ("temperature", 1e20),
        ("temperature", 1e-200),
        ("temperature", float("nan")),
    ],
)
def test_arguments_out_of_range_are_named(argument, value):
    with pytest.raises(UserError, match=rf"^Distillation: {argument} must be .*, got {re.escape(str(value))}\.$"):
        Distillation("teacher.ckpt", **{argument: value})


@RESUME_WARNING
def test_an_evaluation_of_what_was_taught_needs_no_teacher(tmp_path, teacher):
    taught = fit(tmp_path, tiny(), Distillation(teacher), max_epochs=1)
    taught.save_checkpoint(tmp_path / "taught.ckpt")
    trainer = tiny_trainer(tmp_path, Distillation("gone.ckpt"), logger=False)
    assert trainer.validate(tiny(), TinyData(), ckpt_path=tmp_path / "taught.ckpt", weights_only=True)
