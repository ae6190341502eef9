import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hps_lightning.complexity import count_macs, count_parameters
from hps_lightning.networks import MobileNet


def _images(count=2, size=32):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def _seen_by_stem(network, images):
    seen = []
    network.stem.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    with torch.no_grad():
        network(images)
    return seen[0]


# As Keras, whose MobileNet is the authors', counts the trainable ones.
@pytest.mark.parametrize(("width", "parameters"), [(1.0, 4_231_976), (0.5, 1_331_592)])
def test_parameter_counts(width, parameters):
    with torch.device("meta"):
        assert count_parameters(MobileNet(1000, width=width)) == parameters


def test_macs_are_the_published_569_million():
    with torch.device("meta"):
        # The stem does not halve the map, as it does for 224 x 224.
        assert count_macs(MobileNet(1000), (3, 112, 112)) == 568_740_352


def test_a_32x32_image_ends_as_2x2():
    with torch.device("meta"):
        network = MobileNet()
        assert network.layers(network.stem(torch.zeros(1, 3, 32, 32))).shape == (1, 1024, 2, 2)


@pytest.mark.parametrize("activation", ["relu", "elu"])
@pytest.mark.parametrize("width", [0.01, 0.1, 0.37, 1.13])
def test_any_width_trains_alike_in_place_and_not(width, activation):
    gradients = []
    for inplace in (True, False):
        torch.manual_seed(0)
        network = MobileNet(7, width=width, activation=activation, inplace=inplace)
        assert network.stem.conv.out_channels == max(1, int(width * 32))
        assert network.classifier.in_features == max(1, int(width * 1024))
        logits = network(_images())
        assert logits.shape == (2, 7)
        F.cross_entropy(logits, torch.tensor([0, 6])).backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients[0])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_units_chain_convolution_norm_and_activation_without_a_redundant_bias():
    with torch.device("meta"):
        network = MobileNet(activation="elu", inplace=False)
    units = [module for module in network.modules() if hasattr(module, "conv")]
    assert len(units) == 1 + 2 * 13
    for unit in units:
        assert [name for name, _ in unit.named_children()] == ["conv", "norm", "activation"]
        assert unit.conv.bias is None
        assert type(unit.activation) is nn.ELU
        assert not unit.activation.inplace
    for layer in network.layers:
        assert layer.depthwise.conv.groups == layer.depthwise.conv.in_channels
        assert layer.pointwise.conv.kernel_size == (1, 1)


@pytest.mark.parametrize("resolution", [0.5, 1.5])
def test_resolution_scales_what_the_stem_sees(resolution):
    network = MobileNet(width=0.1, resolution=resolution).eval()
    images = _images()
    seen = _seen_by_stem(network, images)
    if resolution < 1:
        torch.testing.assert_close(seen, F.avg_pool2d(images, 2))
    else:
        torch.testing.assert_close(seen, F.interpolate(images, size=[48, 48], mode="bilinear", align_corners=False))
    assert network(images).shape == (2, 10)


def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    network = MobileNet(width=0.1, dropout=0.5)
    assert not torch.equal(network(_images()), network(_images()))
    network.eval()
    assert torch.equal(network(_images()), network(_images()))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("width", 0),
        ("width", -1),
        ("width", math.nan),
        ("width", math.inf),
        ("width", "1"),
        ("resolution", 0.0),
        ("resolution", "1"),
        ("dropout", 1.0),
        ("dropout", math.nan),
        ("activation", "gelu"),
        ("num_classes", 0),
        ("num_classes", 1.0),
    ],
)
def test_refusals_name_the_argument_and_the_value(argument, value):
    with pytest.raises(ValueError, match=f"{argument} must be.*{re.escape(repr(value))}"):
        MobileNet(**{argument: value})


def test_an_image_keeps_at_least_four_pixels_a_side():
    with pytest.raises(ValueError, match=r"resolution must leave at least 4 of 32 pixels, got 0\.1$"):
        MobileNet(resolution=0.1)
    MobileNet(resolution=0.125)
