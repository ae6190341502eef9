"""What `hps predict` shows: the most probable classes of each image, as a table, CSV or JSON."""

import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from lightning.pytorch import Callback, LightningModule, Trainer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from hps_lightning.errors import UserError
from hps_lightning.files import replaced_whole, try_to_write

Format = Literal["table", "csv", "json"]

SUFFIXES: dict[str, Format] = {".csv": "csv", ".json": "json", ".txt": "table"}
"""The format that the name of an output file chooses."""


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image, the most probable one first.

    Attributes:
        file: the image's path, or its position in the test set.
        classes: their names.
        indices: their positions in the data set's list of classes.
        probabilities: 0 to 1.
    """

    file: str
    classes: list[str]
    indices: list[int]
    probabilities: list[float]


class Predictions(Callback):
    """Collects the probabilities of ``predict`` and shows or writes the most probable classes.

    Args:
        top_k: number of classes for each image; all of them if there are fewer.
        output: the file to write; the screen if not given.
        format: "table", "csv" or "json"; if not given, what the output's suffix says (.csv,
            .json or .txt), or a table on the screen.

    Raises:
        UserError: ``top_k`` is less than 1, or there is no such format. Before the prediction
            starts: the suffix is unknown, the output cannot be written, or there are several
            devices.
    """

    def __init__(self, top_k: int = 3, output: str | None = None, format: Format | None = None) -> None:
        if top_k < 1:
            raise UserError(f"Predictions: top_k must be at least 1, got {top_k!r}.")
        if format is not None and format not in get_args(Format):
            raise UserError(f"Predictions: format must be one of {', '.join(get_args(Format))}, got {format!r}.")
        self.top_k = top_k
        self.output = output
        self.format = format
        self._predictions: list[Prediction] = []
        self._format: Format = "table"
        self._silenced: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that the predictions can be written, before the work starts."""
        if stage != "predict":
            return
        if trainer.world_size > 1:
            raise UserError(f"Predictions come from one device, not {trainer.world_size}; use --trainer.devices 1.")
        self._predictions = []
        self._format = _choose_format(self.output, self.format)
        if self.output is not None:
            _check_writable(Path(self.output))
        elif self._format != "table" and trainer.progress_bar_callback is not None:
            # It is drawn on the same stream as the data.
            self._silenced = trainer.progress_bar_callback
            self._silenced.disable()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor,
        batch: Sequence[Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the most probable classes of a batch; ``outputs`` are its probabilities, N x classes."""
        first = len(self._predictions)
        # A test set has labels where photos have paths.
        named = len(batch) > 1 and not isinstance(batch[1], Tensor)
        files = batch[1] if named else range(first, first + len(outputs))
        info = getattr(trainer.datamodule, "info", None)
        names = [str(index) for index in range(outputs.shape[1])] if info is None else info.classes
        top = outputs.float().topk(min(self.top_k, outputs.shape[1]), dim=1)
        for file, indices, probabilities in zip(files, top.indices.tolist(), top.values.tolist(), strict=True):
            classes = [names[index] for index in indices]
            self._predictions.append(Prediction(str(file), classes, indices, probabilities))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows or writes the predictions."""
        if self.output is not None:
            _write(Path(self.output), _TEXTS[self._format](self._predictions))
        elif self._format == "table":
            # A pipe has no width that a path could exceed.
            Console(width=None if sys.stdout.isatty() else _UNLIMITED).print(_table(self._predictions))
        else:
            _write_stdout(_TEXTS[self._format](self._predictions))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets the progress bar show itself again."""
        if self._silenced is not None:
            self._silenced.enable()
            self._silenced = None


def _choose_format(output: str | None, format: Format | None) -> Format:
    if format is not None:
        return format
    if output is None:
        return "table"
    suffix = Path(output).suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(
            f"Predictions: the suffix of {output} does not say what to write; "
            f"use one of {', '.join(SUFFIXES)}, or set the format."
        )
    return SUFFIXES[suffix]


def _check_writable(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise UserError(f"Predictions cannot be written to {path}: it is not a regular file.")
    try:
        try_to_write(path.parent)
    except OSError as error:
        raise UserError(f"Predictions cannot be written to {path}: {error.strerror}.") from error


def _write(path: Path, text: str) -> None:
    try:
        with replaced_whole(path) as aside:
            # Names of files need not be valid text; the escape gives back their very bytes.
            aside.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
    except OSError as error:
        raise UserError(f"Predictions cannot be written to {path}: {error.strerror}.") from error


def _write_stdout(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


_UNLIMITED = 10_000


def _table(predictions: Sequence[Prediction]) -> Table:
    table = Table(box=box.SIMPLE)
    table.add_column("file", overflow="fold")
    for rank in range(1, _ranks(predictions) + 1):
        table.add_column(f"{rank}.", overflow="fold")
        table.add_column("%", justify="right", no_wrap=True)
    for prediction in predictions:
        cells = [prediction.file]
        for name, probability in zip(prediction.classes, prediction.probabilities, strict=True):
            cells += [name, f"{100 * probability:.1f}"]
        # As Text, since square brackets in names are not markup.
        table.add_row(*map(Text, cells))
    return table


def _ranks(predictions: Sequence[Prediction]) -> int:
    return len(predictions[0].classes) if predictions else 0


def _table_text(predictions: Sequence[Prediction]) -> str:
    buffer = io.StringIO()
    Console(file=buffer, width=_UNLIMITED).print(_table(predictions))
    return buffer.getvalue()


def _csv_text(predictions: Sequence[Prediction]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    ranks = range(1, _ranks(predictions) + 1)
    writer.writerow(["file", *(f"rank{rank}_{column}" for rank in ranks for column in ("class", "probability"))])
    for prediction in predictions:
        row = [prediction.file]
        for name, probability in zip(prediction.classes, prediction.probabilities, strict=True):
            row += [name, f"{probability:.6f}"]
        writer.writerow(row)
    return buffer.getvalue()


def _json_text(predictions: Sequence[Prediction]) -> str:
    content = [
        {
            "file": prediction.file,
            "predictions": [
                {"class": name, "index": index, "probability": round(probability, 6)}
                for name, index, probability in zip(
                    prediction.classes, prediction.indices, prediction.probabilities, strict=True
                )
            ],
        }
        for prediction in predictions
    ]
    return json.dumps(content, indent=2) + "\n"


_TEXTS: dict[Format, Callable[[Sequence[Prediction]], str]] = {
    "table": _table_text,
    "csv": _csv_text,
    "json": _json_text,
}
