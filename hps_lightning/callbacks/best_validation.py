"""Which validation of a training was its best, for those who tell of it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lightning.pytorch import Trainer


@dataclass
class BestValidation:
    """The validation of highest accuracy in a training; the first one of equals.

    Attributes:
        accuracy: 0 to 1; None before the first validation.
        loss: of the same validation.
        epoch: of the same validation, counted from 1.
    """

    accuracy: float | None = None
    loss: float | None = None
    epoch: int | None = None

    def update(self, trainer: Trainer) -> bool:
        """Compares with the validation that ``trainer`` just ended; whether that is the best one now."""
        accuracy = trainer.callback_metrics.get("val/accuracy")
        if trainer.sanity_checking or accuracy is None:
            return False
        if self.accuracy is not None and float(accuracy) <= self.accuracy:
            return False
        self.accuracy = float(accuracy)
        self.loss = float(trainer.callback_metrics.get("val/loss", math.nan))
        self.epoch = trainer.current_epoch + 1
        return True

    def state_dict(self) -> dict[str, Any]:
        """Its attributes."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up :meth:`state_dict`."""
        self.accuracy, self.loss, self.epoch = state["accuracy"], state["loss"], state["epoch"]
