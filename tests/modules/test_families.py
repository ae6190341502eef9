import io
import math

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hps_lightning import zoo
from hps_lightning.errors import UserError
from hps_lightning.modules import CLASSIFIERS
from tests.modules import LIGHTNING_WARNINGS

pytestmark = LIGHTNING_WARNINGS

SMALL = {
    "squeezenet": {"dropout": 0.0},
    "squeezed_cnn": {"dropout": 0.0},
    "mobilenet": {"width": 0.25},
    **{
        family: {"stages": [1, 1, 1, 1], "width": 0.25}
        for family in ("squeezenext", "modified_squeezenext", "shallow_squeezenext", "hps")
    },
}
# Those without batch norm need a lower rate.
RATES = {"squeezenet": 5e-4, "squeezed_cnn": 5e-5}
BLOCK_FAMILIES = ["squeezenext", "modified_squeezenext", "shallow_squeezenext", "hps"]


def _batch(soft=False):
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) % 4
    if soft:
        # As mixup leaves them.
        hard = F.one_hot(labels, 4).float()
        labels = 0.7 * hard + 0.3 * hard.roll(1, 0)
    return images, labels


def _module(family):
    torch.manual_seed(0)
    adam = {"class_path": "Adam", "init_args": {"lr": RATES.get(family, 1e-3)}}
    return CLASSIFIERS[family](num_classes=4, optimizer=adam, **SMALL[family])


class Losses(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(outputs["loss"].item())


def _train(module, soft):
    losses = Losses()
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = Trainer(accelerator="cpu", max_epochs=10, callbacks=[losses], **dict.fromkeys(quiet, False))
    trainer.fit(module, DataLoader(TensorDataset(*_batch(soft)), batch_size=8))
    return losses.seen


def test_the_families_are_the_zoo_s():
    assert list(CLASSIFIERS) == list(zoo.FAMILIES)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("family", CLASSIFIERS)
def test_the_loss_of_a_batch_falls(family, soft):
    losses = _train(_module(family), soft)
    assert len(losses) == 10
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_the_seed_decides_the_training(family):
    assert _train(_module(family), soft=False) == _train(_module(family), soft=False)


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_the_network_is_the_family_s_with_the_arguments_given(family):
    module = _module(family)
    assert type(module.network) is zoo.FAMILIES[family]
    with torch.device("meta"):
        expected = zoo.FAMILIES[family](num_classes=4, **SMALL[family])
    assert [p.shape for p in module.network.parameters()] == [p.shape for p in expected.parameters()]


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_hyper_parameters_are_plain_and_rebuild_the_network(family):
    module = _module(family).eval()
    file = io.BytesIO()
    torch.save(dict(module.hparams), file)
    file.seek(0)
    arguments = torch.load(file, weights_only=True)
    assert arguments == dict(module.hparams)
    rebuilt = CLASSIFIERS[family](**arguments).eval()
    rebuilt.load_state_dict(module.state_dict())
    images, _ = _batch()
    assert torch.equal(rebuilt(images), module(images))


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_every_argument_is_a_hyper_parameter(family):
    with torch.device("meta"):
        module = CLASSIFIERS[family]()
    every = {"num_classes", "activation", "dropout", "inplace", "optimizer", "lr_scheduler"}
    every |= {"label_smoothing", "decay_norm_and_bias"}
    own = {"squeezenet": {"version"}, "squeezed_cnn": set(), "mobilenet": {"width", "resolution"}}
    assert set(module.hparams) == every | own.get(family, {"stages", "width", "resolution", "skip_unread"})


@pytest.mark.parametrize(
    ("family", "stages", "width", "inplace"),
    [
        ("squeezenext", [6, 6, 8, 1], 1.0, True),
        ("modified_squeezenext", [6, 6, 8, 1], 1.0, False),
        ("hps", [2, 4, 12, 1], 1.0, True),
        ("shallow_squeezenext", [1, 1, 1, 1], 0.5, True),
    ],
)
def test_what_is_not_given_is_saved_as_the_family_s_own(family, stages, width, inplace):
    with torch.device("meta"):
        module = CLASSIFIERS[family](stages=None, width=None, inplace=None)
    assert (module.hparams.stages, module.hparams.width, module.hparams.inplace) == (stages, width, inplace)
    assert [len(getattr(module.network, f"stage{stage}")) for stage in (1, 2, 3, 4)] == stages
    assert module.network.stem.conv.out_channels == 64 * width


def test_stages_may_be_a_tuple_and_are_saved_as_a_list():
    with torch.device("meta"):
        module = CLASSIFIERS["hps"](stages=(1, 1, 1, 1))
    assert module.hparams.stages == [1, 1, 1, 1]


@pytest.mark.parametrize("family", CLASSIFIERS)
@pytest.mark.parametrize(
    ("argument", "value"),
    [("num_classes", 0), ("dropout", 1.0), ("activation", "gelu"), ("label_smoothing", 1.0)],
)
def test_mistakes_are_the_user_s(family, argument, value):
    arguments = {"num_classes": 4, **SMALL[family], argument: value}
    with pytest.raises(UserError, match=rf"{argument} must be .*got {value!r}"):
        CLASSIFIERS[family](**arguments)


@pytest.mark.parametrize("family", BLOCK_FAMILIES)
@pytest.mark.parametrize(
    ("argument", "value"),
    [("width", 0), ("width", math.nan), ("resolution", -1.0), ("stages", [1, 2, 3]), ("stages", [1, 0, 1, 1])],
)
def test_mistakes_in_the_shape_are_the_user_s(family, argument, value):
    with pytest.raises(UserError, match=rf"cannot be built: {argument} must be "):
        CLASSIFIERS[family](**{argument: value})


def test_an_unknown_version_is_the_user_s():
    with pytest.raises(UserError, match="SqueezeNet cannot be built: version must be one of 1_0, 1_1, got '2_0'"):
        CLASSIFIERS["squeezenet"](version="2_0")


@pytest.mark.parametrize("family", ["mobilenet", *BLOCK_FAMILIES])
def test_resolution_reaches_the_network(family):
    with torch.device("meta"):
        assert CLASSIFIERS[family](resolution=0.5).network.resolution == 0.5
