"""`hps explore`: which network, and which way to train it, suits the board."""

import argparse
import contextlib
import json
import shlex
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from hps_lightning.cli.output import steady_output
from hps_lightning.cli.parser import OneLineParser
from hps_lightning.errors import TrainingStopped, UserError
from hps_lightning.explore.config import Exploration, parse_limits, read_exploration
from hps_lightning.explore.front import (
    Row,
    choose,
    front_markdown,
    front_of,
    front_table,
    nothing_meets,
    rows_csv,
    rows_of,
    write_text,
)
from hps_lightning.explore.storage import HEARTBEAT_S, STORAGE_ERRORS, default_url, is_file, storage_down
from hps_lightning.explore.study import claim_folder, close_study, find_study, open_study, study_record
from hps_lightning.explore.worker import Worker, write_options
from hps_lightning.runs import RUNS
from hps_lightning.scheduler_signals import schedulers_signals


def run_explore(argv: list[str]) -> int:
    """Runs `hps explore` with the arguments that follow it; returns the exit status.

    Raises:
        UserError: something that the user gave cannot be used, or the storage does not answer.
    """
    # argparse would take what follows `--` for values of ours.
    own, options = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    arguments = _parser().parse_args(own)
    exploration = read_exploration(arguments.config, options, arguments.study)
    url = arguments.storage or default_url(arguments.runs, exploration.study)
    folder = arguments.runs / "explore" / exploration.study
    if arguments.heartbeat < 1:
        raise UserError(f"--heartbeat takes seconds, at least 1; got {arguments.heartbeat}.")
    if arguments.trials is not None and arguments.trials < 1:
        raise UserError(f"--trials must be at least 1, got {arguments.trials}.")
    if not arguments.best and (arguments.limit or arguments.trial is not None or arguments.output):
        raise UserError("--limit, --trial and --output choose a config: they go with --best.")
    if arguments.limit and arguments.trial is not None:
        raise UserError("--limit chooses among the trials, and --trial names one: give one of the two.")
    if arguments.best and arguments.output is None:
        raise UserError("--best needs to know where its config goes: --output best.yaml.")
    # A log on a full disk costs no trial.
    with steady_output(), _storage_errors(url):
        if arguments.best:
            _write_best(arguments, exploration, url)
            return 0
        if arguments.show:
            _show(exploration.study, url, folder, arguments.heartbeat)
            return 0
        if arguments.trials is not None:
            exploration = replace(exploration, trials=arguments.trials)
        study = open_study(exploration, url, arguments.heartbeat)
        try:
            claim_folder(folder, study_record(study, url))
            worker = Worker(study, exploration, url, folder, arguments.heartbeat, say=_say)
            with _terminated_as_interrupted():
                _say("Trying the options in one corner of the space; a data set that is missing is downloaded with it.")
                worker.check()
                worker.work()
        except KeyboardInterrupt as interruption:
            _say("Stopped. The same command goes on from here; `--show` shows what there is.")
            # As shells have it.
            return 128 + getattr(interruption, "signal", signal.SIGINT)
        finally:
            close_study(study)
        _show(exploration.study, url, folder, arguments.heartbeat)
        _say_next(arguments, options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="hps explore",
        description="Explores networks and ways to train them: each trial is a run of `hps fit` with options drawn "
        "from the config's space. The same command goes on with a study that it began; with --storage, on any number "
        "of machines at once.",
        epilog="What follows `--` are further options of `hps fit`, for all trials: "
        "hps explore --config explore.yaml -- --trainer.max_epochs 5",
    )
    parser.add_argument("--config", required=True, help="YAML file that says what is explored, such as explore.yaml")
    parser.add_argument("--study", help="name of the study (default: the config's, or else its file's)")
    parser.add_argument(
        "--storage",
        help="where the study is kept: sqlite:///FILE, journal:///FILE, or for many machines "
        "postgresql://USER:PASSWORD@HOST/DATABASE (default: an SQLite file beside the runs)",
    )
    parser.add_argument(
        "--trials", type=int, help="trials of the study, of all workers together (default: the config's)"
    )
    parser.add_argument("--runs", type=Path, default=Path(RUNS), help="folder of all runs (default: runs)")
    parser.add_argument(
        "--heartbeat",
        type=int,
        default=HEARTBEAT_S,
        metavar="SECONDS",
        help="between two signs of life of a worker; without four of them its trial is taken up by another "
        f"(default: {HEARTBEAT_S}; the same for all workers)",
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--show", action="store_true", help="show and write what was found, without any trial")
    action.add_argument("--best", action="store_true", help="write the config of the best trial, or of --trial")
    parser.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="QUANTITY=NUMBER",
        help="with --best: what the trial may have at most, such as size_bytes=100000; may be given several times",
    )
    parser.add_argument("--trial", type=int, metavar="NUMBER", help="with --best: the trial, instead of the best one")
    parser.add_argument("--output", type=Path, metavar="FILE", help="with --best: the config to write")
    return parser


def _say(line: str) -> None:
    print(line, flush=True)


@contextlib.contextmanager
def _storage_errors(url: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        # Of our output, not of the storage.
        raise
    except STORAGE_ERRORS as error:
        raise storage_down(url, error) from None


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Lets a cluster that ends the process have what Ctrl+C has: a trial that goes on elsewhere."""

    def stop(number: int, frame: object) -> None:
        raise TrainingStopped(number)

    before = {number: signal.signal(number, stop) for number in schedulers_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_best(arguments: argparse.Namespace, exploration: Exploration, url: str) -> None:
    from hps_lightning.explore.best import write_config

    name = exploration.study
    record, rows = _record_and_rows(name, url, arguments.heartbeat)
    limits = {**record["limits"], **_typed_limits(arguments.limit)}
    row = choose(rows, record["objectives"], limits, arguments.trial)
    own = [*exploration.base, f"--config={json.dumps(exploration.space.plain)}"]
    write_config(arguments.output, row, name, record, own)
    _say(f"Wrote {arguments.output}: trial {row.number}, {write_options(row.options)}.")
    _say(f"Train it: hps fit --config {shlex.quote(str(arguments.output))}")


def _record_and_rows(name: str, url: str, heartbeat_s: int) -> tuple[dict[str, Any], list[Row]]:
    study = find_study(name, url, heartbeat_s)
    try:
        return study_record(study, url), rows_of(study.get_trials(deepcopy=False))
    finally:
        close_study(study)


def _typed_limits(given: list[str]) -> dict[str, float]:
    pairs = [text.partition("=") for text in given]
    return parse_limits({name: value for name, _, value in pairs})


def _show(name: str, url: str, folder: Path, heartbeat_s: int) -> None:
    record, rows = _record_and_rows(name, url, heartbeat_s)
    objectives, limits = record["objectives"], record["limits"]
    claim_folder(folder, record)
    front = front_of(rows, objectives)
    write_text(folder / "trials.csv", rows_csv(rows))
    counts = {state: sum(row.state == state for row in rows) for state in dict.fromkeys(row.state for row in rows)}
    _say(f"Study {name}: {', '.join(f'{count} {state}' for state, count in counts.items()) or 'no trial yet'}.")
    if not front:
        if any(row.state in ("running", "waiting") for row in rows) or not rows:
            _say("None is done yet.")
            return
        raise nothing_meets(rows, limits)
    write_text(folder / "front.csv", rows_csv(front))
    write_text(folder / "front.md", front_markdown(front, objectives, limits))
    # Drawing is not waited for until here.
    from hps_lightning.explore.plot import study_figure
    from hps_lightning.report.plots import FORMATS, write_figure

    figure = study_figure(rows, objectives, limits, f"{name}: {len(rows)} trials")
    for suffix in FORMATS:
        write_figure(figure, folder / f"front{suffix}")
    Console(width=None if sys.stdout.isatty() else 160).print(front_table(front, objectives, limits))
    _say(f"Wrote front.png, front.svg, front.csv, front.md and trials.csv to {folder}.")


def _say_next(arguments: argparse.Namespace, options: list[str]) -> None:
    again = ["hps", "explore", "--config", arguments.config]
    again += ["--study", arguments.study] if arguments.study else []
    # A password is not printed.
    storage = "" if not arguments.storage else f" --storage {shlex.quote(arguments.storage)}"
    storage = storage if not arguments.storage or is_file(arguments.storage) else " --storage ..."
    runs = ["--runs", str(arguments.runs)] if arguments.runs != Path(RUNS) else []
    further = f" -- {shlex.join(options)}" if options else ""
    _say(f"Config of the best one: {shlex.join([*again, *runs])}{storage} --best --output best.yaml{further}")
