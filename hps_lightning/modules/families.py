"""One LightningModule for each family of networks: its arguments are the network's and the training's."""

import inspect
from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from hps_lightning import networks
from hps_lightning.errors import UserError
from hps_lightning.modules.classifier import ImageClassifier

_MOST = {"width": 32, "resolution": 16}
"""Multipliers beyond which a slip of the finger is likelier than a machine that could train the network."""

_MOST_BLOCKS = 100


def _build(network: Callable[..., nn.Module], **arguments: Any) -> nn.Module:
    for name, most in _MOST.items():
        value = arguments.get(name)
        if isinstance(value, int | float) and value > most:
            raise UserError(f"{network.__name__} cannot be built: {name} must be at most {most}, got {value!r:.80}.")
    stages = arguments.get("stages")
    if isinstance(stages, list) and any(isinstance(count, int) and count > _MOST_BLOCKS for count in stages):
        raise UserError(
            f"{network.__name__} cannot be built: a stage may have {_MOST_BLOCKS} blocks, got {stages!r:.80}."
        )
    try:
        return network(**arguments)
    except ValueError as error:
        # The network files stand alone on the board, so that they cannot raise our own error.
        raise UserError(f"{network.__name__} cannot be built: {error}.") from error


class SqueezeNetClassifier(ImageClassifier):
    """SqueezeNet 1.0 or 1.1 (paper section 2.1).

    Args:
        num_classes: number of classes; from the command line it follows the data set.
        version: "1_0" or "1_1".
        activation: "relu" or "elu".
        dropout: probability of dropping a feature before the classifier.
        inplace: whether activations overwrite their input, which saves memory.
        optimizer: class_path and init_args of the optimizer; --optimizer sets it.
        lr_scheduler: likewise of the schedule; --lr_scheduler sets it.
        label_smoothing: how much of the target is spread over all classes, 0 to 1.
        decay_norm_and_bias: whether the optimizer's weight decay acts on batch norms and biases too.
    """

    def __init__(
        self,
        num_classes: int = 10,
        version: Literal["1_0", "1_1"] = "1_1",
        activation: Literal["relu", "elu"] = "relu",
        dropout: float = 0.5,
        inplace: bool = True,
        optimizer: dict[str, Any] | None = None,
        lr_scheduler: dict[str, Any] | None = None,
        label_smoothing: float = 0.0,
        decay_norm_and_bias: bool = True,
    ) -> None:
        network = _build(
            networks.SqueezeNet,
            num_classes=num_classes,
            version=version,
            activation=activation,
            dropout=dropout,
            inplace=inplace,
        )
        super().__init__(network, num_classes, optimizer, lr_scheduler, label_smoothing, decay_norm_and_bias)
        self.save_hyperparameters()


class SqueezedCNNClassifier(ImageClassifier):
    """Squeezed CNN, a documented reconstruction of what the paper compares with (Table 4).

    Args:
        num_classes: number of classes; from the command line it follows the data set.
        activation: "relu" or "elu".
        dropout: probability of dropping a feature before the classifier.
        inplace: whether activations overwrite their input, which saves memory.
        optimizer: class_path and init_args of the optimizer; --optimizer sets it.
        lr_scheduler: likewise of the schedule; --lr_scheduler sets it.
        label_smoothing: how much of the target is spread over all classes, 0 to 1.
        decay_norm_and_bias: whether the optimizer's weight decay acts on batch norms and biases too.
    """

    def __init__(
        self,
        num_classes: int = 10,
        activation: Literal["relu", "elu"] = "relu",
        dropout: float = 0.5,
        inplace: bool = True,
        optimizer: dict[str, Any] | None = None,
        lr_scheduler: dict[str, Any] | None = None,
        label_smoothing: float = 0.0,
        decay_norm_and_bias: bool = True,
    ) -> None:
        network = _build(
            networks.SqueezedCNN, num_classes=num_classes, activation=activation, dropout=dropout, inplace=inplace
        )
        super().__init__(network, num_classes, optimizer, lr_scheduler, label_smoothing, decay_norm_and_bias)
        self.save_hyperparameters()


class MobileNetClassifier(ImageClassifier):
    """MobileNet v1 with a stem for 32x32 images (paper section 2).

    Args:
        num_classes: number of classes; from the command line it follows the data set.
        width: width multiplier, a factor on every channel count.
        resolution: resolution multiplier, a factor on the sides of the input.
        activation: "relu" or "elu".
        dropout: probability of dropping a feature before the classifier.
        inplace: whether activations overwrite their input, which saves memory.
        optimizer: class_path and init_args of the optimizer; --optimizer sets it.
        lr_scheduler: likewise of the schedule; --lr_scheduler sets it.
        label_smoothing: how much of the target is spread over all classes, 0 to 1.
        decay_norm_and_bias: whether the optimizer's weight decay acts on batch norms and biases too.
    """

    def __init__(
        self,
        num_classes: int = 10,
        width: float = 1.0,
        resolution: float = 1.0,
        activation: Literal["relu", "elu"] = "relu",
        dropout: float = 0.0,
        inplace: bool = True,
        optimizer: dict[str, Any] | None = None,
        lr_scheduler: dict[str, Any] | None = None,
        label_smoothing: float = 0.0,
        decay_norm_and_bias: bool = True,
    ) -> None:
        network = _build(
            networks.MobileNet,
            num_classes=num_classes,
            width=width,
            resolution=resolution,
            activation=activation,
            dropout=dropout,
            inplace=inplace,
        )
        super().__init__(network, num_classes, optimizer, lr_scheduler, label_smoothing, decay_norm_and_bias)
        self.save_hyperparameters()


class SqueezeNextClassifier(ImageClassifier):
    """Baseline SqueezeNext (paper section 2.2)."""

    network_class: type[networks.SqueezeNext] = networks.SqueezeNext

    def __init__(
        self,
        num_classes: int = 10,
        stages: list[int] | None = None,
        width: float | None = None,
        resolution: float = 1.0,
        activation: Literal["relu", "elu"] = "relu",
        dropout: float = 0.0,
        inplace: bool | None = None,
        skip_unread: bool = False,
        optimizer: dict[str, Any] | None = None,
        lr_scheduler: dict[str, Any] | None = None,
        label_smoothing: float = 0.0,
        decay_norm_and_bias: bool = True,
    ) -> None:
        """Builds the network and keeps the arguments.

        Args:
            num_classes: number of classes; from the command line it follows the data set.
            stages: blocks in each of the four stages; the paper's tables call it "Resol.". The
                family's own if not given.
            width: width multiplier, a factor on every channel count. The family's own if not given.
            resolution: resolution multiplier, a factor on the sides of the input.
            activation: "relu" or "elu".
            dropout: probability of dropping a feature before the classifier.
            inplace: whether activations overwrite their input, which saves memory. The family's
                own choice if not given.
            skip_unread: whether to leave out what no layer reads: a fraction of the operations, the
                same answers; in training, batch norms see the pixels alone that are read.
            optimizer: class_path and init_args of the optimizer; --optimizer sets it.
            lr_scheduler: likewise of the schedule; --lr_scheduler sets it.
            label_smoothing: how much of the target is spread over all classes, 0 to 1.
            decay_norm_and_bias: whether the optimizer's weight decay acts on batch norms and biases too.
        """
        # The arguments are described here, where the families below inherit them.
        defaults = inspect.signature(self.network_class).parameters
        # Filled in here, so that the saved hyper-parameters say which network this is.
        stages = defaults["stages"].default if stages is None else stages
        # As configs and checkpoints hold it.
        stages = list(stages) if isinstance(stages, tuple) else stages
        width = defaults["width"].default if width is None else width
        inplace = defaults["inplace"].default if inplace is None else inplace
        network = _build(
            self.network_class,
            num_classes=num_classes,
            stages=stages,
            width=width,
            resolution=resolution,
            activation=activation,
            dropout=dropout,
            inplace=inplace,
            skip_unread=skip_unread,
        )
        super().__init__(network, num_classes, optimizer, lr_scheduler, label_smoothing, decay_norm_and_bias)
        self.save_hyperparameters(ignore=["defaults"])


class ModifiedSqueezeNextClassifier(SqueezeNextClassifier):
    """SqueezeNext without in-place operations (paper section 2.2.1)."""

    network_class = networks.ModifiedSqueezeNext


class HPSClassifier(SqueezeNextClassifier):
    """High Performance SqueezeNext, HPS (paper section 5 and Table 5)."""

    network_class = networks.HighPerformanceSqueezeNext


class ShallowSqueezeNextClassifier(SqueezeNextClassifier):
    """Shallow SqueezeNext: the HPS block, few of them (Duggal and El-Sharkawy, 2019)."""

    network_class = networks.ShallowSqueezeNext
