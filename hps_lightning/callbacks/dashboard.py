"""What TensorBoard shows besides the scalars: graph, hyper-parameters, predictions and confusion matrices."""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard.summary import hparams as hparams_summaries
from torchmetrics.classification import MulticlassConfusionMatrix

from hps_lightning.bluebox.weights import bare_copy
from hps_lightning.callbacks.best_validation import BestValidation
from hps_lightning.callbacks.figures import confusion_figure, denormalise, render, samples_figure, superclass_counts
from hps_lightning.complexity import IMAGE_SIZE
from hps_lightning.errors import UserError
from hps_lightning.event_log import tensorboards
from hps_lightning.optim.build import PAPER_OPTIMIZER

MOST_SAMPLES = 100
"""With more, the picture takes longer to draw than a short training, and is too large to look at."""


class Dashboard(Callback):
    """Writes the graph, the hyper-parameters, sample predictions and confusion matrices to TensorBoard.

    At the start of a training: the network's graph, and the hyper-parameters as TensorBoard's
    HPARAMS tab reads them; the tab takes its metrics from the scalars, to which this adds
    ``best/val_accuracy``, ``best/val_loss`` and ``best/epoch`` as they are reached. At the end
    of a training (from its last validation), of ``validate`` and of ``test``:
    ``<stage>/samples``, ``<stage>/confusion`` and, where classes have superclasses,
    ``<stage>/confusion_superclasses``.

    `hps` sets the arguments by ``--dashboard.samples`` and ``--dashboard.graph``: with ``0`` and
    ``false``, a short training ends sooner, by half a second to a second.

    Without a TensorBoardLogger it does nothing. The logger is to be made with
    ``default_hp_metric=False``; otherwise Lightning declares ``hp_metric`` to be the only
    metric of the HPARAMS tab.

    Args:
        samples: number of images, the first of the set, whose predictions are shown; 0 for none, at most 100. Of
            several processes, those that the first one evaluates.
        graph: whether the network's graph is written.

    Raises:
        UserError: ``samples`` is negative or too large.
    """

    def __init__(self, samples: int = 25, graph: bool = True) -> None:
        if not 0 <= samples <= MOST_SAMPLES:
            raise UserError(f"dashboard.samples must lie between 0 and {MOST_SAMPLES}, got {samples!r}.")
        self.samples = samples
        self.graph = graph
        self._best = BestValidation()
        self._evaluation: _Evaluation | None = None
        self._session_end: Any = None

    def state_dict(self) -> dict[str, Any]:
        """The best validation so far, for a training that is resumed."""
        return {"best": self._best.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up :meth:`state_dict`."""
        self._best.load_state_dict(state_dict["best"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets what an earlier run left."""
        self._evaluation = None
        if stage == "fit":
            self._best = BestValidation()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the graph and the hyper-parameters."""
        if not trainer.is_global_zero:
            return
        for logger in tensorboards(trainer):
            if self.graph and not _goes_on(trainer, logger):
                _write_graph(logger, pl_module)
            # TensorBoard takes the columns of all runs from the first "experiment" summary that it
            # finds in any, so that none is written: it then gathers them from every run.
            _, start, self._session_end = hparams_summaries(hyperparameters(trainer, pl_module), {})
            logger.experiment.file_writer.add_summary(start)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Marks the training as finished in the HPARAMS tab."""
        if trainer.is_global_zero:
            for logger in tensorboards(trainer):
                logger.experiment.file_writer.add_summary(self._session_end)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts over."""
        self._start(trainer, pl_module)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts over."""
        self._start(trainer, pl_module)

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        watched = not trainer.sanity_checking and any(tensorboards(trainer))
        self._evaluation = _Evaluation(pl_module.num_classes, pl_module.device, self.samples) if watched else None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Mapping[str, Tensor],
        batch: Sequence[Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts a batch."""
        if self._evaluation is not None:
            self._evaluation.update(batch[0], outputs["logits"], outputs["labels"])

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the best validation if this is it."""
        if trainer.state.fn == "fit" and self._best.update(trainer) and trainer.is_global_zero:
            for logger in tensorboards(trainer):
                logger.log_metrics(
                    {
                        "best/val_accuracy": self._best.accuracy,
                        "best/val_loss": self._best.loss,
                        "best/epoch": self._best.epoch,
                    },
                    step=trainer.global_step,
                )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the last validation."""
        self._draw(trainer, "val")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws a validation that is not part of a training."""
        if trainer.state.fn == "validate":
            self._draw(trainer, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the test."""
        self._draw(trainer, "test")

    def _draw(self, trainer: Trainer, stage: str) -> None:
        evaluation, self._evaluation = self._evaluation, None
        if evaluation is None or not evaluation.batches:
            return
        # On all ranks, since it sums over them.
        counts = evaluation.counts()
        if not trainer.is_global_zero:
            return
        info = getattr(trainer.datamodule, "info", None)
        for name, figure in _figures(evaluation, counts, info, stage, trainer.world_size).items():
            pixels = render(figure)
            for logger in tensorboards(trainer):
                logger.experiment.add_image(f"{stage}/{name}", pixels, trainer.global_step, dataformats="HWC")


class _Evaluation:
    """One pass over the validation or test images: its confusion matrix and its first images."""

    def __init__(self, num_classes: int, device: torch.device, samples: int) -> None:
        self.batches = 0
        self.samples = samples
        self._confusion = MulticlassConfusionMatrix(num_classes, validate_args=False).to(device)
        self.images = torch.empty(0)
        self.probabilities = torch.empty(0)
        self.labels = torch.empty(0, dtype=torch.int64)

    def update(self, images: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Counts a batch: images N x 3 x H x W, logits N x C, labels N."""
        self._confusion.update(logits, labels)
        self.batches += 1
        missing = self.samples - len(self.labels)
        if missing > 0:
            self.images = _append(self.images, images[:missing])
            self.probabilities = _append(self.probabilities, logits[:missing].softmax(1))
            self.labels = _append(self.labels, labels[:missing])

    def counts(self) -> Tensor:
        """Number of images by true (row) and predicted (column) class, C x C, int64, over all devices."""
        return self._confusion.compute().cpu()


def _append(kept: Tensor, more: Tensor) -> Tensor:
    # A copy, so that the whole batch is not kept alive by the few.
    more = more.detach().to("cpu", copy=True)
    return torch.cat([kept, more]) if len(kept) else more


def _figures(evaluation: _Evaluation, counts: Tensor, info: Any, stage: str, processes: int) -> dict[str, Figure]:
    # Without a data module of ours, classes have numbers and images are shown as the network sees them.
    names = [str(index) for index in range(len(counts))] if info is None else info.classes
    images = {"val": "validation images", "test": "test images"}[stage]
    title = images if info is None else f"{info.title}, {images}"
    figures = {"confusion": confusion_figure(counts, names, f"{title}: {_share_right(counts)}")}
    if getattr(info, "superclasses", ()):
        grouped = superclass_counts(counts, info.superclass_of)
        figures["confusion_superclasses"] = confusion_figure(
            grouped, info.superclasses, f"{title}, superclasses: {_share_right(grouped)}"
        )
    if evaluation.samples:
        pixels = denormalise(evaluation.images, getattr(info, "mean", (0.0,) * 3), getattr(info, "std", (1.0,) * 3))
        # Of several processes, each sees a share of the images.
        which = "the first" if processes == 1 else "the first process's first"
        figures["samples"] = samples_figure(
            pixels, evaluation.labels, evaluation.probabilities, names, f"{title}, {which} {len(pixels)}"
        )
    return figures


def _share_right(counts: Tensor) -> str:
    right, total = int(counts.diagonal().sum()), int(counts.sum())
    return f"{right:,} of {total:,} right ({100 * right / total:.2f} %)"


def _goes_on(trainer: Trainer, logger: TensorBoardLogger) -> bool:
    """Whether a training goes on in its own folder, where TensorBoard would find the graph twice."""
    if not trainer.ckpt_path:
        return False
    # Of the file system's root, the parent is itself.
    return Path(trainer.ckpt_path).absolute().parent.parent == Path(logger.log_dir).absolute()


def _write_graph(logger: TensorBoardLogger, pl_module: LightningModule) -> None:
    try:
        # Tracing a copy leaves modes, layout and statistics of the network itself as they are.
        network = bare_copy(pl_module.network).eval()
        image = torch.zeros((1, *IMAGE_SIZE), dtype=next(network.parameters()).dtype)
        with torch.no_grad(), warnings.catch_warnings():
            # The tracer warns of sizes that become constants, and newer torch of the tracer's age;
            # neither matters to a picture of the graph for this size.
            warnings.simplefilter("ignore")
            logger.experiment.add_graph(network, image)
    # Tracing runs the network's code on stand-ins, which can fail in any way; a picture is not worth a training.
    except Exception as error:
        rank_zero_warn(f"TensorBoard will not show the network's graph, since it cannot be traced: {error}")


def hyperparameters(trainer: Trainer, pl_module: LightningModule) -> dict[str, bool | int | float | str]:
    """The training's settings as flat, plain values, by names such as ``optimizer/lr``."""
    data = trainer.datamodule
    specs = {"optimizer": pl_module.optimizer_spec or PAPER_OPTIMIZER, "lr_scheduler": pl_module.lr_scheduler_spec}
    settings: dict[str, Any] = {
        "model": type(pl_module).__name__,
        **{f"model/{name}": value for name, value in pl_module.hparams.items() if name not in specs},
        **_flatten_spec("optimizer", specs["optimizer"]),
        **_flatten_spec("lr_scheduler", specs["lr_scheduler"] or {"class_path": "constant"}),
        "epochs": trainer.max_epochs,
        "precision": trainer.precision,
        "seed": int(os.environ["PL_GLOBAL_SEED"]) if "PL_GLOBAL_SEED" in os.environ else None,
        "dataset": getattr(getattr(data, "info", None), "name", None),
        **{name: getattr(data, name, None) for name in ("protocol", "batch_size")},
    }
    augmentation = vars(data.augmentation) if hasattr(data, "augmentation") else {}
    settings |= {f"augmentation/{name}": value for name, value in augmentation.items() if value}
    return {name: _plain(value) for name, value in settings.items() if value is not None}


def _flatten_spec(kind: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    arguments = {f"{kind}/{name}": value for name, value in (spec.get("init_args") or {}).items()}
    return {kind: spec["class_path"].rpartition(".")[2], **arguments}


def _plain(value: Any) -> bool | int | float | str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return value if isinstance(value, (bool, int, float, str)) else str(value)
