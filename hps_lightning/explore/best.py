"""A trial of a study as a config for `hps fit`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hps_lightning.errors import UserError
from hps_lightning.explore.config import option_tokens
from hps_lightning.explore.front import Row, write_text
from hps_lightning.explore.quantities import QUANTITIES


def write_config(path: Path, row: Row, study: str, record: Mapping[str, Any], own: Sequence[str] = ()) -> None:
    """Writes the config that `hps fit --config` trains a trial's network with.

    It is made of what the study keeps, so that the trial's folder may lie on another machine.

    Args:
        path: of the YAML file; an earlier one is replaced.
        row: the trial.
        study: its name.
        record: what the study explores; see ``study.record_of``.
        own: arguments of `hps fit` that the user himself gives; see ``cli.run_config``.

    Raises:
        UserError: `hps fit` takes these options no longer, they name classes that only the user himself may name, or
            the file cannot be written.
    """
    # Lightning is not waited for until here.
    from hps_lightning.cli.hps_cli import TrainingPlan
    from hps_lightning.cli.lightning import run_cli
    from hps_lightning.cli.run_config import foreign_arguments, own_words

    class Config(TrainingPlan):
        def before_instantiate_classes(self) -> None:
            # Precision and folder stay open: they are those of whoever trains.
            pass

    found = foreign_arguments([*record["base"], *option_tokens(row.options)], own_words(own))
    if found is not None:
        raise UserError(
            f"The study {study} is refused: {found}. Whoever can write to its storage may have put it there; what the "
            "config that you name says too is taken as yours."
        )
    plan = run_cli("fit", [*record["base"], *option_tokens(row.options)], Config)
    values = ", ".join(f"{name} {QUANTITIES[name].write(value)}" for name, value in row.values.items())
    head = f"# Trial {row.number} of the study {study} ({row.state}): {values}.\n# `hps fit --config` trains it.\n"
    write_text(path, head + plan.dump())
