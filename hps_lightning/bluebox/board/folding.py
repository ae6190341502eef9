"""Batch norms folded into the convolutions beside them, and what no layer reads left out: the same answers.

HPS normalises after the activation: y = scale * relu(z) + offset, channel by channel. There is
no convolution before the norm to fold it into, but there is one after it that can take it
over. Where that one pads its input with zeros, the offset would be missing in the padding; it
comes as a channel more, which is the same everywhere and padded with zeros like the others.

It needs torch (1.1 or newer) alone, and keeps to the syntax of Python 3.5.
"""

import copy

import torch
from torch import nn


def fold(network, complete=True):
    """A copy of a network in evaluation mode that gives the same logits with fewer operations.

    Args:
        network: one of ``hps_lightning.networks``, or one's own, of which units of a convolution, a batch norm and
            an activation are folded that are named as theirs; its weights are not changed.
        complete: whether norms in front of padded convolutions are folded too. They cost a
            channel more, which PyTorch hardly notices; some runtimes are fast with multiples
            of 8 or 16 channels alone.

    Returns:
        The folded copy, of the network's own type. A norm is left where nothing can take it over: between two
        ELUs, and in HPS's stem where a shortcut passes it on (widths below 1/32).
    """
    # In double precision, so that what is rounded is rounded once.
    folded = copy.deepcopy(network).double().eval()
    # The SqueezeNext family alone has layers that nothing reads in part.
    if hasattr(folded, "skip_unread"):
        folded.skip_unread()
    with torch.no_grad():
        if getattr(folded, "norm_last", False):
            _fold_norm_last(folded, complete)
        for module in list(folded.modules()):
            if _is_unit(module):
                scale, offset = _affine(module.norm)
                _multiply(module.conv, scale, offset)
                del module.norm
    return folded.to(next(network.parameters()).dtype)


def _is_unit(module):
    """Whether it is a convolution with a batch norm after it: in a network of one's own the names may be others'."""
    return (
        isinstance(module, nn.Sequential)
        and list(module._modules) == ["conv", "norm", "activation"]
        and type(module.conv) is nn.Conv2d
        # A weight that is computed from others would be computed anew.
        and "weight" in module.conv._parameters
        and type(module.norm) is nn.BatchNorm2d
        and module.norm.running_var is not None
    )


class _Ceiling(nn.Module):
    """Limits each channel from above."""

    def __init__(self, ceiling):
        super(_Ceiling, self).__init__()
        self.register_buffer("ceiling", ceiling.reshape(-1, 1, 1))

    def forward(self, maps):
        # Under autocast maps have half the ceiling's bits, and without this the next ones would have twice as many.
        return torch.min(maps, self.ceiling.to(maps.dtype))


class _Pending(object):
    """What has been taken from maps and must be made good: the true ones are scale * maps + offset.

    ``source`` is the convolution that the maps come from, ``level`` of the order of their
    largest values.
    """

    def __init__(self, scale, offset, source=None, level=None):
        self.scale = scale
        self.offset = offset
        self.source = source
        self.level = level


def _affine(norm):
    """A norm in evaluation mode as a scale and an offset of each channel."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.affine:
        scale = scale * norm.weight
    offset = -norm.running_mean * scale
    return scale, offset + norm.bias if norm.affine else offset


def _multiply(conv, scale, offset):
    """Lets a convolution give scale * (what it gave) + offset."""
    conv.weight = nn.Parameter(conv.weight * scale.reshape(-1, 1, 1, 1))
    conv.bias = nn.Parameter(offset if conv.bias is None else conv.bias * scale + offset)


def _is_padded(conv):
    return any(conv.padding)


def _fold_norm_last(network, complete):
    blocks = [block for stage in _stages(network) for block in stage]
    pending = None
    if not isinstance(blocks[0].shortcut, nn.Identity):
        pending = _release(network.stem)
    for index, block in enumerate(blocks):
        # What comes out of a block, or through a shortcut's unit, is an activation's result; the stem's norm is not.
        activated = index > 0 or not isinstance(block.shortcut, nn.Identity)
        pending = _fold_block(block, pending, activated, complete)
    _absorb(network.spatial_resolution.conv, pending)
    # The mean over the pixels lies between; it keeps scales and offsets.
    _absorb(network.classifier, _release(network.spatial_resolution))


def _stages(network):
    return network.stage1, network.stage2, network.stage3, network.stage4


def _fold_block(block, pending, activated, complete):
    before = pending
    units = [block.squeeze1, block.squeeze2, block.separable1, block.separable2, block.expand]
    for index, unit in enumerate(units[:-1]):
        _absorb(unit.conv, pending)
        pending = _release(unit) if complete or not _is_padded(units[index + 1].conv) else None
    _absorb(block.expand.conv, pending)
    passed_on = isinstance(block.shortcut, nn.Identity)
    if not passed_on:
        _absorb(block.shortcut.conv, before)
    if not activated or type(block.activation) is not nn.ReLU:
        return None
    offset = _fold_between_relus(block.expand)
    # Neither summand is negative, so that both ReLUs of the block have nothing left to do.
    block.norm_last = False
    block.activation = nn.Identity()
    if passed_on and before is not None:
        offset = offset + before.offset
    return _Pending(torch.ones_like(offset), offset)


def _release(unit):
    """Takes the norm out of convolution, activation, norm."""
    scale, offset = _affine(unit.norm)
    level = unit.norm.running_mean.abs() + 4 * torch.sqrt(unit.norm.running_var + unit.norm.eps)
    if type(unit.activation) is nn.ReLU:
        # A ReLU lets positive factors through. Channels of like range are worth it: 8 bits have one range for all.
        _multiply(unit.conv, scale.abs(), torch.zeros_like(scale))
        level = level * scale.abs()
        scale = torch.sign(scale)
    del unit.norm
    return _Pending(scale, offset, unit.conv, level.max().clamp(min=1e-3))


def _absorb(layer, pending):
    """Lets a convolution, or a linear layer, take the true maps' part of what it is given."""
    if pending is None:
        return
    shape = (1, -1) + (1,) * (layer.weight.dim() - 2)
    offsets = layer.weight * pending.offset.reshape(shape)
    weight = layer.weight * pending.scale.reshape(shape)
    if isinstance(layer, nn.Conv2d) and _is_padded(layer):
        source, level = pending.source, pending.level
        # Large values in this channel need small weights: 8 bits do not hold large ones beside small ones.
        weight = torch.cat([weight, offsets.sum(1, keepdim=True) / level], 1)
        source.weight = nn.Parameter(torch.cat([source.weight, torch.zeros_like(source.weight[:1])]))
        source.bias = nn.Parameter(torch.cat([source.bias, level.reshape(1)]))
        source.out_channels += 1
        layer.in_channels += 1
    else:
        layer.bias = nn.Parameter(layer.bias + offsets.reshape(len(offsets), -1).sum(1))
    layer.weight = nn.Parameter(weight)


def _fold_between_relus(unit):
    """Folds the norm of a unit that another ReLU follows: relu(scale * relu(z) + offset).

    Returns:
        What has to be added to the unit's result.
    """
    scale, offset = _affine(unit.norm)
    falls = (scale < 0) & (offset > 0)
    # A channel that only falls from an offset of at most 0 is always 0.
    scale = torch.where((scale < 0) & (offset <= 0), torch.zeros_like(scale), scale)
    taken = torch.where(falls, torch.zeros_like(offset), offset.clamp(min=0))
    _multiply(unit.conv, scale, offset - taken)
    if bool(falls.any()):
        unit.norm = _Ceiling(torch.where(falls, offset, torch.full_like(offset, float("inf"))))
    else:
        del unit.norm
    return taken
