"""MobileNet v1 with a stem for small images (Howard et al., 2017; paper section 2).

This file is copied as it stands onto an embedded board: it needs torch alone, and keeps to
the syntax of Python 3.5 and to what PyTorch 1.1 offers.
"""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F

ACTIVATIONS = ("relu", "elu")
STEM_CHANNELS = 32
# Output channels and stride of each depthwise separable convolution: Table 1 of Howard et al.
# NOTE: there the stem has stride 2 as well, since it is given 224x224 images.
LAYERS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
)


def _positive_number(name, value):
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("{} must be a number, got {!r}".format(name, value))
    if not 0 < value < float("inf"):
        raise ValueError("{} must be greater than 0 and finite, got {!r}".format(name, value))
    return float(value)


def _unit(in_channels, out_channels, kernel_size, stride, groups, activation, inplace):
    act = nn.ReLU(inplace=inplace) if activation == "relu" else nn.ELU(inplace=inplace)
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
    return nn.Sequential(OrderedDict([("conv", conv), ("norm", nn.BatchNorm2d(out_channels)), ("activation", act)]))


class MobileNet(nn.Module):
    """MobileNet v1 for 32x32 images: N x 3 x 32 x 32 to N x ``num_classes`` logits.

    Args:
        num_classes: number of logits.
        width: width multiplier, a factor on every channel count.
        resolution: resolution multiplier, a factor on the sides of the input; the network
            resizes what it is given.
        activation: "relu" or "elu".
        dropout: probability of dropping a feature before the classifier.
        inplace: whether activations overwrite their input, which saves memory.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(self, num_classes=10, width=1.0, resolution=1.0, activation="relu", dropout=0.0, inplace=True):
        super(MobileNet, self).__init__()
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError("num_classes must be an integer of at least 1, got {!r}".format(num_classes))
        if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
            raise ValueError("dropout must be at least 0 and less than 1, got {!r}".format(dropout))
        if activation not in ACTIVATIONS:
            raise ValueError("activation must be one of {}, got {!r}".format(", ".join(ACTIVATIONS), activation))
        width = _positive_number("width", width)
        self.resolution = _positive_number("resolution", resolution)
        if round(32 * self.resolution) < 4:
            raise ValueError("resolution must leave at least 4 of 32 pixels, got {!r}".format(resolution))

        channels = max(1, int(width * STEM_CHANNELS))
        self.stem = _unit(3, channels, 3, 1, 1, activation, inplace)
        layers = []
        for base, stride in LAYERS:
            out_channels = max(1, int(width * base))
            depthwise = _unit(channels, channels, 3, stride, channels, activation, inplace)
            pointwise = _unit(channels, out_channels, 1, 1, 1, activation, inplace)
            layers.append(nn.Sequential(OrderedDict([("depthwise", depthwise), ("pointwise", pointwise)])))
            channels = out_channels
        self.layers = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(float(dropout))
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # The fan-in, since the fan-out of a depthwise convolution is taken without its groups.
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, images):
        if self.resolution != 1:
            size = [max(1, round(int(side) * self.resolution)) for side in images.shape[-2:]]
            if self.resolution < 1:
                # Averaging over areas is the one antialiased reduction that PyTorch 1.1 has.
                images = F.interpolate(images, size=size, mode="area")
            else:
                images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        features = self.pool(self.layers(self.stem(images)))
        return self.classifier(self.dropout(torch.flatten(features, 1)))
