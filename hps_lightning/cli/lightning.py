"""Running `hps fit`, `validate`, `test` and `predict`, from the arguments as typed to the exit status."""

import logging
import signal
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from hps_lightning.cli.arguments import expand, option_values, with_recipe
from hps_lightning.cli.damaged_checkpoints import open_or_replace
from hps_lightning.cli.from_checkpoint import with_checkpoint
from hps_lightning.cli.hps_cli import HPSCLI, TrainingPlan
from hps_lightning.cli.ranks import ending_together
from hps_lightning.cli.scheduler_jobs import Job, JobRecord
from hps_lightning.errors import UserError
from hps_lightning.runs import NEWEST, Run


def continue_job(job: Job, command: Sequence[str], tokens: list[str]) -> tuple[Run | None, Path | None]:
    """What a training that its scheduler has started again goes on with.

    Args:
        job: the scheduler's, which was restarted.
        command: the arguments of `hps fit`, as typed.
        tokens: the same, names resolved.

    Returns:
        The run that it began and the run's newest checkpoint; None where it has none yet.

    Raises:
        UserError: the run's checkpoints are all damaged.
    """
    # Only the whole config tells where the job's runs lie.
    runs = TrainingPlan(["fit", *with_checkpoint("fit", tokens)[0]], None, None).runs_folder()
    run = job.find_run(runs, command)
    if run is None:
        return None, None
    folder = run.directory / "checkpoints"
    if not any((folder / f"{name}.ckpt").is_file() for name in NEWEST):
        return run, None
    return run, open_or_replace(folder / "last.ckpt", resumable=True)[0]


def quieten() -> None:
    """Switches off what Lightning and torch say that does not hold here, or that the summary says better."""
    for message in (
        ".*does not have many workers.*",  # batches come from memory
        ".*The number of training batches .* is smaller than the logging interval.*",
        ".*isinstance.treespec, LeafSpec.*",  # torch to Lightning, not to its users
        ".*Total length of .* across ranks is zero.*",  # the protocol without validation
        ".*Checkpoint directory .* exists and is not empty.*",  # that of the training that goes on
        ".*your dataloader is not resumable.*",  # the data module is
        ".*could not find the monitored key.*",  # epochs that do not validate; other metrics are refused before
    ):
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def run_cli(
    command: str,
    argv: list[str],
    cli: Callable[..., HPSCLI] = HPSCLI,
    job: Job | None = None,
    own: Sequence[str] = (),
) -> HPSCLI:
    """Runs a subcommand of Lightning's CLI; returns what ran it, with its trainer.

    Args:
        command: "fit", "validate", "test" or "predict".
        argv: the user's arguments after it.
        cli: what is made of them; called with arguments, record and run of an :class:`HPSCLI`.
        job: of a training that goes on when it is started again.
        own: arguments by which the user began a training that goes on, which name the classes that it may import.

    Raises:
        UserError: something that the user gave cannot be used.
        SystemExit: a signal ended it; the status is 128 and its number, as shells have it.
    """
    quieten()
    typed = tokens = expand(with_recipe(argv) if command == "fit" else argv)
    begun = checkpoint = None
    if job is not None:
        if job.restarted:
            begun, checkpoint = continue_job(job, argv, tokens)
        if checkpoint is not None:
            # The run's config has the rest; an option that adds to a list would add again.
            tokens = [f"--ckpt_path={checkpoint}"]
        cli = partial(cli, callbacks=[JobRecord(job, argv, checkpoint)])
    tokens, record, run = with_checkpoint(command, tokens, [*typed, *expand(list(own))])
    try:
        with ending_together():
            return cli([command, *tokens], record, run or begun)
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    except torch.OutOfMemoryError as error:
        training = "--data.batch_size; where it validates, a smaller " if command == "fit" else ""
        raise UserError(
            f"The device's memory does not suffice; choose a smaller {training}--data.eval_batch_size. {error}"
        ) from error
    except SystemExit as ended:
        # So Lightning ends after an interruption, always with the same status.
        interruption = ended.__context__
        if not isinstance(interruption, KeyboardInterrupt):
            raise
        raise SystemExit(128 + getattr(interruption, "signal", signal.SIGINT)) from None


def run_lightning(command: str, argv: list[str]) -> int:
    """Runs a subcommand as :func:`run_cli` does; returns the exit status.

    Raises:
        UserError: something that the user gave cannot be used.
    """
    # Who names a checkpoint knows better what to go on from.
    decided = command != "fit" or any(option == "--ckpt_path" for option, _ in option_values(argv))
    run_cli(command, argv, job=None if decided else Job.current())
    return 0
