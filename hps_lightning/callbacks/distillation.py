"""Training towards what a larger, trained network answers: knowledge distillation."""

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from hps_lightning import zoo
from hps_lightning.bluebox.folded import folded_network
from hps_lightning.checkpoint import read_checkpoint, rebuilt
from hps_lightning.data.checksums import digest
from hps_lightning.engine import Replayed
from hps_lightning.errors import UserError
from hps_lightning.modules import CLASSIFIERS, RECORD_KEY, ImageClassifier


class Distillation(Callback):
    """Lets a network learn from the answers of a trained one, its teacher, as well as from the labels.

    The loss of a batch becomes ``(1 - weight) * loss + weight * temperature**2 * divergence``: the Kullback-Leibler
    divergence, a mean over the images, of the network's probabilities from the teacher's, both softened by the
    temperature (Hinton, Vinyals and Dean, *Distilling the Knowledge in a Neural Network*, 2015). The teacher sees
    each image as the network does, cropped, flipped and mixed alike (Beyer et al., *Knowledge distillation: A good
    teacher is patient and consistent*, 2022). Validation, test and the network's file know nothing of it, but that
    the checkpoint's record and ``benchmark.json`` say who taught.

    A teacher of another data set is refused, as is one that has seen images that validate here.

    Args:
        teacher: path of its checkpoint, one that ``hps fit`` wrote or a published network.
        weight: how much of the loss is the teacher's, more than 0, at most 1.
        temperature: what logits are divided by, at least 1 for softer probabilities; more than 0.

    Raises:
        UserError: an argument is out of range.
    """

    def __init__(self, teacher: str, weight: float = 0.9, temperature: float = 4.0) -> None:
        if not 0 < weight <= 1:
            raise UserError(f"Distillation: weight must be greater than 0 and at most 1, got {weight!r}.")
        # Its square is part of the loss, in single precision.
        numbers = torch.finfo(torch.float32)
        if not (temperature > 0 and numbers.tiny <= temperature * temperature <= numbers.max):
            raise UserError(f"Distillation: temperature must be from 1e-18 to 1e18, got {temperature!r}.")
        self.teacher = teacher
        self.weight = weight
        self.temperature = temperature
        self._network: nn.Module | None = None
        self._graphed: Replayed | None = None
        self._teacher: dict[str, Any] = {}

    def prepare(self, module: ImageClassifier, data: Any) -> None:
        """Loads the teacher, unless that is done, and looks whether it can teach.

        Args:
            module: that is to learn.
            data: the training's data module; of one without a ``record`` nothing is known but the number of classes.

        Raises:
            UserError: the teacher cannot be read, or cannot teach this network on these data.
        """
        if self._network is None:
            self._load()
        describe = getattr(data, "record", None)
        given = describe() if describe is not None else {}
        dataset = given.get("dataset")
        if dataset is not None and self._teacher["dataset"] != dataset:
            raise UserError(
                f"Distillation: the teacher {self.teacher} was trained on {self._teacher['dataset']}, and this "
                f"training is on {dataset}; a teacher must know the same data set."
            )
        classes = self._teacher["model"]["init_args"].get("num_classes")
        if classes != module.num_classes:
            raise UserError(
                f"Distillation: the teacher {self.teacher} tells {classes} classes apart, and this network "
                f"{module.num_classes}; a teacher must know the same data set."
            )
        if given.get("protocol") == "holdout" and _split(self._teacher) != _split(given):
            raise UserError(
                f"Distillation: the teacher {self.teacher} (protocol {self._teacher['protocol']}) has seen images that "
                "validate here, and would tell of them. Train on all images, --data.protocol full, or take a teacher "
                "with the same hold-out."
            )

    def _load(self) -> None:
        checkpoint = read_checkpoint(self.teacher)
        record = checkpoint[RECORD_KEY]
        network = rebuilt(self.teacher, checkpoint).network.eval()
        # Its batch norms cost a fifth of its time, and the convolutions beside them can do their part; but not in one
        # of a user's own that has our names for something else.
        with contextlib.suppress(UserError):
            network = folded_network(network, {"input": {"shape": record["image_size"]}}, complete=False)
        self._network = network.requires_grad_(False)
        self._teacher = {
            **{key: record.get(key) for key in ("model", "dataset", "protocol", "data")},
            "sha256": digest(Path(self.teacher), hashlib.sha256()),
        }

    def record(self) -> dict[str, Any]:
        """Who teaches and how, in plain types.

        Keys: ``teacher`` (``name``, see :func:`teacher_name`, ``model``, ``protocol`` and ``sha256``
        of its file), ``weight``, ``temperature``.
        """
        model = self._teacher["model"]
        # How the teacher itself was trained is told where it lies.
        network = {key: value for key, value in model["init_args"].items() if key not in ("optimizer", "lr_scheduler")}
        return {
            "teacher": {
                "name": self._name(),
                "model": {"class_path": model["class_path"], "init_args": network},
                "protocol": self._teacher["protocol"],
                "sha256": self._teacher["sha256"],
            },
            "weight": self.weight,
            "temperature": self.temperature,
        }

    def _name(self) -> str:
        return teacher_name(self._teacher["model"])

    def __str__(self) -> str:
        """Who teaches and how, in words."""
        return f"{self._name()} ({self.teacher}), weight {self.weight:g}, temperature {self.temperature:g}"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes sure that there is a teacher.

        Raises:
            UserError: see :meth:`prepare`.
        """
        if stage == "fit":
            self.prepare(pl_module, trainer.datamodule)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the teacher to where the network is, and into its loss."""
        own = next(pl_module.network.parameters())
        self._network.to(own.device, own.dtype)
        self._graphed = Replayed(lambda tensors: [self._network(tensors[0])]) if pl_module.graphed else None
        pl_module.distillation = self

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives back the GPU's memory that a graph holds."""
        self._graphed = None

    def loss(self, images: Tensor, logits: Tensor, loss: Tensor) -> Tensor:
        """The loss of a batch with the teacher's part in it.

        Args:
            images: normalised and augmented, N x 3 x H x W.
            logits: the network's answers, N x classes.
            loss: of the labels alone.
        """
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            answers = self._graphed([images])[0] if self._graphed else self._network(images)
        divergence = F.kl_div(
            (logits.float() / self.temperature).log_softmax(1),
            (answers.float() / self.temperature).log_softmax(1),
            reduction="batchmean",
            log_target=True,
        )
        # The square keeps the gradient's size whatever the temperature.
        return (1 - self.weight) * loss + self.weight * self.temperature**2 * divergence

    def state_dict(self) -> dict[str, str]:
        """``sha256`` of the teacher's file; nothing before there is a training."""
        return {"sha256": self._teacher["sha256"]} if self._teacher else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuses to go on with another teacher.

        Raises:
            UserError: the training began with another one.
        """
        # An evaluation of what was taught, for which Lightning restores callbacks too, needs no teacher.
        if self._teacher and state_dict["sha256"] != self._teacher["sha256"]:
            raise UserError(
                f"Distillation: {self.teacher} is not the teacher that this training began with; its file had the "
                f"SHA-256 {state_dict['sha256']}."
            )


def teacher_name(model: Mapping[str, Any]) -> str:
    """What a teacher is called: as :func:`hps_lightning.zoo.describe` does, or its class, by its record's ``model``."""
    family = next((key for key, value in CLASSIFIERS.items() if value.__name__ == model["class_path"]), None)
    return model["class_path"] if family is None else zoo.describe(family, model["init_args"])


def _split(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What decides which images a training has held out."""
    data = record.get("data") or {}
    return record.get("protocol"), data.get("val_fraction"), data.get("split_seed")
