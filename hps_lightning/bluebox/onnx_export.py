"""Networks as ONNX files, in float32 and in 8 bits, and a way to run them."""

import contextlib
import io
import itertools
import os
import string
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from hps_lightning.bluebox.folded import folded_network
from hps_lightning.bluebox.weights import bare_copy
from hps_lightning.data.catalog import DatasetInfo
from hps_lightning.data.readers import load_images
from hps_lightning.errors import UserError
from hps_lightning.machine import int8_sums_overflow

EXACT_INT8 = ("session.x64quantprecision", "1")
"""The entry of a session's configuration that has onnxruntime add products of 8 bits in 32 on any x86 processor."""

CALIBRATION_IMAGES = 500
"""More of them change nothing that could be told from chance: tried 300 to 3,000 on HPS-06-0.5x."""

# The range of 8 bits leaves out the largest 0.01 % of what was seen, by size: tried from 0.1 % to none.
_PERCENTILE = 99.99
_CALIBRATION_BATCH = 50
_QUANTIZED = ["Conv", "Gemm", "Add", "Concat", "MaxPool", "Relu"]
_MULTIPLIES = ("Conv", "Gemm")

# Those of ONNX 1.13, which ONNX Runtime reads from 1.14 on: the newest for the board's Python 3.7. PyTorch's exporter
# writes this set of operators by itself; with a newer one it would convert its result.
_OPSET = 18
_IR_VERSION = 8

_IMAGES = "images"
_LOGITS = "logits"
_PROBABILITIES = "probabilities"
_BATCH = "batch"


class _WithPreprocessing(nn.Module):
    """A network that takes what a camera gives, and gives what a user reads."""

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.network = network
        # As training does it: one multiplication and one addition a value, in float32.
        mean_, std_ = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
        self.register_buffer("scale", 1 / (255 * std_))
        self.register_buffer("shift", -mean_ / std_)

    def forward(self, images: Tensor) -> Tensor:
        values = images.permute(0, 3, 1, 2).to(torch.float32)
        return self.network(values * self.scale + self.shift).softmax(1)


def export_onnx(
    network: nn.Module, manifest: Mapping[str, Any], preprocessing: bool = False, folded: bool = True
) -> bytes:
    """A network as an ONNX model, for batches of any size.

    Args:
        network: wrapped or bare; it is not changed.
        manifest: what :func:`~hps_lightning.bluebox.describe` returns; its ``input`` tells
            the size of an image, and the mean and deviation that images are normalised with.
        preprocessing: False for ``images`` (float32, N x 3 x S x S, normalised) to ``logits``
            (float32, N x classes); True for ``images`` (uint8, N x S x S x 3, RGB) to
            ``probabilities``.
        folded: whether batch norms are folded into convolutions where onnxruntime gains by
            it: all but those before padded convolutions, which would cost a channel more and
            with it the layout that its fast kernels need.

    Returns:
        The content of an ``.onnx`` file.

    Raises:
        UserError: this version of PyTorch cannot write the network as ONNX; or see
            :func:`~hps_lightning.bluebox.folded.folded_network`.
    """
    network = _plain(network)
    return _exported(folded_network(network, manifest, complete=False) if folded else network, manifest, preprocessing)


def export_int8(
    network: nn.Module, manifest: Mapping[str, Any], calibration: np.ndarray, preprocessing: bool = False
) -> bytes:
    """A network as an ONNX model that computes in 8 bits; see :func:`export_onnx` and :func:`quantize`.

    Args:
        network: wrapped or bare; it is not changed.
        manifest: see :func:`export_onnx`.
        calibration: training images, uint8, N x S x S x 3, RGB; see :func:`calibration_images`.
        preprocessing: see :func:`export_onnx`.

    Raises:
        UserError: the images are none of the network's, or see :func:`export_onnx`.
    """
    side = manifest["input"]["shape"][1]
    if calibration.dtype != np.uint8 or calibration.shape[1:] != (side, side, 3) or not len(calibration):
        raise UserError(
            f"Calibration takes uint8 images of N x {side} x {side} x 3, "
            f"got {calibration.dtype} of {calibration.shape}."
        )
    # All norms are folded here: each that were left would leave the 8 bits and come back.
    model = _exported(folded_network(_plain(network), manifest), manifest, preprocessing)
    return quantize(model, calibration if preprocessing else normalised(calibration, manifest))


def normalised(images: np.ndarray, manifest: Mapping[str, Any]) -> np.ndarray:
    """Images as a model without preprocessing takes them.

    Args:
        images: uint8, N x S x S x 3, RGB.
        manifest: see :func:`export_onnx`.

    Returns:
        float32, N x 3 x S x S.
    """
    mean, std = (np.array(manifest["input"][key], np.float64)[:, None, None] for key in ("mean", "std"))
    scale, shift = (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)
    return images.transpose(0, 3, 1, 2).astype(np.float32, order="C") * scale + shift


def calibration_images(
    dataset: str | DatasetInfo, count: int = CALIBRATION_IMAGES, root: str | os.PathLike[str] | None = None
) -> np.ndarray:
    """Training images, the same ones each time, to quantize a network with.

    Args:
        dataset: such as "cifar10".
        count: how many; all of them where there are no more.
        root: see :func:`~hps_lightning.data.readers.load_images`.

    Returns:
        uint8, ``count`` x 32 x 32 x 3, RGB.

    Raises:
        UserError: the data set is unknown, not found, or damaged.
    """
    images = load_images(dataset, "train", root).images
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count]
    return images[chosen].permute(0, 2, 3, 1).contiguous().numpy()


def quantize(model: bytes, calibration: np.ndarray) -> bytes:
    """A model in 8 bits: weights with a scale for each channel, maps with one range each.

    The ranges are those of the calibration images. What precedes the first convolution, or linear layer, stays
    as it is, so that a model with preprocessing takes the same images.

    On x86 processors without VNNI onnxruntime adds pairs of products in 16 bits, which overflow, unless its session
    has the option ``session.x64quantprecision`` set to 1, as :class:`OnnxNetwork` has; see benchmarks/README.md,
    "Inference". Arm processors and those with VNNI add in 32 bits.

    Args:
        model: an ONNX model in float32. One that :func:`export_int8` makes on its way has no
            batch norms, which would stay in float32.
        calibration: what ``model`` takes, as many images as there is patience for.

    Returns:
        The content of an ``.onnx`` file.

    Raises:
        UserError: ``model`` is no ONNX model, takes something else than ``calibration``, or has nothing to compute in
            8 bits.
    """
    # Errors of a model that runs are those of the quantization; a user's are found before.
    run = OnnxNetwork(model)
    run(calibration[:1])
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        source, prepared, target = (Path(folder, f"{name}.onnx") for name in ("source", "prepared", "target"))
        source.write_bytes(model)
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        prepared_model = onnx.load(prepared)
        if not any(node.op_type in _MULTIPLIES for node in prepared_model.graph.node):
            raise UserError(
                "The network has no layer that could compute in 8 bits; export it without int8: --formats pytorch onnx."
            )
        for index, node in enumerate(prepared_model.graph.node):
            node.name = str(index)
        before = itertools.takewhile(lambda node: node.op_type not in _MULTIPLIES, prepared_model.graph.node)
        quantize_static(
            prepared_model,
            target,
            _Batches(run.input, calibration),
            # Half the size of the other format for networks this small.
            quant_format=QuantFormat.QOperator,
            op_types_to_quantize=_QUANTIZED,
            nodes_to_exclude=[node.name for node in before],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            # Of the last layer alone: convolutions with a scale for each channel get signed weights whatever it says.
            weight_type=QuantType.QUInt8,
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={
                "CalibPercentile": _PERCENTILE,
                "WeightSymmetric": True,
                # A batch at a time; all maps of all images take gigabytes.
                "CalibStridedMinMax": 1,
            },
        )
        return _slim(onnx.load(target))


class _Batches(CalibrationDataReader):
    def __init__(self, name: str, images: np.ndarray) -> None:
        self.name = name
        self.batches = [
            images[start : start + _CALIBRATION_BATCH] for start in range(0, len(images), _CALIBRATION_BATCH)
        ]
        self.set_range(0, len(self.batches))

    def __len__(self) -> int:
        return len(self.batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        self.left = iter(self.batches[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.left, None)
        return None if batch is None else {self.name: batch}


class OnnxNetwork:
    """An ONNX model as a function of images, on the CPU.

    Args:
        model: the content of an ``.onnx`` file, or its path.
        threads: that work on one call.

    Attributes:
        input: name of what it takes.
        output: name of what it gives: ``logits`` or ``probabilities``.
        takes_pixels: whether it takes images with values from 0 to 255, or normalised ones.

    Raises:
        UserError: ``model`` is no ONNX model, or one of another kind; or the file cannot be read.
    """

    def __init__(self, model: bytes | str | os.PathLike[str], threads: int = 1) -> None:
        name = "What was given" if isinstance(model, bytes) else str(model)
        try:
            content = model if isinstance(model, bytes) else Path(model).read_bytes()
        except OSError as error:
            raise UserError(f"{model} cannot be read: {error.strerror}.") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        if int8_sums_overflow():
            options.add_session_config_entry(*EXACT_INT8)
        # Errors alone, which are raised too.
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            # onnxruntime's errors share no class; each tells that it cannot run the model.
            raise UserError(f"{name} is no ONNX model that onnxruntime can run: {_first_line(error)}") from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4:
            raise UserError(
                f"{name} is no network of ours: it does not take images alone, or gives more than one result."
            )
        self.input, self.output = inputs[0].name, outputs[0].name
        self._shape = inputs[0].shape[1:]
        self.takes_pixels = inputs[0].type == "tensor(uint8)"
        self._dtype = np.uint8 if self.takes_pixels else np.float32

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """What the network gives for N images.

        Args:
            images: as the model takes them; see :func:`export_onnx`.

        Returns:
            float32, N x classes.

        Raises:
            UserError: the model takes images of another shape or type.
        """
        if images.dtype != self._dtype or list(images.shape[1:]) != self._shape:
            raise UserError(
                f"This model takes {np.dtype(self._dtype)} images of N x {' x '.join(map(str, self._shape))}, "
                f"got {images.dtype} of {images.shape}."
            )
        return self._session.run(None, {self.input: images})[0]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _plain(network: nn.Module) -> nn.Module:
    return bare_copy(network).to(torch.float32).eval()


def _exported(network: nn.Module, manifest: Mapping[str, Any], preprocessing: bool) -> bytes:
    pixels = manifest["input"]
    channels, *sides = pixels["shape"]
    if preprocessing:
        network = _WithPreprocessing(network, pixels["mean"], pixels["std"]).eval()
        images = torch.zeros(2, *sides, channels, dtype=torch.uint8)
    else:
        images = torch.zeros(2, channels, *sides)
    try:
        # A training that exports may be amid an autocast, which would become a part of the model.
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            program = torch.onnx.export(
                network,
                (images,),
                dynamo=True,
                opset_version=_OPSET,
                dynamic_shapes=({0: torch.export.Dim(_BATCH)},),
                input_names=[_IMAGES],
                output_names=[_PROBABILITIES if preprocessing else _LOGITS],
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise UserError(
            f"PyTorch {torch.__version__} cannot write this network as ONNX ({_first_line(error.__cause__ or error)}). "
            "A newer PyTorch may; without ONNX, export by --formats pytorch."
        ) from error
    return _slim(program.model_proto)


def _slim(model: onnx.ModelProto) -> bytes:
    """A model without what only people read: half of a small network's file, and paths of the machine that made it."""
    graph = model.graph
    model.ir_version = _IR_VERSION
    model.ClearField("metadata_props")
    for part in (model, graph, *graph.node, *graph.input, *graph.output):
        part.ClearField("doc_string")
    for part in (graph, *graph.node, *graph.input, *graph.output):
        part.ClearField("metadata_props")
    graph.ClearField("value_info")
    for node in graph.node:
        node.ClearField("name")
        for attribute in [attribute for attribute in node.attribute if _goes_without_saying(node, attribute)]:
            node.attribute.remove(attribute)
    used = {node.domain for node in graph.node}
    for opset in [opset for opset in model.opset_import if opset.domain not in used]:
        model.opset_import.remove(opset)

    kept: dict[tuple[Any, ...], str] = {}
    names = {"": "", **{value.name: value.name for value in (*graph.input, *graph.output)}}
    short = (name for name in _short_names() if name not in names)
    tensors = list(graph.initializer)
    graph.ClearField("initializer")
    for tensor in tensors:
        values = numpy_helper.to_array(tensor)
        # EXACT_INT8 has onnxruntime put unsigned values in the place of these, one by one; it fails on shared ones.
        own = tensor.name if tensor.data_type == onnx.TensorProto.INT8 else ""
        key = (tensor.data_type, values.shape, values.tobytes(), own)
        if key not in kept:
            kept[key] = next(short)
            graph.initializer.append(numpy_helper.from_array(values, kept[key]))
        names[tensor.name] = kept[key]
    for node in graph.node:
        for values in (node.input, node.output):
            for index, value in enumerate(values):
                if value not in names:
                    names[value] = next(short)
                values[index] = names[value]
    return model.SerializeToString(deterministic=True)


def _goes_without_saying(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> bool:
    """Whether a convolution means the same without an attribute."""
    if node.op_type not in ("Conv", "QLinearConv"):
        return False
    if attribute.name in ("strides", "dilations"):
        return set(attribute.ints) == {1}
    if attribute.name == "pads":
        return set(attribute.ints) == {0}
    if attribute.name == "group":
        return attribute.i == 1
    if attribute.name == "auto_pad":
        return attribute.s == b"NOTSET"
    # The weights tell it.
    return attribute.name == "kernel_shape"


def _short_names() -> Iterator[str]:
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_letters, repeat=length):
            yield "".join(letters)
