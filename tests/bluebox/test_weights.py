import zipfile

import pytest
import torch
from torch import nn
from torch.nn.utils import prune, weight_norm

from hps_lightning.bluebox import bare_network, board_weights, describe
from hps_lightning.bluebox.weights import bare_copy

from .made import export, record


def test_the_file_is_legacy_and_holds_what_the_network_holds(classifier, tmp_path):
    assert export(classifier, tmp_path / "best") == tmp_path / "best"
    file = tmp_path / "best" / "weights.pt"
    assert not zipfile.is_zipfile(file)
    loaded = torch.load(file, weights_only=True)
    expected = classifier.network.state_dict()
    assert list(loaded) == list(expected)
    for name, value in loaded.items():
        assert torch.equal(value, expected[name]), name
    assert {value.dtype for value in loaded.values()} == {torch.float32, torch.int64}


def test_tensors_are_contiguous_in_the_order_of_their_sides(classifier):
    state = classifier.network.state_dict()
    assert any(not value.is_contiguous() for value in state.values()), "training runs channels-last"
    for name, value in board_weights(state).items():
        assert value.stride() == torch.empty(value.shape).stride(), name
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size(), name
        assert value.device.type == "cpu"
        assert value.data_ptr() != state[name].data_ptr() or not value.numel(), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_becomes_float32(classifier, dtype):
    converted = board_weights(classifier.network.to(dtype).state_dict())
    for name, value in converted.items():
        assert value.dtype == (torch.int64 if name.endswith("num_batches_tracked") else torch.float32), name


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "network.", "_orig_mod.", "network._orig_mod.", "module.model."]
)
def test_the_names_are_the_bare_networks(classifier, prefix):
    state = classifier.network.state_dict()
    assert list(board_weights({prefix + name: value for name, value in state.items()})) == list(state)


@pytest.mark.parametrize("wrapper", ["", "module.", "network._orig_mod."])
def test_a_networks_only_part_keeps_its_name_where_the_network_is_known(wrapper):
    network = nn.Module()
    network.network = nn.Linear(2, 3)
    state = {wrapper + name: value for name, value in network.state_dict().items()}
    assert list(board_weights(state, network)) == ["network.weight", "network.bias"]


@pytest.mark.parametrize("computed_by", [lambda layer: prune.l1_unstructured(layer, "weight", 2), weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_what_is_computed_before_each_pass_is_copied(computed_by):
    network = nn.Sequential(nn.Linear(3, 2))
    computed_by(network[0])
    images = torch.randn(4, 3)
    copied = bare_copy(nn.DataParallel(network))
    assert type(copied) is nn.Sequential
    assert torch.equal(copied(images), network(images))
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert network(images).abs().sum() > 0, "the copy shares nothing with the network"
    assert not copied(images).abs().sum() > 0, "it computes by its own parameters"


def test_truth_values_become_what_a_board_reads():
    (mask,) = board_weights({"mask": torch.tensor([True, False])}).values()
    assert mask.equal(torch.tensor([1, 0]))


def test_a_networks_own_part_called_model_keeps_its_name():
    assert list(board_weights({"model.weight": torch.ones(1), "head.weight": torch.ones(1)})) == [
        "model.weight",
        "head.weight",
    ]
    assert board_weights({}) == {}


def test_wrappers_are_seen_through(classifier):
    network = classifier.network
    compiled = torch.compile(network)
    assert bare_network(nn.DataParallel(compiled)) is network
    assert describe(compiled, record(classifier)) == describe(network, record(classifier))
