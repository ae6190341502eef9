import io
import math
import re
from collections import defaultdict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hps_lightning.complexity import count_macs, count_parameters
from hps_lightning.networks import HighPerformanceSqueezeNext, ModifiedSqueezeNext, ShallowSqueezeNext, SqueezeNext
from hps_lightning.networks.squeezenext import SqueezeNextBlock
from hps_lightning.paper import table5
from tests.table5 import KNOWN_ERRORS

ALL = [SqueezeNext, ModifiedSqueezeNext, HighPerformanceSqueezeNext, ShallowSqueezeNext]
TINY = {"stages": [1, 1, 1, 1], "width": 0.25}


def _on_meta(network_class, **arguments):
    with torch.device("meta"):
        return network_class(**arguments)


def _units(network):
    return [module for module in network.modules() if hasattr(module, "conv") and hasattr(module, "norm")]


def _seeded(network_class, seed=0, **arguments):
    torch.manual_seed(seed)
    return network_class(**arguments)


def _images(count=2, size=32):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def _seen_by(network, layer, images):
    """What ``layer`` is given when ``network`` sees ``images``."""
    seen = []
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    with torch.no_grad():
        network(images)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(
    ("num_classes", "stages", "width", "parameters"),
    [
        (10, [6, 6, 8, 1], 1.0, 588_666),
        (10, [6, 6, 8, 1], 2.0, 2_313_962),
        (10, [2, 4, 12, 1], 1.0, 710_586),
        (10, [2, 2, 14, 1], 1.0, 766_938),
        (10, [2, 2, 16, 1], 1.0, 842_778),
        (10, [1, 1, 1, 1], 1.0, 261_666),
        (10, [1, 1, 1, 1], 0.75, 148_876),
        (10, [1, 1, 1, 1], 0.5, 67_670),
        (10, [1, 2, 2, 1], 0.5, 79_982),
        (10, [1, 2, 8, 1], 1.5, 1_195_222),
        (100, [6, 6, 8, 1], 1.0, 600_276),
        (100, [1, 1, 1, 1], 0.4, 47_753),
        (100, [1, 1, 1, 1], 0.575, 93_582),
        (100, [1, 1, 4, 1], 0.5, 102_752),
        (100, [1, 2, 8, 1], 1.0, 548_460),
        (100, [1, 2, 8, 1], 1.5, 1_212_592),
        (100, [2, 2, 16, 1], 1.0, 854_388),
        (100, [2, 4, 16, 1], 1.0, 873_876),
    ],
)
@pytest.mark.parametrize("network_class", [SqueezeNext, HighPerformanceSqueezeNext])
def test_parameter_counts(network_class, num_classes, stages, width, parameters):
    network = _on_meta(network_class, num_classes=num_classes, stages=stages, width=width)
    assert count_parameters(network) == parameters


@pytest.mark.parametrize(
    ("network_class", "stages", "width"),
    [
        (SqueezeNext, (6, 6, 8, 1), 1.0),
        (ModifiedSqueezeNext, (6, 6, 8, 1), 1.0),
        (HighPerformanceSqueezeNext, (2, 4, 12, 1), 1.0),
        (ShallowSqueezeNext, (1, 1, 1, 1), 0.5),
    ],
)
def test_defaults_are_the_family_s_own_configuration(network_class, stages, width):
    network = _on_meta(network_class)
    assert tuple(len(stage) for stage in (network.stage1, network.stage2, network.stage3, network.stage4)) == stages
    assert network.stem.conv.out_channels == 64 * width
    assert network.dropout.p == 0
    assert network.classifier.out_features == 10


@pytest.fixture(scope="module")
def executed():
    """The layers of HPS [6, 6, 8, 1] that Table 5 counts, as they run: name, module, input, output."""
    network = HighPerformanceSqueezeNext(stages=[6, 6, 8, 1]).eval()
    layers = []

    def note(name):
        def hook(module, args, output):
            layers.append((name, module, args[0].shape[1:], output.shape[1:]))

        return hook

    for name, module in network.named_modules():
        counted = isinstance(module, (nn.Conv2d, nn.AdaptiveAvgPool2d, nn.Linear))
        if counted and ".shortcut." not in name:  # Table 5 leaves the projection shortcuts out.
            module.register_forward_hook(note(name))
    with torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    return layers


def _rows_and_layers(executed):
    """Each row of Table 5 with the layers that it stands for: convolution N is the Nth that runs."""
    for row in table5():
        if row["layer"].startswith("Convolution"):
            first = int(row["layer"].split()[1]) - 1
            # A repeated row stands for every fifth convolution: a block has five.
            yield row, executed[first : first + 5 * int(row["repeat"]) : 5]
        else:
            yield row, [executed[{"Adaptive Average Pool": -2, "FCC": -1}[row["layer"]]]]


def _facts(layer):
    name, module, before, after = layer
    facts = {"parameters": sum(parameter.numel() for parameter in module.parameters())}
    for prefix, shape in (("in", before), ("out", after)):
        # The classifier's vector is a map of 1 x 1.
        channels, height, width = (*shape, 1, 1)[:3]
        facts |= {prefix + "_c": channels, prefix + "_h": height, prefix + "_w": width}
    if isinstance(module, nn.Conv2d):
        (pad_h, pad_w), (kernel_h, kernel_w) = module.padding, module.kernel_size
        assert module.stride[0] == module.stride[1]
        stride = module.stride[0]
    else:
        pad_h, pad_w, kernel_h, kernel_w, stride = 0, 0, 1, 1, 1
    facts |= {"pad_h": pad_h, "pad_w": pad_w, "kernel_h": kernel_h, "kernel_w": kernel_w, "stride": stride}
    stage, block = re.match(r"(?:stage(\d)\.(\d+)\.)?", name).groups()
    return facts, (stage, block)


def test_every_number_of_table_5(executed):
    differences = {}
    for row, layers in _rows_and_layers(executed):
        every = [_facts(layer)[0] for layer in layers]
        assert len(every) == int(row["repeat"])
        true = {column: {facts[column] for facts in every} for column in every[0]}
        true["parameters"] = {sum(facts["parameters"] for facts in every)}
        columns = set(row) - {"layer", "stage", "block", "repeat"}
        assert columns == set(true)
        for column in columns:
            if row[column] and true[column] != {int(row[column])}:
                (value,) = true[column]
                differences[row["layer"], column] = (int(row[column]), value)
    assert differences == KNOWN_ERRORS


def test_table_5_places_its_rows_in_the_right_stage_and_block(executed):
    for row, layers in _rows_and_layers(executed):
        for offset, layer in enumerate(layers):
            stage, block = _facts(layer)[1]
            if stage is None:
                assert row["stage"] in ("stem", "head")
            else:
                assert (stage, int(block)) == (row["stage"], int(row["block"]) - 1 + offset)


def test_table_5_counts_as_many_convolutions_as_there_are(executed):
    assert sum(isinstance(module, nn.Conv2d) for _, module, _, _ in executed) == 107


def test_blocks_that_table_5_leaves_out_are_like_the_listed_others(executed):
    blocks = defaultdict(list)
    for layer in executed:
        facts, place = _facts(layer)
        if place[0]:
            blocks[int(place[0]), int(place[1])].append(facts)
    for block in range(2, 6):
        assert blocks[2, block] == blocks[2, 1]
    for block in range(1, 6):
        kernels = [(facts["kernel_w"], facts["kernel_h"]) for facts in blocks[1, block]]
        assert kernels == [(1, 1), (1, 1), (3, 1), (1, 3), (1, 1)]
        assert [facts["out_c"] for facts in blocks[1, block]] == [16, 8, 16, 16, 32]


@pytest.mark.parametrize("network_class", [SqueezeNext, ModifiedSqueezeNext])
def test_baseline_blocks_all_run_1x3_before_3x1_and_pad_the_stem(network_class):
    network = _on_meta(network_class, stages=[2, 2, 2, 2])
    for stage in (network.stage1, network.stage2, network.stage3, network.stage4):
        for block in stage:
            assert block.separable1.conv.kernel_size == (1, 3)
            assert block.separable1.conv.padding == (0, 1)
            assert block.separable2.conv.kernel_size == (3, 1)
            assert block.separable2.conv.padding == (1, 0)
    assert network.stem.conv.padding == (1, 1)


@pytest.mark.parametrize("network_class", ALL)
@pytest.mark.parametrize("activation", ["relu", "elu"])
def test_units_chain_convolution_norm_and_activation_in_the_family_s_order(network_class, activation):
    network = _on_meta(network_class, activation=activation, **TINY)
    hps = issubclass(network_class, HighPerformanceSqueezeNext)
    order = ["conv", "activation", "norm"] if hps else ["conv", "norm", "activation"]
    units = _units(network)
    # The stem, five in each of four blocks with a projection each, and the spatial resolution.
    assert len(units) == 1 + 4 * 6 + 1
    kind = {"relu": nn.ReLU, "elu": nn.ELU}[activation]
    # What is activated and added is a convolution with its batch norm, in all families alike.
    shortcuts = [block.shortcut for block in network.modules() if isinstance(block, SqueezeNextBlock)]
    for unit in units:
        in_shortcut = any(unit is shortcut for shortcut in shortcuts)
        expected = ["conv", "norm", "activation"] if in_shortcut else order
        assert [name for name, _ in unit.named_children()] == expected
        assert type(unit.activation) is kind
        assert unit.conv.bias is not None
    activations = [module for module in network.modules() if isinstance(module, (nn.ReLU, nn.ELU))]
    assert len(activations) == len(units) + 4  # and one for each block's sum
    assert {type(module) for module in activations} == {kind}


@pytest.mark.parametrize(
    ("network_class", "default"),
    [(SqueezeNext, True), (ModifiedSqueezeNext, False), (HighPerformanceSqueezeNext, True), (ShallowSqueezeNext, True)],
)
@pytest.mark.parametrize("chosen", [None, True, False])
def test_in_place_flags(network_class, default, chosen):
    arguments = {} if chosen is None else {"inplace": chosen}
    network = _on_meta(network_class, **TINY, **arguments)
    flags = {
        module.inplace for module in network.modules() if hasattr(module, "inplace") and "Dropout" not in repr(module)
    }
    assert flags == {default if chosen is None else chosen}


def test_shortcuts_are_projections_only_where_the_shape_changes():
    network = _on_meta(HighPerformanceSqueezeNext, stages=[2, 2, 2, 2])
    for stride, stage in zip(
        (1, 2, 2, 2), (network.stage1, network.stage2, network.stage3, network.stage4), strict=True
    ):
        assert stage[0].shortcut.conv.kernel_size == (1, 1)
        assert stage[0].shortcut.conv.stride == (stride, stride)
        assert type(stage[1].shortcut) is nn.Identity


@pytest.mark.parametrize("activation", ["relu", "elu"])
@pytest.mark.parametrize("network_class", ALL)
@pytest.mark.parametrize("position", [0, 1])
def test_a_block_activates_branch_and_shortcut_and_their_sum(network_class, activation, position):
    network = _seeded(network_class, activation=activation, **{**TINY, "stages": [1, 2, 1, 1]}).eval()
    block = network.stage2[position]
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            # Else what batch norm gives after an activation is never negative.
            nn.init.uniform_(module.running_mean, -1, 1)
    act = F.relu if activation == "relu" else F.elu
    images = act(torch.randn(2, block.squeeze1.conv.in_channels, 8, 8))
    branch = images
    for unit in (block.squeeze1, block.squeeze2, block.separable1, block.separable2, block.expand):
        branch = unit(branch)
    if issubclass(network_class, HighPerformanceSqueezeNext):
        # Its units end in a batch norm, the others in the activation.
        assert branch.min() < 0
        branch = act(branch)
    shortcut = images
    if position == 0:
        shortcut = act(block.shortcut.norm(block.shortcut.conv(images)))
    torch.testing.assert_close(block(images), act(branch + shortcut), rtol=0, atol=0)


@pytest.mark.parametrize("network_class", ALL)
@pytest.mark.parametrize("activation", ["relu", "elu"])
@pytest.mark.parametrize("width", [0.01, 0.1, 0.37, 0.575, 1.13, 4])
def test_any_width_trains(network_class, activation, width):
    network = _seeded(network_class, num_classes=7, stages=[1, 2, 1, 1], width=width, activation=activation)
    assert network.stem.conv.out_channels == max(1, int(width * 64))
    assert network.spatial_resolution.conv.out_channels == max(1, int(width * 128))
    logits = network(_images(2, 16))
    assert logits.shape == (2, 7)
    F.cross_entropy(logits, torch.tensor([0, 6])).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert sum(parameter.grad.abs().sum() for parameter in network.parameters()) > 0


@pytest.mark.parametrize("network_class", ALL)
@pytest.mark.parametrize("activation", ["relu", "elu"])
def test_in_place_operations_change_neither_logits_nor_gradients(network_class, activation):
    gradients, logits = [], []
    for inplace in (True, False):
        network = _seeded(network_class, activation=activation, inplace=inplace, stages=[1, 2, 1, 1], width=0.25)
        logits.append(network(_images()))
        F.cross_entropy(logits[-1], torch.tensor([3, 4])).backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=0)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_modified_is_the_same_function_as_the_baseline():
    baseline = _seeded(SqueezeNext, **TINY).eval()
    modified = _seeded(ModifiedSqueezeNext, seed=1, **TINY).eval()
    modified.load_state_dict(baseline.state_dict())
    torch.testing.assert_close(modified(_images()), baseline(_images()), rtol=0, atol=0)


def test_shallow_is_hps_of_the_same_configuration():
    shallow = _seeded(ShallowSqueezeNext).eval()
    hps = _seeded(HighPerformanceSqueezeNext, stages=[1, 1, 1, 1], width=0.5).eval()
    torch.testing.assert_close(shallow(_images()), hps(_images()), rtol=0, atol=0)


@pytest.mark.parametrize("network_class", ALL)
def test_the_images_given_are_not_changed(network_class):
    images = _images()
    _seeded(network_class, **TINY)(images)
    torch.testing.assert_close(images, _images(), rtol=0, atol=0)


@pytest.mark.parametrize("resolution", [0.5, 1.0, 1.5])
def test_resolution_scales_what_the_stem_sees(resolution):
    network = _seeded(HighPerformanceSqueezeNext, resolution=resolution, **TINY).eval()
    side = int(32 * resolution)
    assert _seen_by(network, network.stem, _images()).shape == (2, 3, side, side)
    assert network(_images()).shape == (2, 10)


def test_a_smaller_resolution_averages_instead_of_skipping_pixels():
    network = _seeded(HighPerformanceSqueezeNext, resolution=0.5, **TINY).eval()
    images = _images()
    torch.testing.assert_close(_seen_by(network, network.stem, images), F.avg_pool2d(images, 2))
    board = (torch.arange(32)[:, None] + torch.arange(32)) % 2
    seen = _seen_by(network, network.stem, board.float().expand(1, 3, 32, 32))
    torch.testing.assert_close(seen, torch.full_like(seen, 0.5))


def test_a_greater_resolution_interpolates():
    network = _seeded(HighPerformanceSqueezeNext, resolution=1.5, **TINY).eval()
    images = _images()
    expected = F.interpolate(images, size=[48, 48], mode="bilinear", align_corners=False)
    torch.testing.assert_close(_seen_by(network, network.stem, images), expected)


@pytest.mark.parametrize("resolution", [0.5, 1.5])
def test_resolution_trains(resolution):
    network = _seeded(HighPerformanceSqueezeNext, resolution=resolution, **TINY)
    network(_images()).sum().backward()
    assert network.stem.conv.weight.grad.abs().sum() > 0


def test_dropout_drops_features_of_the_classifier_in_training_alone():
    network = _seeded(HighPerformanceSqueezeNext, dropout=0.5, stages=[1, 1, 1, 1], width=1.0)
    whole = _seen_by(network, network.dropout, _images())
    network.dropout.register_forward_pre_hook(lambda module, args: (whole,))
    dropped = _seen_by(network, network.classifier, _images())
    kept = dropped != 0
    assert 0.3 < kept.float().mean() < 0.7
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])
    network.eval()
    torch.testing.assert_close(_seen_by(network, network.classifier, _images()), whole, rtol=0, atol=0)


@pytest.mark.parametrize("network_class", ALL)
@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("width", 0),
        ("width", -1.5),
        ("width", math.nan),
        ("width", math.inf),
        ("width", "1"),
        ("width", True),
        ("resolution", 0),
        ("resolution", -0.5),
        ("resolution", math.nan),
        ("resolution", "1"),
        ("stages", [1, 2, 3]),
        ("stages", [1, 1, 1, 1, 1]),
        ("stages", [1, 0, 1, 1]),
        ("stages", [1, -2, 1, 1]),
        ("stages", [1, 1.0, 1, 1]),
        ("stages", [1, True, 1, 1]),
        ("stages", []),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("dropout", math.nan),
        ("dropout", "0.5"),
        ("activation", "gelu"),
        ("activation", None),
        ("num_classes", 0),
        ("num_classes", -3),
        ("num_classes", 10.0),
        ("num_classes", True),
    ],
)
def test_refusals_name_the_argument_and_the_value(network_class, argument, value):
    with pytest.raises(ValueError, match=f"{argument} must be.*{re.escape(repr(value))}"):
        network_class(**{argument: value})


@pytest.mark.parametrize("network_class", ALL)
def test_an_image_keeps_at_least_four_pixels_a_side(network_class):
    with pytest.raises(ValueError, match=r"resolution must leave at least 4 of 32 pixels, got 0\.05"):
        network_class(resolution=0.05)


@pytest.mark.parametrize("network_class", ALL)
def test_initialisation(network_class):
    network = _seeded(network_class, stages=[2, 1, 1, 1], width=1.0)
    ratios = []
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            gain = math.sqrt(2) if isinstance(module, nn.Conv2d) else 1
            out_size, in_size, *kernel = module.weight.shape
            bound = gain * math.sqrt(6 / ((in_size + out_size) * math.prod(kernel)))
            assert (module.bias == 0).all()
            # Uniform: as far as the bound, no further, and with a third of its square as variance.
            assert module.weight.abs().max() <= bound
            ratios.append((module.weight.std().item() / bound * math.sqrt(3), module.weight.numel()))
    assert all(ratio == pytest.approx(1, abs=5 / math.sqrt(numel)) for ratio, numel in ratios)


@pytest.mark.parametrize("network_class", ALL)
def test_the_seed_decides_everything(network_class):
    def train():
        network = _seeded(network_class, dropout=0.2, **TINY)
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(network(_images(4, 16)), torch.arange(4)).backward()
            optimizer.step()
        return network.state_dict()

    torch.testing.assert_close(train(), train(), rtol=0, atol=0)


def test_different_seeds_give_different_weights():
    first, second = (_seeded(HighPerformanceSqueezeNext, seed=seed, **TINY) for seed in (0, 1))
    assert not torch.equal(first.stem.conv.weight, second.stem.conv.weight)


@pytest.mark.parametrize("network_class", ALL)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_module_survives_saving(network_class, zipped):
    network = _seeded(network_class, **TINY).eval()
    file = io.BytesIO()
    torch.save(network, file, _use_new_zipfile_serialization=zipped)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    torch.testing.assert_close(loaded(_images()), network(_images()), rtol=0, atol=0)


@pytest.mark.parametrize("network_class", ALL)
def test_images_of_a_batch_do_not_affect_each_other_in_evaluation(network_class):
    network = _seeded(network_class, **TINY).eval()
    together = network(_images(3))
    alone = torch.cat([network(image[None]) for image in _images(3)])
    torch.testing.assert_close(together, alone)


SKIPPING = [
    {"stages": [1, 1, 1, 1], "width": 0.25},
    {"stages": [1, 2, 3, 1], "width": 0.25, "resolution": 0.7},
    {"stages": [2, 1, 2, 2], "width": 0.25, "resolution": 1.3},
    # Too narrow for the first block to need a convolution beside its branch.
    {"stages": [1, 1, 1, 1], "width": 0.02},
]


def _trained_a_little(network):
    network.train()
    for _ in range(3):
        network(torch.randn(8, 3, 32, 32, dtype=torch.float64))
    return network.eval()


@pytest.mark.parametrize("network_class", ALL)
@pytest.mark.parametrize("arguments", SKIPPING)
def test_without_what_no_layer_reads_a_network_answers_the_same(network_class, arguments):
    whole = _trained_a_little(_seeded(network_class, **arguments).double())
    skipping = network_class(**arguments, skip_unread=True).double().eval()
    skipping.load_state_dict(whole.state_dict())
    images = _images().double()
    with torch.no_grad():
        torch.testing.assert_close(skipping(images), whole(images), rtol=1e-9, atol=1e-12)
        macs = count_macs(skipping)
        assert macs < count_macs(whole)
        # It has nothing left to leave out.
        skipping.skip_unread()
        assert count_macs(skipping) == macs
        torch.testing.assert_close(skipping(images), whole(images), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("skip_unread", [False, True])
@pytest.mark.parametrize("network_class", [SqueezeNext, HighPerformanceSqueezeNext])
def test_whether_each_pixel_of_each_map_matters(network_class, skip_unread):
    # An ELU lets every gradient through, a little of it at least.
    network = _seeded(network_class, stages=[1, 2, 1, 1], width=0.25, activation="elu", skip_unread=skip_unread)
    network = _trained_a_little(network.double())
    maps = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, i, output, name=name: maps.setdefault(name, output).retain_grad())
    network(_images().double()).square().sum().backward()
    unread = {name for name, values in maps.items() if (values.grad.abs().amax((0, 1)) == 0).any()}
    last = {
        f"stage{stage}.{block}.{unit}.conv"
        for stage, block in ((1, 0), (2, 1), (3, 0))
        for unit in ("separable1", "separable2", "expand", "shortcut")
    } - {"stage2.1.shortcut.conv"}  # an identity
    assert unread == (set() if skip_unread else last)


def test_a_third_of_hps_06_1x_is_never_read():
    whole, skipping = (
        _on_meta(HighPerformanceSqueezeNext, stages=[1, 1, 1, 1], skip_unread=skip).to_empty(device="cpu")
        for skip in (False, True)
    )
    assert count_macs(skipping) / count_macs(whole) == pytest.approx(0.62, abs=0.01)
