"""A network's training on a CPU with the kernels of ``batch_norm.cpp`` in place of PyTorch's.

The network stays what it is: its units take the fast way only inside ``with fused.applied():``,
while they train, and give the same values and gradients as without, up to rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hps_lightning.engine.hooks import hooked
from hps_lightning.engine.native import load_kernels
from hps_lightning.networks.squeezenext import ConvUnit, SqueezeNextBlock

_KERNEL_DTYPES = (torch.float32, torch.bfloat16)
# As the kernels number them.
_NONE, _RELU, _ELU = range(3)


class FusedTraining:
    """The units of a network that can train on the kernels: convolution, batch norm and activation, in either order.

    The activation is a ReLU or an ELU.

    Args:
        network: whose units are found; it is not changed.

    Attributes:
        units: number of units found.

    Raises:
        NativeUnavailableError: the kernels cannot be compiled here.
    """

    def __init__(self, network: nn.Module) -> None:
        units = [module for module in network.modules() if _is_unit(module)]
        if units:
            load_kernels()
        self.units = len(units)
        fused = set(map(id, units))
        blocks = [block for block in network.modules() if type(block) is SqueezeNextBlock and id(block.expand) in fused]
        later = {
            id(block)
            for stage in network.modules()
            if type(stage) is nn.Sequential
            for previous, block in pairwise(stage)
            if type(previous) is SqueezeNextBlock
        }
        self._fast = [(unit, _FastUnit) for unit in units]
        self._fast += [(block, _FastLaterBlock if id(block) in later else _FastBlock) for block in blocks]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Lets the units take the fast way inside the block."""
        # By class, not by replacing modules: names, parameters and copies stay as they are.
        originals = [type(module) for module, _ in self._fast]
        try:
            for module, fast in self._fast:
                module.__class__ = fast
            yield
        finally:
            for (module, _), original in zip(self._fast, originals, strict=True):
                module.__class__ = original


def _is_unit(module: nn.Module) -> bool:
    if type(module) not in (nn.Sequential, ConvUnit):
        return False
    kinds = {type(child) for child in module}
    if len(module) != 3 or not {nn.Conv2d, nn.BatchNorm2d} < kinds or type(module[0]) is not nn.Conv2d:
        return False
    conv, norm = module[0], _norm(module)
    return (
        _activation(module) != _NONE
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and norm.num_features == conv.out_channels
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )


class _FastUnit(nn.Sequential):
    def forward(self, images: Tensor) -> Tensor:
        # A slice of a unit is of its class, too.
        if len(self) != 3 or not _kernel_takes(self, images):
            return super().forward(images)
        conv, stride = self[0], self[0].stride
        if _only_samples(conv):
            images, stride = _Sample.apply(images, stride), (1, 1)
        return _unit(self, images, stride)


class _FastBlock(SqueezeNextBlock):
    follows_block = False

    def forward(self, images: Tensor) -> Tensor:
        if not _kernel_takes(self.expand, images) or hooked(self.expand) or hooked(self.activation):
            return super().forward(images)
        squeeze, shortcut = self.squeeze1, self.shortcut
        same_pixels = isinstance(shortcut, _FastUnit) and squeeze[0].stride == shortcut[0].stride
        if same_pixels and all(
            isinstance(unit, _FastUnit) and _only_samples(unit[0]) and _kernel_takes(unit, images) and not hooked(unit)
            for unit in (squeeze, shortcut)
        ):
            # Both look at every other pixel alone.
            images = _Sample.apply(images, squeeze[0].stride)
            branch, beside = _unit(squeeze, images, (1, 1)), _unit(shortcut, images, (1, 1))
        else:
            branch, beside = squeeze(images), shortcut(images)
        branch = self.separable2(self.separable1(self.squeeze2(branch)))
        summed = _unit(self.expand, branch, self.expand[0].stride, activated_after=True, shortcut=beside)
        # The last ReLU has nothing left to do where both summands went through one. An ELU has.
        activated = isinstance(shortcut, _FastUnit) or (self.follows_block and isinstance(shortcut, nn.Identity))
        return summed if activated and _activation(self.expand) == _RELU else self.activation(summed)


class _FastLaterBlock(_FastBlock):
    """A block whose input is another block's output, and has gone through its last activation."""

    follows_block = True


def _compute_dtype(images: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else images.dtype


def _kernel_takes(unit: nn.Sequential, images: Tensor) -> bool:
    conv, norm = unit[0], _norm(unit)
    return (
        norm.training
        # Averaging of weights computes the statistics anew at its end, and changes how for that pass.
        and norm.momentum is not None
        and norm.track_running_stats
        and images.device.type == "cpu"
        and conv.weight.dtype == norm.weight.dtype == norm.running_mean.dtype == torch.float32
        and _compute_dtype(images) in _KERNEL_DTYPES
        and images.numel() > 0
        # Pruning, for one, makes a weight anew in a hook before each pass.
        and not any(map(hooked, unit))
    )


def _norm(unit: nn.Sequential) -> nn.BatchNorm2d:
    return unit[2] if type(unit[2]) is nn.BatchNorm2d else unit[1]


def _activation(unit: nn.Sequential) -> int:
    activation = unit[1] if type(unit[2]) is nn.BatchNorm2d else unit[2]
    if type(activation) is nn.ReLU:
        return _RELU
    return _ELU if type(activation) is nn.ELU and activation.alpha == 1 else _NONE


def _dense(maps: Tensor, dtype: torch.dtype) -> Tensor:
    # Not by `to` alone: it keeps a view of some channels, whose strides look channels-last.
    return maps.to(dtype).contiguous(memory_format=torch.channels_last)


def _only_samples(conv: nn.Conv2d) -> bool:
    return conv.stride != (1, 1) and conv.kernel_size == (1, 1) and conv.padding == (0, 0)


class _Sample(torch.autograd.Function):
    """Every ``stride``-th pixel: a 1x1 convolution without stride is twice as fast on those as one with it on all."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, stride: tuple[int, int]) -> Tensor:
        ctx.shape, ctx.stride = images.shape, stride
        return images[:, :, :: stride[0], :: stride[1]].contiguous(memory_format=torch.channels_last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        whole = torch.empty(ctx.shape, dtype=gradient.dtype, memory_format=torch.channels_last).zero_()
        whole[:, :, :: ctx.stride[0], :: ctx.stride[1]] = gradient
        return whole, None


def _unit(
    unit: nn.Sequential,
    images: Tensor,
    stride: tuple[int, int],
    activated_after: bool = False,
    shortcut: Tensor | None = None,
) -> Tensor:
    conv = unit[0]
    norm = _norm(unit)
    norm_last = norm is unit[2]
    kind = _activation(unit)
    norm.num_batches_tracked.add_(1)
    return _ConvNorm.apply(
        images,
        shortcut,
        conv.weight,
        conv.bias,
        norm.weight,
        norm.bias,
        (norm.running_mean, norm.running_var, norm.momentum, norm.eps),
        (stride, conv.padding, conv.dilation, False, (0, 0), conv.groups),
        (kind if norm_last else _NONE, kind if activated_after or not norm_last else _NONE),
    )


class _ConvNorm(torch.autograd.Function):
    """Convolution, activation, batch norm, activation, addition of a shortcut; the last four may be absent."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        shortcut: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        gamma: Tensor,
        beta: Tensor,
        statistics: tuple[Tensor, Tensor, float, float],
        geometry: tuple[Any, ...],
        activations: tuple[int, int],
    ) -> Tensor:
        dtype = _compute_dtype(images)
        images = _dense(images, dtype)
        weight = weight.to(dtype, memory_format=torch.channels_last)
        convolved = torch.convolution(images, weight, None if bias is None else bias.to(dtype), *geometry)
        convolved = _dense(convolved, dtype)
        if shortcut is not None:
            if shortcut.shape != convolved.shape:
                raise RuntimeError(
                    f"The shortcut is of {tuple(shortcut.shape)}, the branch of {tuple(convolved.shape)}."
                )
            shortcut = _dense(shortcut, dtype)
        out, saved = batch_norm(convolved, shortcut, gamma, beta, statistics, activations)
        ctx.save_for_backward(images, weight, convolved, saved)
        ctx.geometry, ctx.activations = geometry, activations
        ctx.bias_sizes = None if bias is None else [len(bias)]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, convolved, saved = ctx.saved_tensors
        gradient = _dense(gradient, convolved.dtype)
        convolved_gradient, *norm_gradients = batch_norm_backward(convolved, gradient, saved, ctx.activations)
        needs = ctx.needs_input_grad
        images_gradient, weight_gradient, bias_gradient = torch.ops.aten.convolution_backward(
            convolved_gradient, images, weight, ctx.bias_sizes, *ctx.geometry, [needs[0], needs[2], needs[3]]
        )
        return (
            images_gradient,
            gradient if needs[1] else None,
            None if weight_gradient is None else weight_gradient.float(),
            None if bias_gradient is None else bias_gradient.float(),
            *norm_gradients,
            None,
            None,
            None,
        )


def batch_norm(
    maps: Tensor,
    shortcut: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    statistics: tuple[Tensor, Tensor, float, float],
    activations: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Batch norm in training by the kernel.

    Args:
        maps: N x C x H x W, channels-last, float32 or bfloat16.
        shortcut: added at the end, of the same shape, layout and type; or None.
        gamma: weight of the norm, C.
        beta: bias of the norm, C.
        statistics: running mean and variance (C each, both updated), momentum and epsilon.
        activations: before and after the norm, as the kernels number them.

    Returns:
        The result, like ``maps``, and what :func:`batch_norm_backward` needs, 4 x C.

    Raises:
        ValueError: a channel has a single value; in PyTorch's words.
    """
    channels = maps.shape[1]
    if maps.numel() == channels:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {maps.shape}")
    out = torch.empty_like(maps)
    saved = torch.empty(4, channels, dtype=torch.float32)
    running_mean, running_var, momentum, eps = statistics
    load_kernels().hps_batch_norm_forward(
        maps.dtype == torch.bfloat16,
        maps.data_ptr(),
        None if shortcut is None else shortcut.data_ptr(),
        out.data_ptr(),
        maps.numel() // channels,
        channels,
        *activations,
        gamma.data_ptr(),
        beta.data_ptr(),
        running_mean.data_ptr(),
        running_var.data_ptr(),
        momentum,
        eps,
        saved.data_ptr(),
        torch.get_num_threads(),
    )
    return out, saved


def batch_norm_backward(
    maps: Tensor, gradient: Tensor, saved: Tensor, activations: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of :func:`batch_norm`.

    Args:
        maps: as it was given.
        gradient: of its result, of the same shape, layout and type.
        saved: what it returned.
        activations: as they were given.

    Returns:
        The gradients of ``maps``, ``gamma`` and ``beta``.
    """
    channels = maps.shape[1]
    maps_gradient = torch.empty_like(maps)
    norm_gradients = torch.empty(2, channels, dtype=torch.float32)
    load_kernels().hps_batch_norm_backward(
        maps.dtype == torch.bfloat16,
        maps.data_ptr(),
        gradient.data_ptr(),
        maps_gradient.data_ptr(),
        maps.numel() // channels,
        channels,
        *activations,
        saved.data_ptr(),
        norm_gradients[0].data_ptr(),
        norm_gradients[1].data_ptr(),
        torch.get_num_threads(),
    )
    return maps_gradient, norm_gradients[0], norm_gradients[1]
