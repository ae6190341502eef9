"""`hps fit --seeds` and `hps test` of what it leaves: one training for each of several seeds.

The paper's figures are means of three trainings. Here each is a `hps fit` in a process of its own, so that
none can leave anything behind for the next.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.utilities.seed import max_seed_value
from rich import box
from rich.console import Console
from rich.table import Table

from hps_lightning.callbacks.checkpoints import checkpoint_command
from hps_lightning.checkpoint import classifier_class, read_checkpoint
from hps_lightning.cli.arguments import asks_for_help, is_null, join_options, option_values
from hps_lightning.cli.damaged_checkpoints import open_or_replace
from hps_lightning.cli.hps_cli import TrainingPlan
from hps_lightning.cli.launched import started_together
from hps_lightning.cli.lightning import run_cli, run_lightning
from hps_lightning.errors import UserError
from hps_lightning.modules import RECORD_KEY
from hps_lightning.scheduler_signals import schedulers_signals
from hps_lightning.seed_group import GROUP_FILE, Figures, SeedGroup, finite, summarise

EPOCH_SECONDS = "time/epoch_seconds"

_PATIENCE = 3.0
"""Seconds that a training has to notice a Ctrl+C by itself."""

_WAYS = "--seeds 3 (seeds 0, 1 and 2) or --seeds 0,5,7"

_EXCLUDED = {
    "--seed_everything": "--seeds says which seeds there are",
    "--ckpt_path": "the same command goes on by itself where it was interrupted",
    "--print_config": "leave --seeds out to see the config",
}


def parse_seeds(text: str | None) -> list[int]:
    """The seeds that ``--seeds`` names: the first N for a number N, or those of a list.

    Args:
        text: as typed, such as "3", "0,5,7" or "[0, 5, 7]"; None where nothing follows the option.

    Raises:
        UserError: it names no seeds, or one twice.
    """
    if text is None:
        raise UserError(f"--seeds needs a value: {_WAYS}.")
    listed = text.strip()
    in_brackets = listed.startswith("[") and listed.endswith("]")
    items = [item.strip() for item in (listed[1:-1] if in_brackets else listed).split(",")]
    try:
        numbers = [int(item) for item in items]
    except ValueError:
        raise UserError(f"--seeds {text}: these are no whole numbers; write {_WAYS}.") from None
    if not in_brackets and len(numbers) == 1:
        if numbers[0] < 1:
            raise UserError(f"--seeds {text}: the number of seeds must be at least 1; write {_WAYS}.")
        return list(range(numbers[0]))
    for number in numbers:
        if not 0 <= number <= max_seed_value:
            raise UserError(f"--seeds {text}: {number} is no seed; seeds are 0 to {max_seed_value}.")
        if numbers.count(number) > 1:
            raise UserError(f"--seeds {text}: the seed {number} is there twice, and would count twice in the mean.")
    return numbers


def run_fit_seeds(argv: list[str]) -> int:
    """Runs `hps fit` for each of several seeds, and goes on with what was interrupted.

    Args:
        argv: the arguments after "fit", ``--seeds`` among them.

    Returns:
        The exit status: that of the first training that fails, 130 after Ctrl+C, or 0.

    Raises:
        UserError: something that the user gave cannot be used.
    """
    seeds, rest = _take_seeds(argv)
    if asks_for_help(option for option, _ in option_values(rest)):
        return run_lightning("fit", rest)
    together = started_together()
    if together > 1:
        raise UserError(
            f"--seeds trains one seed after the other by itself, and {together} processes were started together, each "
            "of which would. Start it once; or train one seed a job: --seed_everything SEED."
        )
    folder, config = _plan(rest, seeds)
    group = SeedGroup.find_unfinished(folder, seeds, config)
    found = group is not None
    if group is None:
        changed = SeedGroup.find_changed(folder, argv, config)
        if changed is not None:
            print(
                f"{changed[0].directory} is not finished and stays as it is: the same command began it, and means "
                f"another training now: {'; '.join(changed[1])}."
            )
        group = SeedGroup.create(folder, argv, seeds, config)
    with group.locked() as lock:
        print(_continued(group) if found else f"{_trainings(seeds)} in {group.directory}.")
        status = _train_all(group, _command(config, argv), lock)
    if status == 0:
        print_figures(f"{_trainings(seeds)}: the last epoch", seeds, group.figures)
        print(f"\nKept in {group.directory / GROUP_FILE}. Test them:")
        classifier = classifier_class({"model": yaml.safe_load(config)["model"]})
        print(f"  {checkpoint_command('test', str(group.directory), classifier)}")
    return status


def tested_group(argv: list[str]) -> Path | None:
    """The folder of several seeds that the arguments of `hps test` name, or None if they name none."""
    path = dict(option_values(argv)).get("--ckpt_path")
    return Path(path) if path and (Path(path) / GROUP_FILE).is_file() else None


def run_test_seeds(directory: Path, argv: list[str]) -> int:
    """Runs `hps test` for the last epoch of each of several seeds; returns the exit status.

    Args:
        directory: theirs, ``runs/NAME/seeds_K``.
        argv: the arguments after "test".

    Raises:
        UserError: a training is not finished, or something that the user gave cannot be used.
    """
    group = SeedGroup.load(directory)
    if group.unfinished:
        raise UserError(
            f"{directory}: not finished are the seeds {_listed(group.unfinished)}. Go on with them first: "
            f"{_command(group.config(), group.arguments)}"
        )
    others = join_options(pair for pair in option_values(argv) if pair[0] != "--ckpt_path")
    figures: dict[int, Figures] = {}
    for number, seed in enumerate(group.seeds, 1):
        _print_heading(seed, number, len(group.seeds))
        # No processes of their own: a test draws nothing and leaves nothing behind.
        trainer = run_cli("test", [f"--ckpt_path={group.last_checkpoint(seed)}", *others]).trainer
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        figures[seed] = finite({name: value for name, value in metrics.items() if name.startswith("test/")})
    group.test = {"arguments": others, "figures": figures, "summary": summarise(list(figures.values()))}
    print_figures(f"{_trainings(group.seeds)}: test of the last epoch", group.seeds, figures)
    limit = trainer.limit_test_batches
    # 1.0 is everything; 1 is a single batch.
    if trainer.fast_dev_run or limit != 1 or not isinstance(limit, float):
        print(f"\nOf a part of the images, and so not kept in {directory / GROUP_FILE}.")
        return 0
    # Last, since the folder may not be ours to write to.
    group.save()
    print(f"\nKept in {directory / GROUP_FILE}.")
    return 0


def _take_seeds(argv: list[str]) -> tuple[list[int], list[str]]:
    """The seeds, and the arguments without them."""
    pairs = list(option_values(argv))
    rest: list[tuple[str, str | None]] = []
    text: str | None = None
    after_seeds = False
    for option, value in pairs:
        if after_seeds and option == "":
            raise UserError(f"--seeds {text} {value}: commas belong between seeds; write {_WAYS}.")
        after_seeds = option == "--seeds"
        if after_seeds:
            text = value
        else:
            rest.append((option, value))
            if option in _EXCLUDED and (value is None or not is_null(value)):
                raise UserError(f"--seeds and {option} do not go together: {_EXCLUDED[option]}.")
    return parse_seeds(text), join_options(rest)


def _plan(argv: list[str], seeds: list[int]) -> tuple[Path, str]:
    """The folder of all runs of the network, and the config of the trainings, as YAML."""
    plan = run_cli("fit", argv, TrainingPlan)
    config = plan.config.fit
    if config.ckpt_path is not None:
        raise UserError(f"--seeds and ckpt_path do not go together: {_EXCLUDED['--ckpt_path']}.")
    if config.trainer.fast_dev_run:
        raise UserError("--seeds and --trainer.fast_dev_run do not go together: such a run keeps nothing.")
    if config.export.directory is not None:
        raise UserError("--seeds and --export.directory do not go together: all seeds would write to the same folder.")
    if not plan.logs_to_tensorboard():
        raise UserError("--seeds needs the TensorBoard logger, which gives each run its folder; leave out the other.")
    # Each training has its own; here it must not tell two equal configs apart.
    config.seed_everything = seeds[0]
    config.trainer.logger.init_args.pop("version", None)
    return plan.runs_folder(), plan.dump()


def _command(config: str, argv: Sequence[str]) -> str:
    """What to type to go on: `hps` does not import a network of one's own from the working directory.

    Args:
        config: of the trainings, as YAML.
        argv: the arguments of `hps fit`, as typed.
    """
    ours = yaml.safe_load(config)["model"]["class_path"].startswith("hps_lightning.")
    return f"{'hps' if ours else 'python -m hps_lightning'} fit {shlex.join(argv)}"


def _train_all(group: SeedGroup, command: str, lock: int | None) -> int:
    """Trains what is unfinished; returns the exit status.

    Args:
        group: of the seeds, each of which is noted in it when it is finished.
        command: that the user can type to go on.
        lock: what the trainings inherit of the group's lock.
    """
    for number, seed in enumerate(group.seeds, 1):
        if seed in group.figures:
            continue
        _print_heading(seed, number, len(group.seeds), group.run_directory(seed))
        status, signalled = _run(_training(group, seed), lock)
        figures = _final_figures(group, seed) if status == 0 else None
        if figures is not None:
            group.figures[seed] = figures
            group.save()
        if signalled and group.unfinished:
            where = f"in seed {seed}" if figures is None else f"after seed {seed}"
            print(f"\nInterrupted {where}; the same command goes on there: {command}", file=sys.stderr)
            return 128 + signalled
        if figures is None:
            # 0 without figures: whoever read its output went away, or they could not be written.
            status = status or 1
            kept = ""
            if not group.discard_if_empty():
                kept = (
                    f" The error above says why. What there is stays in {group.directory}; with its cause gone, this "
                    f"goes on: {command}"
                )
            print(f"\nhps: error: the training of seed {seed} failed with status {status}.{kept}", file=sys.stderr)
            return status
    return 0


def _training(group: SeedGroup, seed: int) -> list[str]:
    """The arguments of `hps` for one seed's training: from its last checkpoint, where there is one."""
    checkpoint = group.last_checkpoint(seed)
    if checkpoint.is_file():
        # The config is the user's own, as that beside a checkpoint need not be: see `cli.run_config`.
        own = [f"--config={group.config_path}", f"--seed_everything={seed}"]
        return ["fit", f"--ckpt_path={open_or_replace(checkpoint, resumable=True)[0]}", *own]
    # Below the network's folder, so that TensorBoard shows it as NAME/seeds_K/seed_S.
    version = f"{group.directory.name}/{group.run_directory(seed).name}"
    return [
        "fit",
        f"--config={group.config_path}",
        f"--seed_everything={seed}",
        f"--trainer.logger.init_args.version={version}",
    ]


def _run(argv: list[str], lock: int | None) -> tuple[int, int]:
    """Runs `hps` in a process of its own, whose output is ours.

    Returns:
        Its exit status, and the signal that told us to stop meanwhile; 0 if none did.
    """
    # The working directory is a place to import from if it is one for this process, as under `python -m`.
    here = any(Path(path or ".").resolve() == Path.cwd() for path in sys.path)
    environment = os.environ if here else {**os.environ, "PYTHONSAFEPATH": "1"}
    sys.stdout.flush()
    child = subprocess.Popen(
        [sys.executable, "-m", "hps_lightning", *argv],
        env=environment,
        pass_fds=() if lock is None else (lock,),
    )
    signalled = 0

    def stop(number: int, frame: Any) -> None:
        nonlocal signalled
        signalled = number
        child.send_signal(number)

    before = {number: signal.signal(number, stop) for number in schedulers_signals()}
    try:
        while True:
            try:
                status = child.wait(_PATIENCE if signalled == signal.SIGINT else None)
                break
            except KeyboardInterrupt:
                if signalled:
                    # Checkpoints are written whole or not at all, so that nothing is lost but the epoch.
                    child.kill()
                signalled = signal.SIGINT
            except subprocess.TimeoutExpired:
                # A terminal tells its whole process group, `kill -INT` us alone. A second SIGINT would end it at once.
                child.send_signal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return (status if status >= 0 else 128 - status), signalled


def _final_figures(group: SeedGroup, seed: int) -> Figures | None:
    """The metrics of a training's last epoch and the seconds of an epoch; None if it did not come to its end."""
    config = yaml.safe_load(group.config())
    path = group.run_directory(seed) / config["benchmark"]["filename"]
    if not path.is_file():
        return None
    report = json.loads(path.read_text(encoding="utf-8"))
    metrics = report["metrics"]["final"]
    if not metrics:
        # Killed between its last checkpoint and its end, then continued: no epoch was left to measure.
        metrics = read_checkpoint(group.last_checkpoint(seed))[RECORD_KEY]["metrics"]
    return {**finite(metrics), EPOCH_SECONDS: report["time"]["epoch_seconds"]}


def _continued(group: SeedGroup) -> str:
    def state(seed: int) -> str:
        if seed in group.figures:
            return "finished"
        return "goes on from its last checkpoint" if group.last_checkpoint(seed).is_file() else "begins"

    seeds = "; ".join(f"seed {seed} {'is ' * (seed in group.figures)}{state(seed)}" for seed in group.seeds)
    return f"Continuing {group.directory}: {seeds}."


def _trainings(seeds: Sequence[int]) -> str:
    return f"1 training, seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} trainings, seeds {_listed(seeds)}"


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, seeds))


def _print_heading(seed: int, number: int, count: int, directory: Path | None = None) -> None:
    where = f": {directory}" if directory else ""
    print(f"\n==== seed {seed} ({number} of {count}){where} ====", flush=True)


def print_figures(title: str, seeds: Sequence[int], figures: dict[int, Figures]) -> None:
    """Prints a table: a line for each seed, then mean, spread, smallest and largest.

    Args:
        title: what stands above it.
        seeds: in the order of the lines.
        figures: of each seed.
    """
    summary = summarise([figures[seed] for seed in seeds])
    table = Table(box=box.SIMPLE, title=title, title_justify="left", title_style="bold")
    table.add_column("seed")
    # Accuracies first, and what validated before what trained; the time last.
    order = sorted(summary, key=lambda name: (name == EPOCH_SECONDS, name.startswith("train/"), name))
    for name in order:
        table.add_column("s/epoch" if name == EPOCH_SECONDS else name, justify="right")
    for index, seed in enumerate(seeds):
        cells = [_cell(name, summary[name]["values"][index]) for name in order]
        table.add_row(str(seed), *cells, end_section=index == len(seeds) - 1)
    for key, heading in (("mean", "mean"), ("std", "std (n - 1)"), ("min", "smallest"), ("max", "largest")):
        table.add_row(heading, *(_cell(name, summary[name][key]) for name in order))
    console = Console()
    console.print()
    # A pipe has no width; rich would cut the table to 80 columns.
    (console if console.is_terminal else Console(width=140)).print(table)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name.endswith(("/accuracy", "/top5")):
        return f"{100 * value:.2f} %"
    return f"{value:.2f}" if name == EPOCH_SECONDS else f"{value:.4f}"
