import math
import re

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from hps_lightning.complexity import count_parameters, module_bytes
from hps_lightning.networks import SqueezedCNN, SqueezeNet
from hps_lightning.networks.squeezenet import Fire

TORCHVISION = {"1_0": torchvision.models.squeezenet1_0, "1_1": torchvision.models.squeezenet1_1}


def _images(count=2, size=32):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("version", "num_classes", "parameters"),
    [("1_0", 10, 740_554), ("1_0", 100, 786_724), ("1_1", 10, 727_626), ("1_1", 100, 773_796)],
)
def test_parameter_counts(version, num_classes, parameters):
    with torch.device("meta"):
        assert count_parameters(SqueezeNet(num_classes, version)) == parameters


def test_defaults():
    with torch.device("meta"):
        assert count_parameters(SqueezeNet()) == 727_626


@pytest.mark.parametrize("version", ["1_0", "1_1"])
@pytest.mark.parametrize("num_classes", [10, 100])
def test_equals_torchvision_s(version, num_classes):
    torch.manual_seed(0)
    theirs = TORCHVISION[version](num_classes=num_classes).eval()
    ours = SqueezeNet(num_classes, version).eval()
    shapes = [{name: value.shape for name, value in network.state_dict().items()} for network in (theirs, ours)]
    assert shapes[0] == shapes[1]
    ours.load_state_dict(theirs.state_dict())
    for size in (32, 64):
        with torch.no_grad():
            assert torch.equal(ours(_images(size=size)), theirs(_images(size=size)))


@pytest.mark.parametrize("version", ["1_0", "1_1"])
def test_starts_as_torchvision_s_does(version):
    torch.manual_seed(0)
    theirs = TORCHVISION[version](num_classes=10)
    torch.manual_seed(0)
    ours = SqueezeNet(10, version)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(("version", "smallest"), [("1_0", 21), ("1_1", 17)])
def test_the_smallest_side_is_the_documented_one(version, smallest):
    with torch.device("meta"):
        network = SqueezeNet(version=version)
        assert network(torch.zeros(2, 3, smallest, smallest)).shape == (2, 10)
        with pytest.raises(RuntimeError, match=r"Output size is too small|can't be greater than actual input size"):
            network(torch.zeros(2, 3, smallest - 1, smallest - 1))


def test_squeezed_cnn_is_as_large_as_the_paper_prints():
    assert module_bytes(SqueezedCNN()) / 1e6 == pytest.approx(12.90, rel=0.03)


def test_squeezed_cnn_has_three_fire_modules_of_squeezenet_1_0():
    torch.manual_seed(0)
    fires = [module for module in SqueezedCNN().modules() if isinstance(module, Fire)]
    theirs = [module for module in SqueezeNet(version="1_0").modules() if isinstance(module, Fire)][:3]
    assert [[p.shape for p in fire.parameters()] for fire in fires] == [
        [p.shape for p in fire.parameters()] for fire in theirs
    ]


def test_squeezed_cnn_starts_without_bias():
    torch.manual_seed(0)
    network = SqueezedCNN()
    assert network.classifier[-1].weight.std().item() == pytest.approx(0.01, rel=0.1)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            assert (module.bias == 0).all()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module is not network.classifier[-1]:
            bound = math.sqrt(6 / (module.weight[0].numel()))
            assert module.weight.abs().max() <= bound
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize("network_class", [SqueezeNet, SqueezedCNN])
@pytest.mark.parametrize("activation", ["relu", "elu"])
def test_trains_alike_in_place_and_not(network_class, activation):
    gradients = []
    for inplace in (True, False):
        torch.manual_seed(0)
        network = network_class(7, activation=activation, inplace=inplace, dropout=0.0)
        activations = [module for module in network.modules() if isinstance(module, (nn.ReLU, nn.ELU))]
        assert {module.inplace for module in activations} == {inplace}
        assert {type(module) for module in activations} == {{"relu": nn.ReLU, "elu": nn.ELU}[activation]}
        logits = network(_images())
        assert logits.shape == (2, 7)
        F.cross_entropy(logits, torch.tensor([0, 6])).backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])
    assert all(gradient.isfinite().all() for gradient in gradients[0])
    assert sum(gradient.abs().sum() for gradient in gradients[0]) > 0


@pytest.mark.parametrize("network_class", [SqueezeNet, SqueezedCNN])
def test_dropout_acts_in_training_alone(network_class):
    torch.manual_seed(0)
    network = network_class(dropout=0.4)
    assert [module.p for module in network.modules() if isinstance(module, nn.Dropout)] == [0.4]
    assert not torch.equal(network(_images()), network(_images()))
    network.eval()
    assert torch.equal(network(_images()), network(_images()))


@pytest.mark.parametrize("network_class", [SqueezeNet, SqueezedCNN])
@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("num_classes", 0),
        ("num_classes", 2.0),
        ("num_classes", True),
        ("dropout", 1.0),
        ("dropout", -0.5),
        ("dropout", math.nan),
        ("dropout", "0"),
        ("activation", "gelu"),
    ],
)
def test_refusals_name_the_argument_and_the_value(network_class, argument, value):
    with pytest.raises(ValueError, match=f"{argument} must be.*{re.escape(repr(value))}"):
        network_class(**{argument: value})


@pytest.mark.parametrize("version", ["1.0", "2_0", None])
def test_an_unknown_version_is_refused(version):
    with pytest.raises(ValueError, match=f"version must be one of 1_0, 1_1, got {re.escape(repr(version))}"):
        SqueezeNet(version=version)
