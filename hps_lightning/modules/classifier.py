"""The LightningModule that all families share: how a network is trained and judged."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from hps_lightning import __version__
from hps_lightning.engine import (
    EAGER_VARIABLE,
    FusedTraining,
    GraphedTraining,
    NativeUnavailableError,
    eager,
    keep_freed_memory,
    passes_repeat,
)
from hps_lightning.engine.hooks import hooked
from hps_lightning.errors import UserError
from hps_lightning.modules.metrics import ImageMean
from hps_lightning.optim import TrainingLength, build_optimizer, build_schedule, spans_training

RECORD_KEY = "hps_lightning"
"""Where a checkpoint keeps what is needed to rebuild its network and its data."""

RECORD_FORMAT = 1

_VALIDATION_KEY = "hps_lightning_validation"
_STEPS_KEY = "hps_lightning_steps"

FUSED_PRECISIONS = ("32-true", "bf16-mixed")
"""Lightning's names of what the fused kernels compute in; in others they leave the work to PyTorch's."""


class Teaching(Protocol):
    """What changes the loss of a training, such as :class:`hps_lightning.callbacks.Distillation`."""

    def loss(self, images: Tensor, logits: Tensor, loss: Tensor) -> Tensor:
        """The loss of a batch, from that of the labels alone."""

    def record(self) -> dict[str, Any]:
        """What a checkpoint says of it, in plain types."""


class ImageClassifier(LightningModule):
    """Trains a network on images of N x 3 x H x W against labels, and measures its accuracy.

    Logs ``train/loss`` and ``train/accuracy``, then ``val/`` and ``test/`` ``loss``,
    ``accuracy`` and ``top5``; accuracies lie between 0 and 1. Validation and test run in
    the weights' own precision, float32 also where training is of mixed precision, since float32
    is what a board runs.

    Args:
        network: maps N x 3 x H x W to N x ``num_classes`` logits.
        num_classes: number of classes.
        optimizer: ``{"class_path": ..., "init_args": {...}}``; the paper's SGD with Nesterov
            momentum (rate 0.1, weight decay 5e-4) if not given.
        lr_scheduler: likewise, one of ``hps_lightning.optim.SCHEDULES``; a constant rate if
            not given.
        label_smoothing: how much of the target is spread over all classes, 0 to 1.
        decay_norm_and_bias: whether the optimizer's weight decay acts on batch norms and biases too.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        optimizer: dict[str, Any] | None = None,
        lr_scheduler: dict[str, Any] | None = None,
        label_smoothing: float = 0.0,
        decay_norm_and_bias: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing must be at least 0 and less than 1, got {label_smoothing!r}.")
        # Convolutions on CPUs and on GPUs with tensor cores are fastest in this layout.
        self.network = network.to(memory_format=torch.channels_last)
        self.num_classes = num_classes
        self.optimizer_spec = optimizer
        self.lr_scheduler_spec = lr_scheduler
        self.label_smoothing = label_smoothing
        self.decay_norm_and_bias = decay_norm_and_bias
        self.fused: FusedTraining | None = None
        self.graphed: GraphedTraining | None = None
        self.kernels = "PyTorch's"
        self.distillation: Teaching | None = None

        def accuracy(top_k: int = 1) -> MulticlassAccuracy:
            return MulticlassAccuracy(num_classes, top_k=top_k, average="micro", validate_args=False)

        # Averages over the epoch, added to in each step and logged once: Lightning's own take a tenth of a step.
        self.train_metrics = nn.ModuleDict({"accuracy": accuracy(), "loss": ImageMean()})
        self._logged_training = False
        self._validated = False
        self._validated_at: int | None = None
        # What a schedule that steps with the optimizer is laid out over: now, and when the training began.
        self._steps: dict[str, int] = {}
        self._begun_steps: dict[str, int] = {}
        self.training_length: TrainingLength | None = None
        metrics = MetricCollection({"accuracy": accuracy(), "top5": accuracy(min(5, num_classes))})
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")
        # Not Lightning's own mean, which rounds the number of images that each of several processes has.
        self.losses = nn.ModuleDict({stage: ImageMean() for stage in ("val", "test")})

    def forward(self, images: Tensor) -> Tensor:
        """Logits, N x ``num_classes``, of images, N x 3 x H x W."""
        return self.network(images.contiguous(memory_format=torch.channels_last))

    def setup(self, stage: str) -> None:
        """Prepares the fast way of training for a CPU or a GPU; ``kernels`` says which one was found."""
        self.fused, self.graphed, self.kernels, self.distillation = None, None, "PyTorch's", None
        # A training that goes on inside an epoch starts none.
        self._logged_training, self._validated, self._validated_at = False, False, None
        self._begun_steps = {}
        # What a training or an evaluation left that an error broke off: another trainer would add to it.
        for metric in (*self.train_metrics.values(), self.val_metrics, self.test_metrics, *self.losses.values()):
            metric.reset()
        device = self.trainer.strategy.root_device.type
        if stage != "fit" or device not in ("cpu", "cuda"):
            return
        if device == "cpu":
            keep_freed_memory()
        if eager():
            self.kernels = f"PyTorch's ({EAGER_VARIABLE} is set)"
        elif device == "cpu":
            self._prepare_fused()
        # Several processes share gradients while the backward pass goes on.
        elif isinstance(self.trainer.strategy, SingleDeviceStrategy) and passes_repeat(self.network):
            self.graphed = GraphedTraining(self.network)
            if self._replays():
                self.kernels = "PyTorch's, in CUDA graphs"

    def teardown(self, stage: str) -> None:
        """Gives back the GPU's memory that graphs hold, which would outlive the training."""
        self.graphed = None

    def _prepare_fused(self) -> None:
        try:
            self.fused = FusedTraining(self.network)
            if self.fused.units and self.trainer.precision in FUSED_PRECISIONS:
                self.kernels = "fused"
        except NativeUnavailableError as error:
            self.kernels = f"PyTorch's, which are slower ({error})"

    def _replays(self) -> bool:
        """Whether a training pass may be the network's alone, and from a graph."""
        return (
            # Gradients of several batches cannot add up where each backward pass writes.
            self.trainer.accumulate_grad_batches == 1
            # A subclass's own forward, and what listens to it, are no part of a graph.
            and type(self).forward is ImageClassifier.forward
            and not hooked(self)
        )

    def _training_logits(self, images: Tensor) -> Tensor:
        if self.graphed and self._replays() and torch.is_grad_enabled():
            return self.graphed(images.contiguous(memory_format=torch.channels_last))
        fast: AbstractContextManager[None] = self.fused.applied() if self.fused else nullcontext()
        with fast:
            return self(images)

    def on_train_epoch_start(self) -> None:
        """Lets the first step of the epoch log what all of them add to; see also :meth:`_drop_old_gradients`."""
        self._logged_training = False
        self._drop_old_gradients()

    def _drop_old_gradients(self) -> None:
        """Where an epoch only measures batch norms' statistics, as the last of StochasticWeightAveraging does.

        Lightning takes a step after its last batch all the same, along whatever gradients there are.
        """
        if getattr(self.trainer.fit_loop, "_skip_backward", False):
            for optimizer in self.trainer.optimizers:
                optimizer.zero_grad(set_to_none=True)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Lets seed and step alone decide what dropout drops, so that a resumed training goes on exactly.

        Where nothing was seeded (``seed_everything``), nothing is decided.
        """
        seed = os.environ.get("PL_GLOBAL_SEED")
        if seed is not None:
            # Large odd factors keep neighbouring seeds, steps and processes apart.
            steps = (int(seed) * 1_000_003 + self.global_step) * 7_919
            # Batches whose gradients accumulate share a step.
            steps += batch_idx % self.trainer.accumulate_grad_batches * 15_485_863
            steps = (steps + self.global_rank) % 2**63
            # torch.manual_seed would note a stack trace for each GPU that is never used.
            torch.default_generator.manual_seed(steps)
            if self.device.type == "cuda":
                torch.cuda.manual_seed(steps)
            elif self.device.type == "mps":
                torch.mps.manual_seed(steps)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch; labels are class indices (N), or probabilities (N x classes) after mixing.

        Raises:
            UserError: the batch is a single image of which nothing can be normalised.
        """
        images, labels = batch
        try:
            logits = self._training_logits(images)
        except ValueError as error:
            if len(images) > 1 or "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                "A batch of one image, whose maps here shrink to one pixel, has no statistics for a batch norm. Choose "
                "another data.batch_size, which leaves no single image for the last batch of an epoch."
            ) from error
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
        if self.distillation is not None:
            loss = self.distillation.loss(images, logits, loss)
        self.train_metrics["accuracy"].update(logits.detach(), labels.argmax(1) if labels.ndim == 2 else labels)
        self.train_metrics["loss"].update(loss.detach(), len(images))
        if not self._logged_training:
            for name, metric in self.train_metrics.items():
                self.log(f"train/{name}", metric, on_step=False, on_epoch=True, prog_bar=True)
            self._logged_training = True
        return loss

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str, metrics: MetricCollection) -> dict[str, Tensor]:
        images, labels = batch
        logits = self._float32_logits(images)
        metrics(logits, labels)
        self.losses[stage].update(F.cross_entropy(logits, labels), len(images))
        self.log(f"{stage}/loss", self.losses[stage], on_step=False, on_epoch=True, batch_size=len(images))
        self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=len(images), prog_bar=stage == "val")
        return {"logits": logits, "labels": labels}

    def _float32_logits(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            # With true half or double precision the weights themselves are of that type.
            return self(images.to(next(self.network.parameters()).dtype)).float()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """``{"logits", "labels"}`` of a batch, in float32."""
        return self._evaluate(batch, "val", self.val_metrics)

    def on_validation_epoch_end(self) -> None:
        """Notes which weights the newest validation is of."""
        if not self.trainer.sanity_checking:
            self._validated, self._validated_at = True, self.trainer.global_step

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """``{"logits", "labels"}`` of a batch, in float32."""
        return self._evaluate(batch, "test", self.test_metrics)

    def predict_step(self, batch: tuple[Tensor, Any], batch_idx: int) -> Tensor:
        """Probabilities, N x ``num_classes``, of a batch's images."""
        return self._float32_logits(batch[0]).softmax(1)

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimizer and the schedule that the specifications name."""
        trainer = self.trainer
        check_trainable(trainer)
        # Lightning clips no gradients of an optimizer that may scale them itself, as the fused ones may; and where the
        # first steps are skipped, as in half precision, PyTorch's fused SGD goes on with a momentum of no value.
        scales = getattr(trainer.precision_plugin, "scaler", None) is not None
        optimizer = build_optimizer(
            self.network,
            self.optimizer_spec,
            fused=not trainer.gradient_clip_val and not scales,
            decay_norm_and_bias=self.decay_norm_and_bias,
        )
        # Loads the data, which tells the number of batches; max_steps may cut it short, so that it is no multiple.
        try:
            _ = trainer.estimated_stepping_batches
        except ValueError as error:
            # Such as validation more often than there are batches; in Lightning's words.
            raise UserError(" ".join(str(error).split())) from error
        self.training_length = length = TrainingLength(
            # Before StochasticWeightAveraging adds one of its own.
            epochs=trainer.max_epochs,
            steps_per_epoch=max(1, -(-trainer.num_training_batches // trainer.accumulate_grad_batches)),
            validates=bool(trainer.enable_validation) and getattr(trainer.datamodule, "validates", True),
            max_steps=trainer.max_steps,
        )
        schedule = build_schedule(optimizer, self.lr_scheduler_spec, length)
        self._steps = {}
        if not schedule:
            return {"optimizer": optimizer}
        if schedule["interval"] == "step":
            self._steps = {"steps_per_epoch": length.steps_per_epoch}
            if spans_training(self.lr_scheduler_spec):
                self._steps["steps"] = length.steps
            self._check_steps()
        # No metric is looked up for a schedule that watches one, since not every epoch has it: on_train_epoch_end does.
        return {"optimizer": optimizer, "lr_scheduler": {**schedule, "reduce_on_plateau": False}}

    def _check_steps(self) -> None:
        """Refuses to go on with a schedule that was laid out over other steps; earlier versions have not said."""
        name = self.lr_scheduler_spec["class_path"].rsplit(".", 1)[-1]
        for key, words, options in (
            (
                "steps_per_epoch",
                "an epoch of {} optimizer steps",
                "data.batch_size, trainer.limit_train_batches, trainer.accumulate_grad_batches and trainer.devices",
            ),
            ("steps", "a training of {} optimizer steps", "trainer.max_steps"),
        ):
            begun, now = self._begun_steps.get(key), self._steps.get(key)
            if begun is not None and now is not None and begun != now:
                raise UserError(
                    f"{name} was laid out over {words.format(begun)}, so that it cannot go on over {now}; leave "
                    f"{options} as they were, or start another training from the weights: --init_weights instead of "
                    "--ckpt_path."
                )

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Steps a schedule, but for one that watches a metric: see :meth:`on_train_epoch_end`."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def on_train_epoch_end(self) -> None:
        """Shows the epoch's metric to a schedule that watches one.

        Lightning would do it after the epoch's checkpoint is written, and skip it when a
        training goes on from there.
        """
        validated, self._validated = self._validated, False
        for config in self.trainer.lr_scheduler_configs:
            # Not every epoch need validate, and an earlier one's metric must not count twice.
            if isinstance(config.scheduler, ReduceLROnPlateau) and (validated or not config.monitor.startswith("val/")):
                metrics = self.trainer.callback_metrics
                if config.monitor not in metrics:
                    raise UserError(
                        f"ReduceLROnPlateau monitors {config.monitor!r}, which this training does not log; "
                        f"it logs {', '.join(sorted(metrics))}."
                    )
                config.scheduler.step(metrics[config.monitor])

    def logged(self, validates: bool) -> list[str]:
        """Names of the metrics that a training logs, which a schedule or a callback may watch.

        Args:
            validates: whether it has a validation.
        """
        names = [f"train/{name}" for name in self.train_metrics]
        return [*names, "val/loss", *self.val_metrics] if validates else names

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the record that rebuilds this module and its data without a config, and what a training goes on by.

        That is when it was validated, and the steps that its schedule is laid out over.
        """
        checkpoint[RECORD_KEY] = self.record()
        checkpoint[_STEPS_KEY] = self._steps
        checkpoint[_VALIDATION_KEY] = {"in_epoch": self._validated, "step": self._validated_at}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes up what a training goes on by; earlier versions have not said."""
        if self._trainer is not None and self._trainer.state.fn == "fit":
            self._begun_steps = checkpoint.get(_STEPS_KEY, {})
            validation = checkpoint.get(_VALIDATION_KEY, {"in_epoch": False, "step": None})
            self._validated, self._validated_at = validation["in_epoch"], validation["step"]

    def record(self) -> dict[str, Any]:
        """What a checkpoint says of itself, in plain types.

        Keys: ``format``, ``version``, ``model`` (:func:`class_path` and arguments), ``metrics`` (the
        newest; of a validation those of these very weights alone), ``epoch``, ``max_epochs``,
        ``distillation`` (where a teacher took part), and what the data module adds (``data``,
        ``dataset``, ``classes``, ``mean``, ``std``, ``image_size``, ``protocol``).
        """
        record: dict[str, Any] = {
            "format": RECORD_FORMAT,
            "version": __version__,
            "model": {"class_path": class_path(type(self)), "init_args": dict(self.hparams)},
        }
        if self.distillation is not None:
            record["distillation"] = self.distillation.record()
        trainer = self._trainer
        if trainer is not None:
            record["epoch"] = trainer.current_epoch
            record["max_epochs"] = self.training_length.epochs if self.training_length else trainer.max_epochs
            stages = ("train/", "test/", *(["val/"] if self._validated_at == trainer.global_step else []))
            record["metrics"] = {
                name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(stages)
            }
            describe = getattr(trainer.datamodule, "record", None)
            if describe is not None:
                record.update(describe())
        return record


def class_path(classifier: type[ImageClassifier]) -> str:
    """What a checkpoint calls a module: the name of one of this project's, the whole path of a user's own."""
    if classifier.__module__.partition(".")[0] == __name__.partition(".")[0]:
        return classifier.__name__
    return f"{classifier.__module__}.{classifier.__qualname__}"


def check_trainable(trainer: Trainer) -> None:
    """Refuses a training without an end, or without a batch.

    Raises:
        UserError: it is one.
    """
    if trainer.max_epochs is None or trainer.max_epochs < 1:
        raise UserError(
            f"A training needs a number of epochs, got --trainer.max_epochs {trainer.max_epochs}; "
            "schedules are laid out over it."
        )
    if trainer.limit_train_batches == 0 or trainer.max_steps == 0:
        raise UserError(
            "There is no batch to train: trainer.limit_train_batches and trainer.max_steps must leave at least one."
        )
