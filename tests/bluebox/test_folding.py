"""Folded networks give the same logits, whatever the batch norms have learnt."""

import copy
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from hps_lightning import networks, pretrained, zoo
from hps_lightning.bluebox import export
from hps_lightning.bluebox.board.folding import fold

from .board_environment import run

CASES = {
    **{name: (variant.family, variant.arguments) for name, variant in zoo.ZOO.items()},
    "hps_elu": ("hps", {"stages": [1, 2, 1, 1], "width": 0.25, "activation": "elu"}),
    "hps_not_in_place": ("hps", {"stages": [1, 2, 1, 1], "width": 0.25, "inplace": False}),
    # Too narrow for the first block to need a shortcut: it passes the stem's norm on.
    "hps_narrowest": ("hps", {"stages": [2, 2, 1, 1], "width": 0.02}),
    "hps_half_resolution": ("hps", {"stages": [1, 1, 1, 1], "width": 0.25, "resolution": 0.5}),
    "hps_odd_resolution": ("hps", {"stages": [1, 1, 1, 1], "width": 0.25, "resolution": 0.7}),
    "squeezenext_elu": ("squeezenext", {"stages": [1, 1, 1, 1], "width": 0.5, "activation": "elu"}),
    "mobilenet_elu": ("mobilenet", {"width": 0.25, "activation": "elu"}),
    "squeezenet_elu": ("squeezenet", {"activation": "elu"}),
}


def norms(network):
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def learnt(family, arguments):
    """A network whose norms have positive, negative and zero weights, and the statistics that follow from them."""
    torch.manual_seed(0)
    network = zoo.FAMILIES[family](**arguments)
    with torch.no_grad():
        for norm in norms(network):
            norm.momentum = 1.0
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(std=0.5)
            if norm.num_features > 3:
                norm.weight[torch.rand_like(norm.weight) < 0.2] *= -1
                norm.weight[torch.rand_like(norm.weight) < 0.1] = 0
            else:
                # So few channels would let nothing through.
                norm.bias.abs_()
        network.train()(torch.randn(32, 3, 32, 32))
    return network.eval()


@torch.no_grad()
def deviation(network, folded):
    """The largest difference of a logit, beside the largest logit."""
    images = torch.randn(4, 3, 32, 32, dtype=next(network.parameters()).dtype)
    expected = network(images)
    assert expected.std(0).max() > 1e-3, "logits that do not differ would agree by themselves"
    return float((folded(images) - expected).abs().max() / expected.abs().max().clamp(min=1))


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_a_folded_network_gives_the_same_logits(name, complete):
    # Twice as precise as usual: layers in a row enlarge what is rounded in the first.
    network = learnt(*CASES[name]).double()
    assert deviation(network, fold(network, complete)) < 1e-7


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("name", pretrained.published_names())
def test_rounding_changes_the_logits_of_a_published_network_by_less_than_1e_4(name, complete):
    network = pretrained.load(*name.rsplit("-", 1)).network
    images = torch.randn(16, 3, 32, 32)
    with torch.no_grad():
        difference = (network(images) - fold(network, complete)(images)).abs().max()
    assert difference < 1e-4
    # That nothing has changed means that nothing was folded, which is right where there is no batch norm.
    assert (difference > 0) == any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize(("name", "complete", "left"), [
    ("hps_06_05x", True, 0),
    # Two in each block are followed by padded convolutions.
    ("hps_06_05x", False, 8),
    # The norm between two ELUs, in each block.
    ("hps_elu", True, 5),
    # The stem's, and that of the first block's last unit.
    ("hps_narrowest", True, 2),
    ("squeezenext_23_1x", True, 0),
    ("mobilenet_05x", False, 0),
])  # fmt: skip
def test_norms_are_folded_where_it_is_exact(name, complete, left):
    network = learnt(*CASES[name])
    assert len(norms(fold(network, complete))) == left < len(norms(network))


def test_offsets_in_padding_cost_one_channel():
    network = learnt(*CASES["hps_06_05x"])
    before, after = network.stage2[0].separable1.conv, fold(network).stage2[0].separable1.conv
    assert (after.in_channels, after.out_channels) == (before.in_channels + 1, before.out_channels + 1)
    assert after.weight.shape[:2] == (after.out_channels, after.in_channels)
    assert fold(network, complete=False).stage2[0].separable1.conv.weight.shape == before.weight.shape


@pytest.mark.parametrize("bias", [1.0, -1.0])
@pytest.mark.parametrize("weight", [1.0, -1.0, 0.0])
def test_a_norm_between_two_relus(weight, bias):
    network = learnt("hps", {"stages": [2, 1, 1, 1], "width": 0.25}).double()
    for block in network.stage1:
        nn.init.constant_(block.expand.norm.weight, weight)
        nn.init.constant_(block.expand.norm.bias, bias)
    assert deviation(network, fold(network)) < 1e-7


def test_under_autocast_a_folded_network_computes_in_bf16_throughout():
    folded = fold(learnt("hps", {"stages": [1, 1, 1, 1], "width": 0.25}))
    ceilings = [module for name, module in folded.named_modules() if name.endswith("expand.norm")]
    assert ceilings, "else no operation would have both maps and a parameter of 32 bits"
    given = []
    for ceiling in ceilings:
        ceiling.register_forward_hook(lambda module, inputs, output: given.append(output.dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        folded(torch.randn(2, 3, 32, 32))
    assert given == [torch.bfloat16] * len(ceilings)


@pytest.mark.parametrize("parts", [
    (nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)),
    (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    (nn.ConvTranspose2d(4, 4, 3), nn.BatchNorm2d(4)),
])  # fmt: skip
def test_what_only_has_the_names_of_a_unit_stays(parts):
    conv, norm = parts
    unit = nn.Sequential(OrderedDict(conv=conv, norm=norm, activation=nn.ReLU())).eval()
    images = torch.randn(2, conv.in_channels, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(fold(unit)(images), unit(images))


def test_the_network_itself_stays_as_it_is():
    network = learnt(*CASES["hps_06_05x"]).train()
    before = copy.deepcopy(network.state_dict())
    folded = fold(network)
    assert network.training
    assert not folded.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert {value.dtype for value in folded.state_dict().values()} == {torch.float32}


BOARD_SCRIPT = """
import importlib.util
import sys

import numpy as np
import torch


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


assert torch.__version__ == "1.1.0", torch.__version__
torch.set_num_threads(1)
network = load("squeezenext", sys.argv[1]).HighPerformanceSqueezeNext(stages=[1, 2, 1, 1], width=0.25).double()
network.load_state_dict(torch.load("weights.pt"))
folded = load("folding", sys.argv[2]).fold(network)
assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
with torch.no_grad():
    np.save("logits.npy", folded(torch.from_numpy(np.load("images.npy"))).numpy())
"""


@pytest.mark.board
def test_the_boards_pytorch_folds_too(board_python, tmp_path):
    network = learnt("hps", {"stages": [1, 2, 1, 1], "width": 0.25}).double()
    (tmp_path / "script.py").write_text(BOARD_SCRIPT)
    torch.save(network.state_dict(), tmp_path / "weights.pt", _use_new_zipfile_serialization=False)
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    np.save(tmp_path / "images.npy", images.numpy())
    files = [networks.squeezenext.__file__, export.BOARD_FOLDER / "folding.py"]
    result = run(board_python, tmp_path / "script.py", *files, cwd=tmp_path, timeout=300)
    assert result.returncode == 0, result.stderr
    with torch.no_grad():
        expected = network(images).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, rtol=0, atol=1e-7 * np.abs(expected).max())
