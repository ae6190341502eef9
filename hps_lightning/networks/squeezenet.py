"""SqueezeNet and the networks built from its fire modules.

* ``SqueezeNet``: versions 1.0 and 1.1 (Iandola et al., 2016; paper section 2.1), layer for
  layer torchvision's, whose state dicts it loads; torchvision is not on the board.
* ``SqueezedCNN``: a reconstruction of Pathak and El-Sharkawy, 2019.

This file is copied as it stands onto an embedded board: it needs torch alone, and keeps to
the syntax of Python 3.5 and to what PyTorch 1.1 offers.
"""

import torch
from torch import nn

ACTIVATIONS = ("relu", "elu")
VERSIONS = ("1_0", "1_1")


def _activation(name, inplace):
    if name == "relu":
        return nn.ReLU(inplace=inplace)
    if name == "elu":
        return nn.ELU(inplace=inplace)
    raise ValueError("activation must be one of {}, got {!r}".format(", ".join(ACTIVATIONS), name))


def _check(num_classes, dropout):
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError("num_classes must be an integer of at least 1, got {!r}".format(num_classes))
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise ValueError("dropout must be at least 0 and less than 1, got {!r}".format(dropout))


class Fire(nn.Module):
    """Fire module: a 1x1 squeeze, then 1x1 and 3x3 expansions side by side (paper figure 1).

    N x ``in_channels`` x H x W becomes N x (``expand1x1`` + ``expand3x3``) x H x W.
    """

    def __init__(self, in_channels, squeeze, expand1x1, expand3x3, activation="relu", inplace=True):
        super(Fire, self).__init__()
        # The names are torchvision's, so that its state dicts load.
        self.squeeze = nn.Conv2d(in_channels, squeeze, kernel_size=1)
        self.squeeze_activation = _activation(activation, inplace)
        self.expand1x1 = nn.Conv2d(squeeze, expand1x1, kernel_size=1)
        self.expand1x1_activation = _activation(activation, inplace)
        self.expand3x3 = nn.Conv2d(squeeze, expand3x3, kernel_size=3, padding=1)
        self.expand3x3_activation = _activation(activation, inplace)

    def forward(self, images):
        squeezed = self.squeeze_activation(self.squeeze(images))
        return torch.cat(
            [
                self.expand1x1_activation(self.expand1x1(squeezed)),
                self.expand3x3_activation(self.expand3x3(squeezed)),
            ],
            1,
        )


class SqueezeNet(nn.Module):
    """SqueezeNet 1.0 or 1.1: N x 3 x H x W to N x ``num_classes`` logits (paper section 2.1, figure 2).

    Made for 224x224 images; the paper runs it on 32x32 unchanged. The smallest side that its
    pooling leaves anything of is 21 pixels (1.0) and 17 pixels (1.1).

    Args:
        num_classes: number of logits.
        version: "1_0" or "1_1".
        activation: "relu" or "elu".
        dropout: probability of dropping a feature before the classifier.
        inplace: whether activations overwrite their input, which saves memory.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(self, num_classes=10, version="1_1", activation="relu", dropout=0.5, inplace=True):
        super(SqueezeNet, self).__init__()
        _check(num_classes, dropout)

        def fire(in_channels, squeeze, expand):
            return Fire(in_channels, squeeze, expand, expand, activation, inplace)

        def pool():
            return nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)

        if version == "1_0":
            self.features = nn.Sequential(
                nn.Conv2d(3, 96, kernel_size=7, stride=2),
                _activation(activation, inplace),
                pool(),
                fire(96, 16, 64),
                fire(128, 16, 64),
                fire(128, 32, 128),
                pool(),
                fire(256, 32, 128),
                fire(256, 48, 192),
                fire(384, 48, 192),
                fire(384, 64, 256),
                pool(),
                fire(512, 64, 256),
            )
        elif version == "1_1":
            self.features = nn.Sequential(
                nn.Conv2d(3, 64, kernel_size=3, stride=2),
                _activation(activation, inplace),
                pool(),
                fire(64, 16, 64),
                fire(128, 16, 64),
                pool(),
                fire(128, 32, 128),
                fire(256, 32, 128),
                pool(),
                fire(256, 48, 192),
                fire(384, 48, 192),
                fire(384, 64, 256),
                fire(512, 64, 256),
            )
        else:
            raise ValueError("version must be one of {}, got {!r}".format(", ".join(VERSIONS), version))
        final_conv = nn.Conv2d(512, num_classes, kernel_size=1)
        self.classifier = nn.Sequential(
            nn.Dropout(float(dropout)), final_conv, _activation(activation, inplace), nn.AdaptiveAvgPool2d((1, 1))
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                if module is final_conv:
                    nn.init.normal_(module.weight, mean=0.0, std=0.01)
                else:
                    nn.init.kaiming_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, images):
        return torch.flatten(self.classifier(self.features(images)), 1)


class SqueezedCNN(nn.Module):
    """Squeezed CNN, a reconstruction: N x 3 x 32 x 32 to N x ``num_classes`` logits.

    The paper compares with it (Table 4: 79.30 %, 12.90 MB) and describes it as SqueezeNet cut
    down to three fire modules; its layer table is not public. This reconstruction keeps
    SqueezeNet 1.0's first convolution (as 3x3 for small images) and its first three fire
    modules. They hold 0.29 MB; the rest of the printed size can only lie in a fully connected
    layer, whose 768 features were chosen so that the whole agrees with 12.90 MB.

    Args:
        num_classes: number of logits.
        activation: "relu" or "elu".
        dropout: probability of dropping a feature before the classifier.
        inplace: whether activations overwrite their input, which saves memory.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(self, num_classes=10, activation="relu", dropout=0.5, inplace=True):
        super(SqueezedCNN, self).__init__()
        _check(num_classes, dropout)
        self.features = nn.Sequential(
            nn.Conv2d(3, 96, kernel_size=3, padding=1),
            _activation(activation, inplace),
            nn.MaxPool2d(kernel_size=2),
            Fire(96, 16, 64, 64, activation, inplace),
            Fire(128, 16, 64, 64, activation, inplace),
            nn.MaxPool2d(kernel_size=2),
            Fire(128, 32, 128, 128, activation, inplace),
            nn.AdaptiveMaxPool2d(4),
        )
        self.classifier = nn.Sequential(
            nn.Linear(256 * 4 * 4, 768),
            _activation(activation, inplace),
            nn.Dropout(float(dropout)),
            nn.Linear(768, num_classes),
        )
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        # Logits near zero, as SqueezeNet's last convolution starts.
        nn.init.normal_(self.classifier[-1].weight, mean=0.0, std=0.01)

    def forward(self, images):
        return self.classifier(torch.flatten(self.features(images), 1))
