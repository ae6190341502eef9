import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hps_lightning import complexity, zoo
from hps_lightning.networks import HighPerformanceSqueezeNext, SqueezeNext


@pytest.fixture
def network():
    torch.manual_seed(0)
    return HighPerformanceSqueezeNext(stages=[1, 1, 1, 1], width=0.25)


def _small():
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 4, 3, stride=2, padding=1),
            norm=nn.BatchNorm2d(4),
            act=nn.ReLU(),
            depthwise=nn.Conv2d(4, 4, (3, 1), padding=(1, 0), groups=4, bias=False),
            pool=nn.AdaptiveAvgPool2d(2),
            flatten=nn.Flatten(),
            classifier=nn.Linear(16, 5),
        )
    )


def test_macs_of_a_network_small_enough_to_count_by_hand():
    # 8 x 6 pixels become 4 x 3. Multiplications of an output value: 3 x 3 x 3, 3 x 1, and 16.
    expected = 4 * 4 * 3 * 27 + 4 * 4 * 3 * 3 + 5 * 16
    assert complexity.count_macs(_small(), (3, 8, 6)) == expected


def test_a_network_that_cannot_be_saved_whole_has_no_such_size():
    network = _small()
    network.conv.padder = lambda images: images
    assert complexity.module_bytes(network) is None
    assert complexity.module_and_momentum_bytes(network) is None
    assert complexity.state_dict_bytes(network) == complexity.state_dict_bytes(_small())


def test_macs_are_counted_for_a_cifar_image_unless_told_otherwise():
    network = nn.Sequential(nn.Conv2d(3, 2, 1))
    assert complexity.count_macs(network) == 32 * 32 * 3 * 2


def test_macs_follow_the_dtype_and_device_of_the_network():
    assert complexity.count_macs(_small().double()) == complexity.count_macs(_small())
    assert complexity.count_macs(_small().to("meta")) == complexity.count_macs(_small())


def test_counting_macs_leaves_the_network_as_it_was():
    network = _small().train()
    network.norm.eval()  # As someone who fine-tunes with frozen statistics leaves it.
    before = copy.deepcopy(network.state_dict())
    modes = [module.training for module in network.modules()]
    complexity.count_macs(network)
    assert [module.training for module in network.modules()] == modes
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_network_that_cannot_see_the_image_is_left_as_it_was():
    network = _small().train()
    with pytest.raises(RuntimeError):
        complexity.count_macs(network, (4, 8, 8))
    assert network.training


def test_parameters_are_the_trainable_ones():
    network = _small()
    assert complexity.count_parameters(network) == (4 * 27 + 4) + 8 + 12 + 85
    network.conv.requires_grad_(False)
    assert complexity.count_parameters(network) == 8 + 12 + 85


def _file_size(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path.stat().st_size


def test_module_bytes_is_the_size_of_the_file(network, tmp_path):
    assert complexity.module_bytes(network) == _file_size(network, tmp_path / "module.pth")


def test_state_dict_bytes_is_the_size_of_the_file(network, tmp_path):
    assert complexity.state_dict_bytes(network) == _file_size(dict(network.state_dict()), tmp_path / "state.pth")
    assert complexity.state_dict_bytes(network) < complexity.module_bytes(network)


def test_module_and_momentum_bytes_is_the_size_after_a_real_step(network, tmp_path):
    counted = complexity.module_and_momentum_bytes(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    F.cross_entropy(network(torch.rand(2, 3, 32, 32)), torch.tensor([0, 1])).backward()
    optimizer.step()
    content = {"net": network, "optimizer": optimizer.state_dict()}
    assert counted == _file_size(content, tmp_path / "checkpoint.pth")


def test_counting_bytes_leaves_the_network_as_it_was(network):
    before = copy.deepcopy(network.state_dict())
    complexity.module_and_momentum_bytes(network)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in network.parameters())


def _megabytes(measure, name, num_classes=10):
    torch.manual_seed(0)
    return measure(zoo.find_variant(name).build(num_classes)) / 1e6


# The rows whose printed size is that of the module as it is saved. The tolerance leaves room for the source text
# that the file carries, which grows and shrinks with our comments.
@pytest.mark.parametrize(
    ("name", "printed", "tolerance"),
    [
        ("squeezenet_v1_0", 3.013, 0.01),
        ("squeezenet_v1_1", 2.961, 0.01),
        ("squeezed_cnn", 12.90, 0.03),
        ("squeezenext_23_1x", 2.586, 0.04),
        ("squeezenext_23_2x", 9.525, 0.02),
        ("hps_06_05x", 0.37, 0.05),
        # Table 5's configuration, at the size that the tables print for HPS-21-1x-v2 and -v3.
        ("hps_23_1x", 2.60, 0.04),
        ("hps_23_1x", 2.614, 0.04),
    ],
)
def test_printed_sizes_of_a_saved_module(name, printed, tolerance):
    assert _megabytes(complexity.module_bytes, name) == pytest.approx(printed, rel=tolerance)


@pytest.mark.parametrize(("name", "printed"), [("squeezenet_v1_0", 6.40), ("squeezenext_23_1x", 5.26)])
def test_printed_sizes_of_table_3_hold_the_momentum_as_well(name, printed):
    size = _megabytes(complexity.module_and_momentum_bytes, name, num_classes=100)
    assert size == pytest.approx(printed, rel=0.03)


def test_the_parameters_of_hps_21_v3_alone_exceed_its_printed_size():
    with torch.device("meta"):
        network = zoo.find_variant("hps_21_1x_v3").build()
    assert 4 * complexity.count_parameters(network) / 1e6 == pytest.approx(2.84, abs=0.005)


def test_a_byte_of_content_is_a_byte_of_file():
    sizes = [complexity.saved_bytes(torch.zeros(count, dtype=torch.uint8)) for count in (1000, 3000)]
    assert sizes[1] - sizes[0] == 2000


def test_the_size_of_a_module_does_not_depend_on_its_values():
    sizes = set()
    for seed in range(2):
        torch.manual_seed(seed)
        sizes.add(complexity.module_bytes(SqueezeNext(stages=[1, 1, 1, 1], width=0.25)))
    assert len(sizes) == 1
