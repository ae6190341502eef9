"""The LightningModules: one for each family of networks."""

from .classifier import RECORD_FORMAT, RECORD_KEY, ImageClassifier, check_trainable, class_path
from .families import (
    HPSClassifier,
    MobileNetClassifier,
    ModifiedSqueezeNextClassifier,
    ShallowSqueezeNextClassifier,
    SqueezedCNNClassifier,
    SqueezeNetClassifier,
    SqueezeNextClassifier,
)

CLASSIFIERS: dict[str, type[ImageClassifier]] = {
    "squeezenet": SqueezeNetClassifier,
    "squeezed_cnn": SqueezedCNNClassifier,
    "mobilenet": MobileNetClassifier,
    "squeezenext": SqueezeNextClassifier,
    "modified_squeezenext": ModifiedSqueezeNextClassifier,
    "shallow_squeezenext": ShallowSqueezeNextClassifier,
    "hps": HPSClassifier,
}
"""The LightningModule of each family; the keys are those of ``hps_lightning.zoo.FAMILIES``."""

__all__ = [
    "CLASSIFIERS",
    "RECORD_FORMAT",
    "RECORD_KEY",
    "HPSClassifier",
    "ImageClassifier",
    "MobileNetClassifier",
    "ModifiedSqueezeNextClassifier",
    "ShallowSqueezeNextClassifier",
    "SqueezeNetClassifier",
    "SqueezeNextClassifier",
    "SqueezedCNNClassifier",
    "check_trainable",
    "class_path",
]
