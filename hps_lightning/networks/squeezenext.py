"""SqueezeNext for 32x32 images, and the networks that descend from it.

Four networks share one bottleneck block and one layout (stem, four stages, a 1x1
"spatial resolution" convolution, average pool, classifier):

* ``SqueezeNext``: the baseline (Gholami et al., 2018; paper section 2.2).
* ``ModifiedSqueezeNext``: the same without in-place operations (section 2.2.1).
* ``HighPerformanceSqueezeNext``: convolution, in-place activation, batch norm; unpadded
  stem; dropout (section 5 and Table 5).
* ``ShallowSqueezeNext``: the same with one block a stage (Duggal and El-Sharkawy, 2019).

"The paper" is Duggal and El-Sharkawy, 2022, doi:10.25046/aj070308. This file is copied as
it stands onto an embedded board: it needs torch alone, and keeps to the syntax of
Python 3.5 and to what PyTorch 1.1 offers.
"""

import math
from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F

ACTIVATIONS = ("relu", "elu")
STAGE_CHANNELS = (32, 64, 128, 256)
STAGE_STRIDES = (1, 2, 2, 2)
STEM_CHANNELS = 64
HEAD_CHANNELS = 128


def _positive_number(name, value):
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("{} must be a number, got {!r}".format(name, value))
    if not 0 < value < float("inf"):
        raise ValueError("{} must be greater than 0 and finite, got {!r}".format(name, value))
    return float(value)


def _activation(name, inplace):
    if name == "relu":
        return nn.ReLU(inplace=inplace)
    if name == "elu":
        return nn.ELU(inplace=inplace)
    raise ValueError("activation must be one of {}, got {!r}".format(", ".join(ACTIVATIONS), name))


def _channels(count):
    # Narrow widths round a layer down to nothing; one channel is the least that carries a signal.
    return max(1, int(count))


def _resize(images, resolution):
    """Scale the sides of ``images`` (N x C x H x W) by ``resolution``."""
    if resolution == 1:
        return images
    size = [max(1, round(int(side) * resolution)) for side in images.shape[-2:]]
    if resolution < 1:
        # Averaging over areas is the one antialiased reduction that PyTorch 1.1 has.
        return F.interpolate(images, size=size, mode="area")
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


class ConvUnit(nn.Sequential):
    """A convolution with its batch norm and activation: the networks' basic building block.

    Args:
        kernel_size: (height, width), as PyTorch orders it. The long side is padded, so that
            the kernel itself never changes the size of the map.
        norm_last: convolution, activation, batch norm (HPS, paper figure 6, right) instead of
            convolution, batch norm, activation (the baselines, figure 6, left and middle).
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size=(1, 1),
        stride=1,
        padding=None,
        activation="relu",
        inplace=True,
        norm_last=False,
    ):
        if padding is None:
            padding = tuple(side // 2 for side in kernel_size)
        conv = ("conv", nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding))
        norm = ("norm", nn.BatchNorm2d(out_channels))
        act = ("activation", _activation(activation, inplace))
        layers = [conv, act, norm] if norm_last else [conv, norm, act]
        super(ConvUnit, self).__init__(OrderedDict(layers))


class _EveryOtherPixel(nn.Identity):
    """The identity of a shortcut, on every other row and column."""

    def forward(self, images):
        # Not by a slice, which ONNX Runtime does not compute in 8 bits.
        return F.max_pool2d(images, 1, 2)


class SqueezeNextBlock(nn.Module):
    """Bottleneck: 1x1, 1x1, a separable 3x3 and 1x1, beside a shortcut (paper figures 4 and 7).

    With ``r`` = 1 where the stride is 2, else 1/4 where the block narrows, else 1/2, the
    channels run in, r·in, r·in/2, r·in, r·in, out. The shortcut is the identity, or a 1x1
    convolution with a batch norm where the shape changes. Branch and shortcut are both
    activated, added, and activated again.

    Args:
        stride: of the first convolution and of the shortcut.
        separable: (height, width) of the two separable kernels, in their order.
        activation, inplace, norm_last: as :class:`ConvUnit` takes them.
    """

    def __init__(self, in_channels, out_channels, stride, separable, activation="relu", inplace=True, norm_last=False):
        super(SqueezeNextBlock, self).__init__()

        def unit(in_channels, out_channels, kernel_size, stride, norm_last=norm_last):
            return ConvUnit(in_channels, out_channels, kernel_size, stride, None, activation, inplace, norm_last)

        if stride == 2:
            reduction = 1.0
        elif in_channels > out_channels:
            reduction = 0.25
        else:
            reduction = 0.5
        squeezed = _channels(in_channels * reduction)
        narrow = _channels(in_channels * reduction * 0.5)
        self.squeeze1 = unit(in_channels, squeezed, (1, 1), stride)
        self.squeeze2 = unit(squeezed, narrow, (1, 1), 1)
        self.separable1 = unit(narrow, squeezed, separable[0], 1)
        self.separable2 = unit(squeezed, squeezed, separable[1], 1)
        self.expand = unit(squeezed, out_channels, (1, 1), 1)
        if stride != 1 or in_channels != out_channels:
            self.shortcut = unit(in_channels, out_channels, (1, 1), stride, norm_last=False)
        else:
            # Activated already, by the block before.
            self.shortcut = nn.Identity()
        self.norm_last = norm_last
        self.activation = _activation(activation, inplace)

    def halve_output(self):
        """Compute every other row and column of the output alone, and what they depend on."""
        for unit in (self.separable1, self.separable2):
            # A 1x3 convolution needs all columns of its input, and gives every other.
            unit.conv.stride = tuple(2 if side > 1 else 1 for side in unit.conv.kernel_size)
        if isinstance(self.shortcut, nn.Identity):
            self.shortcut = _EveryOtherPixel()
        else:
            self.shortcut.conv.stride = tuple(2 * stride for stride in self.shortcut.conv.stride)

    def forward(self, images):
        branch = self.squeeze2(self.squeeze1(images))
        branch = self.separable2(self.separable1(branch))
        branch = self.expand(branch)
        if self.norm_last:
            branch = self.activation(branch)
        # Not added in place: in the baselines autograd still needs the branch's activation.
        return self.activation(branch + self.shortcut(images))


class SqueezeNext(nn.Module):
    """Baseline SqueezeNext for 32x32 images: N x 3 x 32 x 32 to N x ``num_classes`` logits.

    Source: paper section 2.2 and figure 3; block rules and channel counts as in the public
    PyTorch baseline. Convolutions have biases; weights start Xavier-uniform.

    Args:
        num_classes: number of logits.
        stages: blocks in each of the four stages; the paper's tables call it "Resol.".
        width: width multiplier (section 5.2), a factor on every channel count.
        resolution: resolution multiplier (section 5.1), a factor on the sides of the input;
            the network resizes what it is given, so that callers pass the same images.
        activation: "relu" or "elu".
        dropout: probability of dropping a feature before the classifier.
        inplace: whether activations overwrite their input, which saves memory.
        skip_unread: whether to leave out what no layer reads; see :meth:`skip_unread`.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    norm_last = False
    stem_padding = 1

    def __init__(
        self,
        num_classes=10,
        stages=(6, 6, 8, 1),
        width=1.0,
        resolution=1.0,
        activation="relu",
        dropout=0.0,
        inplace=True,
        skip_unread=False,
    ):
        super(SqueezeNext, self).__init__()
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError("num_classes must be an integer of at least 1, got {!r}".format(num_classes))
        stages = tuple(stages) if isinstance(stages, (list, tuple)) else (stages,)
        if len(stages) != 4 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in stages):
            raise ValueError(
                "stages must be four block counts of at least 1, such as [1, 1, 1, 1], got {!r}".format(list(stages))
            )
        width = _positive_number("width", width)
        self.resolution = _positive_number("resolution", resolution)
        if round(32 * self.resolution) < 4:
            raise ValueError("resolution must leave at least 4 of 32 pixels, got {!r}".format(resolution))
        if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
            raise ValueError("dropout must be at least 0 and less than 1, got {!r}".format(dropout))
        if activation not in ACTIVATIONS:
            raise ValueError("activation must be one of {}, got {!r}".format(", ".join(ACTIVATIONS), activation))

        style = {"activation": activation, "inplace": inplace, "norm_last": self.norm_last}
        channels = _channels(width * STEM_CHANNELS)
        self.stem = ConvUnit(3, channels, (3, 3), padding=self.stem_padding, **style)
        for stage, (blocks, base, stride) in enumerate(zip(stages, STAGE_CHANNELS, STAGE_STRIDES), start=1):
            out_channels = _channels(width * base)
            layers = []
            for block in range(blocks):
                layers.append(
                    SqueezeNextBlock(
                        channels,
                        out_channels,
                        stride if block == 0 else 1,
                        self.separable_kernels(stage, block),
                        **style,
                    )
                )
                channels = out_channels
            setattr(self, "stage{}".format(stage), nn.Sequential(*layers))
        head = _channels(width * HEAD_CHANNELS)
        self.spatial_resolution = ConvUnit(channels, head, **style)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(float(dropout))
        self.classifier = nn.Linear(head, num_classes)
        self._initialise()
        if skip_unread:
            self.skip_unread()

    def skip_unread(self):
        """Leave out what no layer reads: three quarters of the last map of stages 1 to 3.

        The next stage begins with 1x1 convolutions of stride 2, which look at every other row
        and column. Here the block before computes those alone. Weights, their names and the
        answers in evaluation mode stay the same, up to rounding. In training, batch norms see
        the statistics of fewer pixels, those that are read.
        """
        stages = (self.stage1, self.stage2, self.stage3, self.stage4)
        for stage, following in zip(stages, stages[1:]):
            first = following[0]
            if first.squeeze1.conv.stride != (1, 1):
                stage[-1].halve_output()
                first.squeeze1.conv.stride = first.shortcut.conv.stride = (1, 1)

    @staticmethod
    def separable_kernels(stage, block):
        """The (height, width) of a block's two separable kernels, in their order.

        Args:
            stage: 1 to 4.
            block: position in the stage, from 0.
        """
        return ((1, 3), (3, 1))

    def _initialise(self):
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # sqrt 2 is what the public baseline uses: the gain of a ReLU.
                nn.init.xavier_uniform_(module.weight, gain=math.sqrt(2))
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, images):
        features = self.stem(_resize(images, self.resolution))
        features = self.stage4(self.stage3(self.stage2(self.stage1(features))))
        features = self.pool(self.spatial_resolution(features))
        return self.classifier(self.dropout(torch.flatten(features, 1)))


class ModifiedSqueezeNext(SqueezeNext):
    """SqueezeNext rebuilt in PyTorch without in-place operations (paper section 2.2.1, figure 4).

    Takes images of N x 3 x 32 x 32 and returns N x ``num_classes`` logits. The arguments are
    those of :class:`SqueezeNext`; the network is the same function of its weights.
    """

    def __init__(
        self,
        num_classes=10,
        stages=(6, 6, 8, 1),
        width=1.0,
        resolution=1.0,
        activation="relu",
        dropout=0.0,
        inplace=False,
        skip_unread=False,
    ):
        super(ModifiedSqueezeNext, self).__init__(
            num_classes, stages, width, resolution, activation, dropout, inplace, skip_unread
        )


class HighPerformanceSqueezeNext(SqueezeNext):
    """High Performance SqueezeNext, HPS (paper section 5, figures 6 to 8, Table 5).

    Takes images of N x 3 x 32 x 32 and returns N x ``num_classes`` logits. It differs from
    the baseline in the unit's order (convolution, in-place activation, batch norm), in a stem
    without padding (32x32 becomes 30x30, then 15, 8 and 4), and in the order of the separable
    kernels. The depth in the names HPS-DD is the number of blocks plus 2.

    The arguments are those of :class:`SqueezeNext`. The paper adds a dropout before the
    classifier but gives no rate, so that none is assumed here.
    """

    norm_last = True
    stem_padding = 0

    def __init__(
        self,
        num_classes=10,
        stages=(2, 4, 12, 1),
        width=1.0,
        resolution=1.0,
        activation="relu",
        dropout=0.0,
        inplace=True,
        skip_unread=False,
    ):
        super(HighPerformanceSqueezeNext, self).__init__(
            num_classes, stages, width, resolution, activation, dropout, inplace, skip_unread
        )

    @staticmethod
    def separable_kernels(stage, block):
        """As Table 5 orders them; it writes width x height, PyTorch height x width.

        Its "1 x 3" comes first in the first block of stages 1, 2 and 4. Blocks that it does
        not list (stage 1 after the first) follow the rule of the other blocks.
        """
        if block == 0 and stage != 3:
            return ((3, 1), (1, 3))
        return ((1, 3), (3, 1))


class ShallowSqueezeNext(HighPerformanceSqueezeNext):
    """Shallow SqueezeNext: the HPS block, few of them (Duggal and El-Sharkawy, 2019 and 2020).

    Takes images of N x 3 x 32 x 32 and returns N x ``num_classes`` logits. The arguments are
    those of :class:`SqueezeNext`. Its published figures equal those of HPS-06-0.5x in the
    paper's Tables 1 and 2, so that both are read as one network.
    """

    def __init__(
        self,
        num_classes=10,
        stages=(1, 1, 1, 1),
        width=0.5,
        resolution=1.0,
        activation="relu",
        dropout=0.0,
        inplace=True,
        skip_unread=False,
    ):
        super(ShallowSqueezeNext, self).__init__(
            num_classes, stages, width, resolution, activation, dropout, inplace, skip_unread
        )
