import re

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import hps_lightning
from hps_lightning import zoo
from hps_lightning.bluebox import onnx_export
from hps_lightning.bluebox.onnx_export import (
    OnnxNetwork,
    calibration_images,
    export_int8,
    export_onnx,
    normalised,
    quantize,
)
from hps_lightning.data.batches import normalise
from hps_lightning.data.locate import find_dataset
from hps_lightning.data.readers import load_images
from hps_lightning.errors import UserError
from hps_lightning.machine import int8_sums_overflow

from .made import trained

MANIFEST = {"input": {"shape": [3, 32, 32], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}}
CASES = {
    "hps": ("hps", {"stages": [1, 2, 1, 1], "width": 0.25}),
    "hps_elu_odd_resolution": (
        "hps",
        {"stages": [1, 1, 1, 1], "width": 0.25, "activation": "elu", "resolution": 0.7},
    ),
    "squeezenext": ("squeezenext", {"stages": [1, 1, 1, 1], "width": 0.25}),
    "mobilenet": ("mobilenet", {"width": 0.25}),
    "squeezenet": ("squeezenet", {}),
    "squeezed_cnn": ("squeezed_cnn", {}),
}


def network_of(name):
    torch.manual_seed(0)
    family, arguments = CASES[name]
    network = zoo.FAMILIES[family](num_classes=4, **arguments)
    trained(network)
    return network.eval()


@pytest.fixture(scope="module")
def network():
    return network_of("hps")


@pytest.fixture(scope="module")
def model(network):
    return export_onnx(network, MANIFEST)


def pixels_of(count):
    """Images with patches of colour, since noise all looks the same to a network."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), np.uint8)
    return coarse.repeat(8, 1).repeat(8, 2)


def expected_of(network, pixels):
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    with torch.no_grad():
        return network(normalise(images, MANIFEST["input"]["mean"], MANIFEST["input"]["std"]))


def check(actual, expected):
    assert np.ptp(expected, axis=0).max() > 1e-3, "results that do not differ would agree by themselves"
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("name", CASES)
def test_onnxruntime_gives_pytorchs_logits(name):
    network = network_of(name)
    try:
        run = OnnxNetwork(export_onnx(network, MANIFEST))
    except UserError as error:
        # Its adaptive max pool; everything else is exported by each version that setup.cfg lets in.
        if name != "squeezed_cnn" or tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 14):
            raise
        pytest.skip(str(error))
    assert (run.input, run.output, run.takes_pixels) == ("images", "logits", False)
    pixels = pixels_of(5)
    expected = expected_of(network, pixels).numpy()
    check(run(normalised(pixels, MANIFEST)), expected)
    np.testing.assert_allclose(run(normalised(pixels[:1], MANIFEST)), run(normalised(pixels, MANIFEST))[:1], atol=1e-4)


def test_what_pytorch_cannot_export_is_one_error():
    class Unheard(nn.Conv2d):
        def forward(self, images):
            return torch.special.bessel_j1(super().forward(images)).mean((2, 3))

    with pytest.raises(UserError, match=f"PyTorch {re.escape(torch.__version__)} cannot write .*--formats pytorch"):
        export_onnx(Unheard(3, 4, 1), MANIFEST)


def test_with_preprocessing_it_takes_pixels_and_gives_probabilities(network):
    run = OnnxNetwork(export_onnx(network, MANIFEST, preprocessing=True))
    assert (run.output, run.takes_pixels) == ("probabilities", True)
    pixels = pixels_of(3)
    check(run(pixels), expected_of(network, pixels).softmax(1).numpy())


def test_folding_leaves_fewer_nodes_and_the_same_answers(network, model):
    whole = export_onnx(network, MANIFEST, folded=False)
    counts = [
        [node.op_type for node in onnx.load_from_string(each).graph.node].count("BatchNormalization")
        for each in (whole, model)
    ]
    # The exporter folds those of the four shortcuts itself. Two in each of five blocks precede padded convolutions.
    assert counts == [sum(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules()) - 4, 10]
    images = normalised(pixels_of(3), MANIFEST)
    check(OnnxNetwork(model)(images), OnnxNetwork(whole)(images))


def test_a_model_holds_nothing_of_this_machine_and_is_sound(network, model):
    parsed = onnx.load_from_string(model)
    onnx.checker.check_model(parsed, full_check=True)
    for text in (b".py", b"stack_trace", b"hps_lightning"):
        assert text not in model
    weights = sum(tensor.ByteSize() for tensor in parsed.graph.initializer)
    assert len(model) - weights < 8_000
    assert model == export_onnx(network, MANIFEST)


@pytest.mark.parametrize("preprocessing", [False, True])
@pytest.mark.parametrize("int8", [False, True])
def test_the_newest_onnx_runtime_of_the_boards_python_reads_it(network, int8, preprocessing):
    pixels = pixels_of(8)
    content = (
        export_int8(network, MANIFEST, pixels, preprocessing) if int8 else export_onnx(network, MANIFEST, preprocessing)
    )
    parsed = onnx.load_from_string(content)
    onnx.checker.check_model(parsed, full_check=True)
    # Of ONNX Runtime 1.14, by its table of versions; this one reads newer ones too, and so says nothing.
    assert parsed.ir_version <= 8
    assert {opset.domain: opset.version for opset in parsed.opset_import}[""] <= 18


def test_the_network_stays_as_it_is_and_where_it_trains(network, model):
    training = network_of("hps").train()
    before = {key: value.clone() for key, value in training.state_dict().items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert export_onnx(training, MANIFEST) == model
    assert training.training
    assert all(torch.equal(before[key], value) for key, value in training.state_dict().items())


@pytest.mark.parametrize("overflow", [False, True])
@pytest.mark.parametrize("preprocessing", [False, True])
def test_int8_answers_nearly_alike_in_less_than_a_third_of_the_size(monkeypatch, preprocessing, overflow):
    if int8_sums_overflow() and not overflow:
        pytest.skip("without its option onnxruntime's sums in 8 bits overflow on this processor, an x86 without VNNI")
    monkeypatch.setattr(onnx_export, "int8_sums_overflow", lambda: overflow)
    # A trained one: what rounding does to random weights tells nothing.
    net = hps_lightning.load("hps_06_05x")
    manifest = {"input": {"shape": [3, 32, 32], "mean": list(net.mean), "std": list(net.std)}}
    pixels = pixels_of(64)
    model = export_int8(net.network, manifest, pixels, preprocessing)
    types = {node.op_type for node in onnx.load_from_string(model).graph.node}
    assert "QLinearConv" in types
    assert not types & {"Conv", "BatchNormalization", "Relu"}
    run, float32 = OnnxNetwork(model), export_onnx(net.network, manifest, preprocessing)
    assert run.takes_pixels == preprocessing
    images = pixels if preprocessing else normalised(pixels, manifest)
    expected = OnnxNetwork(float32)(images)
    # Beside 1, which a constant answer would reach.
    assert np.sqrt(((run(images) - expected) ** 2).mean() / expected.var(0).mean()) < 0.4
    assert len(model) < 0.3 * len(float32)


def test_quantization_takes_models_with_norms_too(model):
    images = normalised(pixels_of(8), MANIFEST)
    run = OnnxNetwork(quantize(model, images))
    assert run(images).shape == (8, 4)


def test_a_network_of_linear_layers_computes_in_8_bits():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    images = torch.randn(8, 3, 32, 32).numpy()
    model = quantize(export_onnx(network, MANIFEST, folded=False), images)
    assert "QGemm" in {node.op_type for node in onnx.load_model_from_string(model).graph.node}
    assert len(model) < 0.35 * len(export_onnx(network, MANIFEST, folded=False))
    with pytest.raises(
        UserError, match="no layer that could compute in 8 bits; export it without int8: --formats pytorch"
    ):
        quantize(export_onnx(nn.Sequential(nn.AvgPool2d(32), nn.Flatten()), MANIFEST, folded=False), images)


def test_quantization_prints_nothing(network, capfd):
    export_int8(network, MANIFEST, pixels_of(8))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", [b"", b"hello, this is text\n", b"PK\x03\x04garbage", bytes(range(256)) * 20])
def test_what_is_no_model_is_refused(content, tmp_path, capfd):
    with pytest.raises(UserError, match=r"^What was given is no ONNX model that onnxruntime can run: .+$"):
        OnnxNetwork(content)
    with pytest.raises(UserError, match="no ONNX model"):
        quantize(content, np.zeros((1, 3, 32, 32), np.float32))
    (tmp_path / "some.onnx").write_bytes(content)
    with pytest.raises(UserError, match=r"some\.onnx is no ONNX model"):
        OnnxNetwork(tmp_path / "some.onnx")
    assert capfd.readouterr() == ("", "")


def test_a_truncated_model_is_refused(model):
    with pytest.raises(UserError, match="no ONNX model"):
        OnnxNetwork(model[: len(model) // 2])


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.onnx cannot be read"):
        OnnxNetwork(tmp_path / "none.onnx")


def test_a_model_of_something_else_is_refused():
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "graph",
        [value("x", onnx.TensorProto.FLOAT, [2])],
        [value("y", onnx.TensorProto.FLOAT, [2])],
    )
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
    with pytest.raises(UserError, match="no network of ours"):
        OnnxNetwork(model.SerializeToString())


@pytest.mark.parametrize(
    "images",
    [np.zeros((1, 3, 32, 32)), np.zeros((1, 3, 31, 32), np.float32), np.zeros((3, 32, 32), np.float32)],
    ids=["float64", "another size", "no batch"],
)
def test_other_images_are_refused(model, images):
    with pytest.raises(UserError, match="takes float32 images of N x 3 x 32 x 32"):
        OnnxNetwork(model)(images)


@pytest.mark.parametrize(
    "images",
    [np.zeros((4, 32, 32, 3), np.float32), np.zeros((4, 3, 32, 32), np.uint8), np.zeros((0, 32, 32, 3), np.uint8)],
    ids=["normalised", "channels first", "none"],
)
def test_other_calibration_images_are_refused(network, images):
    with pytest.raises(UserError, match="Calibration takes uint8 images of N x 32 x 32 x 3"):
        export_int8(network, MANIFEST, images)


def test_calibration_images_are_training_images():
    images = calibration_images("digits", 7)
    assert (images.shape, images.dtype) == ((7, 32, 32, 3), np.uint8)
    assert np.array_equal(images, calibration_images("digits", 7))
    training = load_images("digits", "train").images.permute(0, 2, 3, 1).numpy()
    assert all((training == image).all((1, 2, 3)).any() for image in images)


@pytest.mark.cifar
def test_the_published_networks_accuracy_survives():
    try:
        find_dataset("cifar10", download=False)
    except UserError as error:
        pytest.skip(f"needs the real CIFAR-10: {error}")
    net = hps_lightning.load("hps_06_05x")
    manifest = {"input": {"shape": [3, 32, 32], "mean": list(net.mean), "std": list(net.std)}}
    test = load_images("cifar10", "test")
    pixels, labels = test.images.permute(0, 2, 3, 1).contiguous().numpy(), test.labels.numpy()

    def correct(model):
        run = OnnxNetwork(model)
        parts = zip(np.split(pixels, 40), np.split(labels, 40), strict=True)
        return sum(int((run(part).argmax(1) == right).sum()) for part, right in parts)

    float32 = export_onnx(net.network, manifest, preprocessing=True)
    # Another processor may round the odd pair of nearly equal logits the other way.
    assert abs(correct(float32) - net.facts["test"]["correct"]) <= 2
    int8 = export_int8(net.network, manifest, calibration_images("cifar10"), preprocessing=True)
    assert len(int8) < 130_000
    assert len(int8) < 0.3 * len(float32)
    assert correct(int8) >= max(8_300, net.facts["test"]["correct"] - 50)
