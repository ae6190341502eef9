import copy
import os
import shutil
import subprocess
import sys
from statistics import median

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from hps_lightning import networks
from hps_lightning.engine import FusedTraining
from hps_lightning.networks.squeezenext import ConvUnit, SqueezeNextBlock

needs_compiler = pytest.mark.skipif(
    not os.environ.get("CXX") and not any(map(shutil.which, ("c++", "g++", "clang++"))),
    reason="there is no C++ compiler",
)
pytestmark = needs_compiler

ORDERS = ("conv-relu-norm", "conv-norm-relu")
KERNELS = ((1, 3), (3, 1))


class Stretch(nn.Module):
    """What comes before a block and is none: its output is negative in half of the places."""

    def forward(self, images):
        return images * 2


def _unit(in_channels, out_channels, order, inplace=True, eps=1e-5, momentum=0.1, activation=nn.ReLU, **arguments):
    conv = nn.Conv2d(in_channels, out_channels, **{"kernel_size": 3, **arguments})
    norm = nn.BatchNorm2d(out_channels, eps=eps, momentum=momentum)
    act = activation(inplace=inplace)
    return nn.Sequential(conv, act, norm) if order == "conv-relu-norm" else nn.Sequential(conv, norm, act)


def _shaken(network):
    """Norms and biases as a training may leave them, rather than all ones and zeros."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            signs = torch.randint(0, 2, module.weight.shape) * 2 - 1
            nn.init.uniform_(module.weight, 0.5, 1.5).data.mul_(signs)
            nn.init.normal_(module.bias, std=0.3)
            if module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.3)
    return network


def _step(network, images, fused, dtype=None):
    """The output of a copy of ``network``, all gradients under a random loss, and the buffers after it."""
    network, images = copy.deepcopy(network), images.detach().clone().requires_grad_()
    weights = torch.Generator().manual_seed(1)

    def loss():
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            output = network(images)
        return output, (output.double() * torch.randn(output.shape, generator=weights, dtype=torch.float64)).sum()

    if fused:
        with FusedTraining(network).applied():
            output, total = loss()
    else:
        output, total = loss()
    total.backward()
    found = {"output": output, "images": images.grad}
    found |= {name: parameter.grad for name, parameter in network.named_parameters() if parameter.requires_grad}
    return {name: value.detach() for name, value in (found | dict(network.named_buffers())).items()}


def _exact(network, images):
    return _step(copy.deepcopy(network).double(), images.double(), fused=False)


def _scales(exact):
    """What an error in each tensor is measured against: its greatest value."""
    scales = {name: value.abs().max().item() for name, value in exact.items()}
    others = ("output", "running_mean", "running_var", "num_batches_tracked")
    gradients = [scale for name, scale in scales.items() if not name.endswith(others)]
    # Some have no effect at all, such as a bias before a batch norm: their gradients are sums that cancel.
    nothing = 1e-3 * max(gradients, default=0)
    return {
        name: max(gradients) if scale < nothing and not name.endswith(others) else scale
        for name, scale in scales.items()
    }


def _errors(found, exact):
    scales = _scales(exact)
    assert found.keys() == exact.keys()
    assert all(found[name].shape == exact[name].shape for name in exact)
    return {name: (found[name].double() - exact[name]).abs().max().item() / (scales[name] or 1) for name in exact}


def _agree(found, exact, tolerance):
    errors = _errors(found, exact)
    assert {name: error for name, error in errors.items() if not error < tolerance} == {}
    counts = {name for name in exact if name.endswith("num_batches_tracked")}
    assert all(torch.equal(found[name], exact[name]) and found[name] == 1 for name in counts)


def _decided(make, shape, margin=1e-5, non_negative=False):
    """A network and images that keep every ReLU away from 0, where rounding decides about whole gradients."""
    for seed in range(200):
        torch.manual_seed(seed)
        network, images = _shaken(make()), torch.randn(shape)
        if non_negative:
            images = images.abs()
        least = []

        def note(relu, inputs, least=least):
            (values,) = inputs
            # Two summands which are both 0 are so in any arithmetic.
            least.append(values[values != 0].abs().min().item())

        exact = copy.deepcopy(network).double()
        for module in exact.modules():
            if isinstance(module, nn.ReLU):
                module.register_forward_pre_hook(note)
        with torch.no_grad():
            exact(images.double())
        # An ELU has no such place.
        if not least or min(least) > margin:
            return network, images
    raise AssertionError("no seed keeps all ReLUs away from 0")


def _changed(network):
    """The names of the modules that take the fast way."""
    usual = {name: type(module) for name, module in network.named_modules()}
    with FusedTraining(network).applied():
        return {name for name, module in network.named_modules() if type(module) is not usual[name]}


@pytest.mark.parametrize("width", [1, 3, 4, 8, 9, 16, 23, 73, 300])
@pytest.mark.parametrize("order", ORDERS)
def test_a_unit_of_any_width_has_the_exact_values_and_gradients(order, width):
    network, images = _decided(lambda: _unit(5, width, order, padding=1), (3, 5, 5, 7))
    _agree(_step(network, images, fused=True), _exact(network, images), 1e-4)


GEOMETRIES = {
    "map of one pixel": ((6, 8, 1, 1), {"kernel_size": 1}),
    "two values in all": ((2, 8, 1, 1), {"kernel_size": 1}),
    "large map": ((2, 8, 30, 30), {"padding": 1}),
    "large map, 1x1": ((2, 8, 30, 30), {"kernel_size": 1}),
    "no bias": ((3, 8, 5, 7), {"bias": False}),
    "1x1 with stride": ((3, 8, 9, 7), {"kernel_size": 1, "stride": 2}),
    "1x1 with stride on an even map": ((3, 8, 8, 6), {"kernel_size": 1, "stride": 2, "bias": False}),
    "1x1 with two strides": ((3, 8, 9, 7), {"kernel_size": 1, "stride": (1, 3)}),
    "1x1 with stride and padding": ((3, 8, 9, 7), {"kernel_size": 1, "stride": 2, "padding": 1}),
    "3x3 with stride": ((3, 8, 9, 7), {"stride": 2, "padding": 1}),
    "row": ((3, 8, 9, 7), {"kernel_size": (1, 3), "padding": (0, 1)}),
    "dilated": ((3, 8, 9, 7), {"dilation": 2}),
    "groups": ((3, 8, 5, 7), {"groups": 2}),
    "depthwise": ((3, 8, 5, 7), {"padding": 1, "groups": 8, "bias": False}),
    "depthwise with stride": ((3, 8, 5, 7), {"padding": 1, "groups": 8, "stride": 2}),
    "depthwise 1x1 with stride": ((3, 8, 5, 7), {"kernel_size": 1, "groups": 8, "stride": 2}),
    "own eps and momentum": ((3, 8, 5, 7), {"eps": 0.3, "momentum": 0.7}),
    "momentum 0": ((3, 8, 5, 7), {"momentum": 0.0}),
    "not in place": ((3, 8, 5, 7), {"inplace": False}),
}


@pytest.mark.parametrize(("shape", "arguments"), GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("order", ORDERS)
def test_a_unit_of_any_geometry_has_the_exact_values_and_gradients(order, shape, arguments):
    network, images = _decided(lambda: _unit(8, 16, order, **arguments), shape)
    # Of two values, the norm makes 1 and -1 whatever they are: the gradients before it nearly cancel.
    tolerance = 1e-2 if shape == (2, 8, 1, 1) else 1e-4
    _agree(_step(network, images, fused=True), _exact(network, images), tolerance)


@pytest.mark.parametrize("norm_last", [False, True])
def test_a_unit_of_the_networks_has_the_exact_values_and_gradients(norm_last):
    network, images = _decided(lambda: ConvUnit(3, 6, (3, 3), norm_last=norm_last), (3, 3, 8, 8))
    assert _changed(network) == {""}
    _agree(_step(network, images, fused=True), _exact(network, images), 1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_every_hook_is_called(stride):
    block = SqueezeNextBlock(6, 6, stride, KERNELS)
    called = []
    names = [name for name, _ in block.named_modules()]
    for name in names:
        network = copy.deepcopy(block)
        network.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
        with FusedTraining(network).applied():
            network(torch.randn(2, 6, 8, 8))
    assert called == names


def test_pruned_weights_train():
    torch.manual_seed(0)
    network, images = _unit(6, 8, "conv-relu-norm"), torch.randn(4, 6, 8, 8)
    fused = FusedTraining(network)
    prune.l1_unstructured(network[0], "weight", amount=0.5)
    for _ in range(2):
        with fused.applied():
            network(images).square().sum().backward()
    assert (network[0].weight_orig.grad != 0).sum() == network[0].weight.numel() // 2


@pytest.mark.parametrize("offset", [100.0, -100.0])
def test_a_large_mean_does_not_spoil_the_variance(offset):
    torch.manual_seed(0)
    network, images = _shaken(_unit(3, 8, "conv-norm-relu", kernel_size=1)), torch.randn(4, 3, 16, 16) + offset
    found, exact = _step(network, images, fused=True), _exact(network, images)
    errors = _errors(found, exact)
    assert max(errors["output"], errors["1.running_mean"], errors["1.running_var"]) < 1e-4


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("order", ORDERS)
def test_the_layout_of_images_and_weights_does_not_matter(order, layout):
    network, images = _decided(lambda: _unit(3, 8, order), (3, 3, 8, 8))
    exact = _exact(network, images)
    found = _step(network.to(memory_format=layout), images.contiguous(memory_format=layout), fused=True)
    _agree(found, exact, 1e-4)


@pytest.mark.parametrize("order", ORDERS)
def test_a_gradient_that_is_a_part_of_a_larger_one_is_read_as_such(order):
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = (_unit(3, channels, order, padding=1) for channels in (6, 10))

        def forward(self, images):
            both = torch.cat([self.first(images), self.second(images)], 1)
            return both.contiguous(memory_format=torch.channels_last) * 1

    network, images = _decided(Beside, (3, 3, 5, 7))
    images = images.contiguous(memory_format=torch.channels_last)
    _agree(_step(network, images, fused=True), _exact(network, images), 1e-4)


class ChannelsLastGradient(torch.autograd.Function):
    """Hands a gradient on as a view: the first channels of a map that has more."""

    @staticmethod
    def forward(ctx, images):
        return images.clone()

    @staticmethod
    def backward(ctx, gradient):
        wider = torch.randn(len(gradient), 2 * gradient.shape[1], *gradient.shape[2:], dtype=gradient.dtype)
        view = wider.contiguous(memory_format=torch.channels_last)[:, : gradient.shape[1]]
        return view.copy_(gradient)


@pytest.mark.parametrize("order", ORDERS)
def test_a_gradient_that_is_a_view_of_some_channels_is_read_as_such(order):
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.unit = _unit(3, 8, order)

        def forward(self, images):
            return ChannelsLastGradient.apply(self.unit(images))

    network, images = _decided(Viewed, (3, 3, 8, 8))
    _agree(_step(network, images, fused=True), _exact(network, images), 1e-4)


BLOCKS = {
    "projection with stride": lambda norm_last: SqueezeNextBlock(6, 9, 2, KERNELS, norm_last=norm_last),
    "projection without": lambda norm_last: SqueezeNextBlock(9, 6, 1, KERNELS, norm_last=norm_last),
    "identity": lambda norm_last: SqueezeNextBlock(8, 8, 1, KERNELS, norm_last=norm_last),
    "identity, first in its stage": lambda norm_last: nn.Sequential(
        SqueezeNextBlock(8, 8, 1, KERNELS, norm_last=norm_last)
    ),
    "identity after identity": lambda norm_last: nn.Sequential(
        SqueezeNextBlock(8, 8, 1, KERNELS, norm_last=norm_last),
        SqueezeNextBlock(8, 8, 1, KERNELS[::-1], norm_last=norm_last),
    ),
    "identity after projection": lambda norm_last: nn.Sequential(
        SqueezeNextBlock(6, 8, 2, KERNELS, norm_last=norm_last), SqueezeNextBlock(8, 8, 1, KERNELS, norm_last=norm_last)
    ),
    "projection after identity": lambda norm_last: nn.Sequential(
        SqueezeNextBlock(8, 8, 1, KERNELS, norm_last=norm_last), SqueezeNextBlock(8, 6, 2, KERNELS, norm_last=norm_last)
    ),
    "identity after no block": lambda norm_last: nn.Sequential(
        Stretch(), SqueezeNextBlock(8, 8, 1, KERNELS, norm_last=norm_last)
    ),
}


@pytest.mark.parametrize("norm_last", [False, True])
@pytest.mark.parametrize("make", BLOCKS.values(), ids=BLOCKS)
def test_blocks_have_the_exact_values_and_gradients(make, norm_last):
    def counted(blocks):
        return sum(type(module) is SqueezeNextBlock for module in blocks.modules())

    channels = next(m for m in make(norm_last).modules() if isinstance(m, nn.Conv2d)).in_channels
    network, images = _decided(lambda: make(norm_last), (4, channels, 7, 9), margin=1e-4)
    assert (images < 0).any()
    before = counted(network)
    assert len(_changed(network)) > 5 * before
    _agree(_step(network, images, fused=True), _exact(network, images), 1e-3)
    assert counted(network) == before


def test_a_block_takes_some_channels_of_a_map():
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = SqueezeNextBlock(8, 8, 1, KERNELS, norm_last=True)

        def forward(self, images):
            return self.block(images[:, :8])

    network, images = _decided(Part, (4, 16, 7, 9), margin=1e-4)
    images = images.contiguous(memory_format=torch.channels_last)
    _agree(_step(network, images, fused=True), _exact(network, images), 1e-3)


NETWORKS = {
    "HPS": lambda: networks.HighPerformanceSqueezeNext(stages=[2, 1, 1, 1], width=0.25),
    "HPS, nothing unread": lambda: networks.HighPerformanceSqueezeNext(
        stages=[1, 2, 1, 1], width=0.25, skip_unread=True
    ),
    "HPS, narrow": lambda: networks.HighPerformanceSqueezeNext(stages=[1, 1, 1, 1], width=0.1),
    "SqueezeNext": lambda: networks.SqueezeNext(stages=[2, 1, 1, 1], width=0.25),
    "ModifiedSqueezeNext": lambda: networks.ModifiedSqueezeNext(stages=[1, 1, 1, 1], width=0.1),
    "MobileNet": lambda: networks.MobileNet(width=0.1),
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_whole_networks_have_the_exact_values_and_gradients(make):
    # Smaller images than usual: the fewer values, the sooner none of them is near 0.
    network, images = _decided(make, (4, 3, 16, 16), margin=5e-5)
    units = {name for name, module in network.named_modules() if isinstance(module, nn.Sequential) and len(module) == 3}
    assert units <= _changed(network)
    exact = _exact(network, images)
    plain, fused = (_errors(_step(network, images, fused), exact) for fused in (False, True))
    # Untrained networks magnify rounding, as PyTorch's own float32 shows.
    assert max(fused.values()) < max(1e-2, 10 * max(plain.values()))
    assert fused["output"] < 1e-3


def _distance(found, exact):
    """Relative to the whole tensor: which values near 0 a ReLU lets through is up to the rounding."""
    return {name: ((found[name].double() - exact[name]).norm() / exact[name].double().norm()).item() for name in exact}


@pytest.mark.parametrize("shape", [(4, 8, 9, 7), (2, 8, 30, 30)])
@pytest.mark.parametrize("width", [3, 16, 73])
@pytest.mark.parametrize("order", ORDERS)
def test_bfloat16_is_as_near_as_pytorch_s_own(order, width, shape):
    torch.manual_seed(0)
    network, images = _shaken(_unit(8, width, order, padding=1, bias=False)), torch.randn(shape)
    exact = _exact(network, images)
    results = [_step(network, images, fused, torch.bfloat16) for fused in (False, True)]
    assert results[1]["output"].dtype == torch.bfloat16
    assert {value.dtype for name, value in results[1].items() if name != "output"} <= {torch.float32, torch.int64}
    plain, fused = (_distance(result, exact) for result in results)
    assert {name: (fused[name], plain[name]) for name in exact if fused[name] > 1.5 * plain[name] + 1e-3} == {}
    # Values have 8 bits. Gradients are off by more, where a ReLU lets through what it would not.
    assert fused["output"] < 0.01
    assert max(fused.values()) < 0.3


def test_bfloat16_block_is_as_near_as_pytorch_s_own():
    torch.manual_seed(0)
    network = _shaken(SqueezeNextBlock(8, 12, 2, KERNELS, norm_last=True))
    images = torch.randn(8, 8, 16, 16)
    exact = _exact(network, images)
    plain, fused = (_distance(_step(network, images, fast, torch.bfloat16), exact) for fast in (False, True))
    # The shortcut's bias comes before a norm: its gradient is nothing but rounding.
    judged = [name for name in exact if name != "shortcut.conv.bias"]
    assert {name: (fused[name], plain[name]) for name in judged if fused[name] > 1.5 * plain[name] + 1e-2} == {}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("frozen", ["0", "norm", "0.weight", "0.bias", "norm.weight", "norm.bias", "all"])
def test_frozen_parameters_get_no_gradient_and_the_others_theirs(order, frozen):
    def make():
        unit = _unit(3, 8, order)
        norm = "2" if order == "conv-relu-norm" else "1"
        for name, parameter in unit.named_parameters():
            parameter.requires_grad = (
                not (name + ".").startswith(frozen.replace("norm", norm) + ".") and frozen != "all"
            )
        return unit

    network, images = _decided(make, (3, 3, 8, 8))
    _agree(_step(network, images, fused=True), _exact(network, images), 1e-4)
    assert sum(parameter.requires_grad for parameter in network.parameters()) < 4


@pytest.mark.parametrize("order", ORDERS)
def test_images_that_need_no_gradient_get_none(order):
    network, images = _decided(lambda: _unit(3, 8, order), (3, 3, 8, 8))
    exact = _exact(network, images)
    fast = copy.deepcopy(network)
    with FusedTraining(fast).applied():
        output = fast(images)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (output * weights).sum().backward()
    found = {"output": output.detach()} | {name: parameter.grad for name, parameter in fast.named_parameters()}
    scales = _scales(exact)
    for name, value in found.items():
        assert (value - exact[name]).abs().max() < 1e-4 * scales[name]
    assert images.grad is None


def test_without_gradients_the_statistics_are_still_kept():
    network, images = _decided(lambda: _unit(3, 8, "conv-relu-norm"), (3, 3, 8, 8))
    exact = _exact(network, images)
    with FusedTraining(network).applied(), torch.no_grad():
        output = network(images)
    assert not output.requires_grad
    found = {"output": output, **dict(network.named_buffers())}
    _agree(found, {name: exact[name] for name in found}, 1e-4)


@pytest.mark.parametrize("order", ORDERS)
def test_statistics_follow_several_steps(order):
    plain, images = _decided(lambda: _unit(3, 8, order), (3, 3, 8, 8))
    fast = copy.deepcopy(plain)
    for step in range(3):
        plain(images * (step + 1))
        with FusedTraining(fast).applied():
            fast(images * (step + 1))
    for name, value in plain.named_buffers():
        torch.testing.assert_close(fast.get_buffer(name), value)
    assert plain.state_dict()[f"{2 if order == 'conv-relu-norm' else 1}.num_batches_tracked"] == 3


def _small():
    torch.manual_seed(0)
    return networks.HighPerformanceSqueezeNext(stages=[2, 1, 1, 1], width=0.1), torch.randn(4, 3, 32, 32)


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_all_units_of_the_networks_are_found(make):
    network = make()
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert FusedTraining(network).units == norms > 10


def test_outside_of_the_block_the_network_is_what_it_was():
    network, images = _small()
    classes = [type(module) for module in network.modules()]
    names = list(network.state_dict())
    expected = copy.deepcopy(network)(images)
    fused = FusedTraining(network)
    assert [type(module) for module in network.modules()] == classes
    with fused.applied():
        assert [type(module) for module in network.modules()] != classes
        assert list(network.state_dict()) == names
    assert [type(module) for module in network.modules()] == classes
    assert torch.equal(network(images), expected)


def test_an_exception_leaves_the_network_as_it_was():
    network, images = _small()
    classes = [type(module) for module in network.modules()]
    fused = FusedTraining(network)
    with pytest.raises(RuntimeError, match="channels"), fused.applied():
        network(images[:, :2])
    assert [type(module) for module in network.modules()] == classes
    with pytest.raises(KeyboardInterrupt), fused.applied():
        raise KeyboardInterrupt
    assert [type(module) for module in network.modules()] == classes


def test_copies_and_files_of_a_network_know_nothing_of_it(tmp_path):
    network, images = _small()
    fused = FusedTraining(network)
    with fused.applied():
        network(images).sum().backward()
    torch.save(network, tmp_path / "network.pt")
    classes = [type(module) for module in network.modules()]
    expected = network.eval()(images)
    for other in (copy.deepcopy(network), torch.load(tmp_path / "network.pt", weights_only=False)):
        assert [type(module) for module in other.modules()] == classes
        assert torch.equal(other.eval()(images), expected)
        with fused.applied():
            # The copy is not among what was prepared.
            assert [type(module) for module in other.modules()] == classes


def test_a_copy_with_its_network_goes_on_by_itself():
    network, images = _small()
    network, fused = copy.deepcopy((network, FusedTraining(network)))
    classes = [type(module) for module in network.modules()]
    with fused.applied():
        assert [type(module) for module in network.modules()] != classes
        network(images)
    assert [type(module) for module in network.modules()] == classes


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_evaluation_is_the_usual_one(make):
    torch.manual_seed(0)
    network, images = _shaken(make()).eval(), torch.randn(4, 3, 32, 32)
    expected, state = network(images), copy.deepcopy(network.state_dict())
    with FusedTraining(network).applied():
        assert torch.equal(network(images), expected)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_one_unit_in_evaluation_mode_stays_the_usual_one():
    network, images = _small()
    network.stage1[0].squeeze2.eval()
    network.stage2[0].expand.eval()
    plain = copy.deepcopy(network)
    with FusedTraining(network).applied():
        output = network(images)
    torch.testing.assert_close(output, plain(images), rtol=1e-3, atol=1e-3)
    for name in ("stage1.0.squeeze2.norm.running_mean", "stage2.0.expand.norm.running_var"):
        assert torch.equal(network.get_buffer(name), plain.get_buffer(name))


@pytest.mark.parametrize("order", ORDERS)
def test_a_norm_in_evaluation_mode_keeps_its_statistics(order):
    def make():
        unit = _unit(3, 8, order)
        next(child for child in unit if isinstance(child, nn.BatchNorm2d)).eval()
        return unit

    network, images = _decided(make, (3, 3, 8, 8))
    found, exact = _step(network, images, fused=True), _exact(network, images)
    assert max(_errors(found, exact).values()) < 1e-4


@pytest.mark.parametrize("width", [1, 3, 16, 73, 300])
@pytest.mark.parametrize("order", ORDERS)
def test_a_unit_with_elu_has_the_exact_values_and_gradients(order, width):
    network, images = _decided(lambda: _unit(5, width, order, padding=1, activation=nn.ELU), (3, 5, 5, 7))
    # From where an ELU is all but linear to where it is all but constant, and beyond what its exponential can hold.
    images[0] *= 1e-3
    images[2] *= 100
    assert _changed(network) == {""}
    _agree(_step(network, images, fused=True), _exact(network, images), 1e-4)


def test_elu_is_exact_wherever_it_is_looked_at():
    values = torch.cat([-torch.logspace(-6, 2.5, 4000), torch.tensor([0.0, -0.0, 1.0, 30.0])])
    network = _unit(1, 1, "conv-relu-norm", kernel_size=1, activation=nn.ELU)
    nn.init.ones_(network[0].weight)
    nn.init.zeros_(network[0].bias)
    found, exact = (step(network, values.reshape(1, 1, -1, 2)) for step in (lambda *given: _step(*given, True), _exact))
    # The norm only moves and stretches; what it divides by is the same to the seventh digit.
    assert (found["output"] - exact["output"]).abs().max() < 1e-6 * exact["output"].abs().max()


@pytest.mark.parametrize("norm_last", [False, True])
@pytest.mark.parametrize(("stride", "blocks"), [(2, 1), (1, 1), (1, 2)])
def test_blocks_with_elu_have_the_exact_values_and_gradients(norm_last, stride, blocks):
    def block(channels, stride):
        return SqueezeNextBlock(channels, 8, stride, KERNELS, "elu", norm_last=norm_last)

    def make():
        return nn.Sequential(block(6 if stride == 2 else 8, stride), *(block(8, 1) for _ in range(blocks - 1)))

    network, images = _decided(make, (4, 6 if stride == 2 else 8, 7, 9))
    assert len(_changed(network)) > 5 * blocks
    _agree(_step(network, images, fused=True), _exact(network, images), 1e-3)


@pytest.mark.parametrize("network", [networks.HighPerformanceSqueezeNext, networks.SqueezeNext, networks.MobileNet])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_networks_with_elu_are_as_near_as_by_pytorch(network, dtype):
    torch.manual_seed(0)
    stages = {} if network is networks.MobileNet else {"stages": [2, 1, 1, 1]}
    made, images = _shaken(network(width=0.25, activation="elu", **stages)), torch.randn(4, 3, 16, 16)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in made.modules())
    assert FusedTraining(made).units == norms
    exact = _exact(made, images)
    plain, fused = (_distance(_step(made, images, fast, dtype), exact) for fast in (False, True))
    assert fused["output"] < 1.5 * plain["output"] + 1e-4
    # Together, since of a few values either rounding may come out nearer by chance.
    weights = [name for name in exact if name.endswith("weight")]
    assert median(fused[name] for name in weights) < 1.5 * median(plain[name] for name in weights) + 1e-4
    assert max(fused[name] for name in weights) < max(0.3, 1.5 * max(plain[name] for name in weights))


def test_another_elu_is_left_alone():
    assert _changed(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ELU(alpha=0.5))) == set()


@pytest.mark.parametrize("network", [networks.SqueezeNet, networks.SqueezedCNN])
def test_networks_without_such_units_are_left_alone(network):
    assert _changed(network()) == set()


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(8, track_running_stats=False),
        nn.BatchNorm2d(8, momentum=None),
        nn.BatchNorm2d(8, affine=False),
        nn.GroupNorm(2, 8),
        nn.Identity(),
    ],
    ids=str,
)
def test_other_norms_are_left_alone(norm):
    torch.manual_seed(0)
    network, images = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU()), torch.randn(3, 3, 8, 8)
    assert _changed(network) == set()
    found, plain = (_step(network, images, fused) for fused in (True, False))
    assert all(torch.equal(found[name], plain[name]) for name in plain)


@pytest.mark.parametrize("change", [{"momentum": None}, {"track_running_stats": False, "running_mean": None}], ids=str)
def test_a_norm_that_changes_meanwhile_is_left_alone(change):
    # As averages of weights do for the pass that computes the statistics anew.
    torch.manual_seed(0)
    network, images = _unit(3, 8, "conv-norm-relu"), torch.randn(4, 3, 8, 8)
    fused = FusedTraining(network)
    for name, value in change.items():
        setattr(network[1], name, value)
    plain = copy.deepcopy(network)
    with fused.applied():
        found = network(images)
    assert torch.equal(found, plain(images))
    if network[1].track_running_stats:
        assert torch.equal(network[1].running_var, plain[1].running_var)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), nn.ReLU()],
        [nn.ReLU(), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)],
        [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)],
        [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.ReLU()],
        [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6()],
        [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)],
        [nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(8), nn.ReLU()],
        [nn.ConvTranspose2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()],
    ],
    ids=lambda layers: ", ".join(type(layer).__name__ for layer in layers),
)
def test_other_arrangements_are_left_alone(layers):
    assert _changed(nn.Sequential(*layers)) == set()


def test_a_part_of_a_unit_runs_as_usual():
    class Sliced(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = _unit(3, 8, "conv-norm-relu")

        def forward(self, images):
            return self.stem[:2](images)

    network, images = _shaken(Sliced()), torch.randn(4, 3, 8, 8)
    assert _changed(network) == {"stem"}
    _agree(_step(network, images, fused=True), _step(network, images, fused=False), 1e-6)


def test_maps_that_do_not_fit_are_an_error_as_usual():
    # An even kernel leaves the branch a pixel short of the shortcut.
    block = SqueezeNextBlock(8, 8, 1, ((1, 2), (2, 1)), norm_last=False)
    images = torch.randn(2, 8, 8, 8)
    with pytest.raises(RuntimeError):
        block(images)
    with (
        FusedTraining(block).applied(),
        pytest.raises(RuntimeError, match=r"shortcut is of \(2, 8, 8, 8\), the branch of"),
    ):
        block(images)


def test_a_shortcut_that_samples_other_pixels_is_no_way_to_the_same():
    block = SqueezeNextBlock(8, 6, 2, KERNELS, norm_last=True)
    block.shortcut[0].stride = (1, 1)
    with FusedTraining(block).applied(), pytest.raises(RuntimeError, match="shortcut is of"):
        block(torch.randn(2, 8, 8, 8))


def test_a_shortcut_of_ones_own_is_activated_as_usual():
    def make():
        later = SqueezeNextBlock(8, 8, 1, KERNELS)
        later.shortcut = nn.Conv2d(8, 8, 1)
        return nn.Sequential(SqueezeNextBlock(8, 8, 1, KERNELS), later)

    network, images = _decided(make, (4, 8, 7, 9), margin=1e-4)
    output = _step(network, images, fused=True)["output"]
    assert output.min() >= 0
    _agree(_step(network, images, fused=True), _exact(network, images), 1e-3)


@pytest.mark.parametrize("name", ["squeeze1", "squeeze2", "expand", "shortcut"])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_of_which_one_unit_is_left_alone(stride, name):
    def make():
        block = SqueezeNextBlock(8, 6, stride, KERNELS, norm_last=True)
        getattr(block, name).norm.momentum = None
        return block

    network, images = _decided(make, (4, 8, 7, 9), margin=1e-4)
    assert name not in _changed(network)
    _agree(_step(network, images, fused=True), _exact(network, images), 1e-3)


def test_a_norm_that_does_not_fit_its_convolution_is_an_error_as_usual():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(4), nn.ReLU())
    # Memory behind the norm's would be written to, were it not refused.
    assert _changed(network) == set()


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name(padding):
    network, images = _decided(lambda: _unit(3, 8, "conv-norm-relu", padding=padding), (3, 3, 8, 8))
    _agree(_step(network, images, fused=True), _exact(network, images), 1e-4)


def test_a_single_value_has_no_statistics_as_usual():
    network = _unit(3, 8, "conv-norm-relu", kernel_size=1)
    for fused in (False, True):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            _step(network, torch.randn(1, 3, 1, 1), fused)


def test_an_empty_batch_is_empty():
    # In a process of its own, since reading what is not there may end it.
    script = """
import torch
from torch import nn
from hps_lightning.engine import FusedTraining
unit = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
with FusedTraining(unit).applied():
    print(tuple(unit(torch.randn(0, 3, 4, 4)).shape), bool(unit[1].running_mean.isfinite().all()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "(0, 8, 4, 4) True\n")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_networks_in_another_precision_take_the_usual_way(dtype):
    network, images = _small()
    network, images = network.to(dtype), images.to(dtype)
    found, plain = (_step(network, images, fused) for fused in (True, False))
    assert found["output"].dtype == dtype
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_autocast_to_float16_takes_the_usual_way():
    network, images = _small()
    found, plain = (_step(network, images, fused, torch.float16) for fused in (True, False))
    assert found["output"].dtype == torch.float16
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_another_default_type_changes_nothing():
    network, images = _decided(lambda: _unit(3, 8, "conv-norm-relu"), (3, 3, 8, 8))
    exact = _exact(network, images)
    torch.set_default_dtype(torch.float64)
    try:
        found = _step(network, images, fused=True)
    finally:
        torch.set_default_dtype(torch.float32)
    _agree(found, exact, 1e-4)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [1, 2])
def test_two_runs_are_the_same_bit_for_bit(threads, count, dtype):
    torch.manual_seed(0)
    network, images = _shaken(SqueezeNextBlock(8, 12, 2, KERNELS, norm_last=True)), torch.randn(8, 8, 15, 15)
    threads(count)
    first, second = (_step(network, images, True, dtype) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("width", [1, 16, 300])
@pytest.mark.parametrize("order", ORDERS)
# One more thread than there are rows of pixels, too.
@pytest.mark.parametrize("shape", [(3, 8, 9, 7), (2, 8, 3, 3)])
def test_the_number_of_threads_does_not_matter(threads, order, width, shape):
    network, images = _decided(lambda: _unit(8, width, order), shape)
    exact = _exact(network, images)
    tolerance = 1e-2 if shape == (2, 8, 3, 3) else 1e-4
    for count in (1, 2, 3):
        threads(count)
        _agree(_step(network, images, fused=True), exact, tolerance)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ELU])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_what_is_no_number_stays_visible(order, dtype, value, activation):
    torch.manual_seed(0)
    network, images = _unit(3, 8, order, activation=activation), torch.randn(4, 3, 16, 16)
    # Not in the first pixel, which the sums start from.
    images[2, 1, 7, 9] = value
    found, plain = (_step(network, images, fused, dtype) for fused in (True, False))
    for name in ("output", "0.weight"):
        assert torch.equal(found[name].isnan(), plain[name].isnan())
        assert found[name].isnan().any()
    norm = network[2] if order == "conv-relu-norm" else network[1]
    name = next(name for name, module in network.named_modules() if module is norm)
    for buffer in ("running_mean", "running_var"):
        assert torch.equal(found[f"{name}.{buffer}"].isfinite(), plain[f"{name}.{buffer}"].isfinite())


def test_a_network_of_no_numbers_gives_none():
    network, images = _small()
    with FusedTraining(network).applied():
        assert network(images.fill_(float("nan"))).isnan().all()
