"""Kills one training with SIGKILL at random moments, and compares what it ends with to one that was left in peace.

    python benchmarks/kill_soak.py --kills 20 --output benchmarks/results/kill_soak

The training has everything on that could go on wrongly: dropout, mixup, averaged weights, smaller images at first, a
rate that changes in every step, checkpoints inside epochs, validations inside them too. After each kill it goes on
from `last.ckpt`, as `hps fit --ckpt_path last` does, until the next one. Part of the kills are aimed at the writing of
a checkpoint. Compared are, bit by bit: all that the last, the best and the weights' checkpoint hold, the metrics, the
generators' state, TensorBoard's scalars, and which epochs and images `benchmark.json` counts. Only seconds may differ.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from hps_lightning.callbacks.resume import RESUME_KEY, random_state
from hps_lightning.errors import UserError
from hps_lightning.files import suffixed, write_json, write_text
from hps_lightning.machine import hardware, versions

EVERYTHING = (
    "--model=hps_06_05x",
    "--model.width=0.2",
    "--model.dropout=0.3",
    "--data.dataset=digits",
    "--data.batch_size=32",
    "--data.augmentation.mixup=0.2",
    "--optimizer=muon",
    "--lr_scheduler=OneCycleLR",
    "--trainer.callbacks+=EMAWeightAveraging",
    "--trainer.callbacks.decay=0.9",
    "--trainer.callbacks+=hps_lightning.callbacks.ProgressiveResolution",
    "--trainer.accelerator=cpu",
    "--trainer.val_check_interval=0.5",
    "--trainer.log_every_n_steps=3",
    "--last_checkpoint.every_n_train_steps=5",
)
"""A recipe of `hps fit` with all that has a state; 41 steps an epoch."""

PRECISIONS = ("32-true", "bf16-mixed")

_PHASES = ("start", "step", "validation", "checkpoint", "between", "end")
_WRITES = 4
"""Every fourth kill is aimed at a checkpoint's writing."""


@dataclass(frozen=True)
class Kill:
    """A planned kill.

    Attributes:
        step: of the training, from which on it may come.
        phase: in which it has to come; any if empty.
        delay: seconds that it comes later.
    """

    step: int
    phase: str
    delay: float


@dataclass
class Survived:
    """A kill that came, and where the training went on.

    Attributes:
        step: of the training, when it came.
        phase: what the process was at: a step, a validation, the writing of a checkpoint, or between those.
        resumed_step: of the checkpoint that the training went on from; 0 where it began again.
        in_epoch: batches of its epoch that this checkpoint's training had done; 0 between epochs.
    """

    step: int
    phase: str
    resumed_step: int
    in_epoch: int


class _Witness(Callback):
    """Tells what a training is at, and kills its process when the moment has come."""

    def __init__(self, at: Any, kill: Kill | None) -> None:
        self._at = at
        self._kill = kill

    def _enter(self, phase: str, step: int) -> None:
        self._at[0], self._at[1] = _PHASES.index(phase), step
        kill = self._kill
        if kill is not None and step >= kill.step and kill.phase in ("", phase):
            self._kill = None
            threading.Thread(target=_kill_myself, args=(kill.delay,), daemon=True).start()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        save = trainer.save_checkpoint

        def saving(*arguments: Any, **options: Any) -> None:
            self._enter("checkpoint", trainer.global_step)
            save(*arguments, **options)
            self._enter("between", trainer.global_step)

        trainer.save_checkpoint = saving

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._enter("step", trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._enter("between", trainer.global_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._enter("validation", trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._enter("between", trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._enter("end", trainer.global_step)


def _kill_myself(delay: float) -> None:
    time.sleep(delay)
    os.kill(os.getpid(), signal.SIGKILL)


def _train(argv: Sequence[str], folder: str, at: Any, kill: Kill | None, threads: int) -> None:
    """One process of a training: `hps fit`, whose end is kept in ``end.pt``."""
    from hps_lightning.cli.hps_cli import HPSCLI
    from hps_lightning.cli.lightning import run_cli

    os.chdir(folder)
    torch.set_num_threads(threads)
    log = open("fit.log", "a", buffering=1, encoding="utf-8")  # noqa: SIM115 (open until the process ends)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    sys.stdout = sys.stderr = log
    print(f"==== hps fit {' '.join(argv)}")
    trainer = run_cli("fit", list(argv), partial(HPSCLI, callbacks=[_Witness(at, kill)])).trainer
    end = {"metrics": dict(trainer.callback_metrics), "random": random_state()}
    torch.save(end, "end.pt")


@dataclass
class Training:
    """A training that processes take turns at.

    Attributes:
        argv: of `hps fit`, when it begins.
        folder: of its runs; `end.pt` is there when it has come to its end.
        threads: of computation.
        seconds: that they took together.
    """

    argv: Sequence[str]
    folder: Path
    threads: int = 1
    seconds: float = 0.0
    survived: list[Survived] = field(default_factory=list)

    @property
    def run(self) -> Path:
        """The folder of its newest run."""
        return max(self.folder.glob("runs/*/version_*"), key=lambda path: int(path.name.rpartition("_")[2]))

    def _checkpoint(self) -> Path | None:
        found = list(self.folder.glob("runs/*/version_*/checkpoints/last.ckpt"))
        return found[0] if found else None

    def go_on(self, kill: Kill | None = None) -> tuple[int, str] | None:
        """Begins the training, or goes on with it, until it ends or is killed.

        Returns:
            The step and the phase where it was killed, or None where it has come to its end.

        Raises:
            RuntimeError: it ended in another way.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        context = _context()
        at = context.Array("l", [0, 0], lock=False)
        checkpoint = self._checkpoint()
        argv = self.argv if checkpoint is None else ["--ckpt_path=last"]
        started = time.perf_counter()
        process = context.Process(target=_train, args=(argv, str(self.folder), at, kill, self.threads))
        process.start()
        process.join()
        self.seconds += time.perf_counter() - started
        if process.exitcode == 0:
            return None
        if process.exitcode != -signal.SIGKILL:
            tail = (self.folder / "fit.log").read_text(encoding="utf-8")[-3000:]
            raise RuntimeError(f"the training ended with status {process.exitcode}:\n{tail}")
        return at[1], _PHASES[at[0]]

    def survive(self, kill: Kill) -> bool:
        """Goes on until it is killed; False where it came to its end before."""
        where = self.go_on(kill)
        if where is None:
            return False
        checkpoint = self._checkpoint()
        step = batches = 0
        if checkpoint is not None:
            content = torch.load(checkpoint, weights_only=True)
            step, batches = content["global_step"], content["ImageDataModule"]["batches"]
        self.survived.append(Survived(*where, resumed_step=step, in_epoch=batches))
        return True


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    # Loaded once, for all processes.
    context.set_forkserver_preload(["hps_lightning.cli.lightning"])
    return context


def plan(kills: int, steps: int, step_seconds: float, generator: random.Random) -> list[Kill]:
    """Random kills of a training, in order.

    Args:
        kills: how many.
        steps: of the whole training.
        step_seconds: that a step takes, on average over everything.
        generator: that they are drawn from.

    Raises:
        UserError: the training has fewer steps.
    """
    if kills > steps:
        raise UserError(f"--kills {kills}: the training has {steps} steps, and is killed in each at the most once.")
    at = sorted(generator.sample(range(steps), kills))
    aimed = set(generator.sample(range(kills), kills // _WRITES))
    # A checkpoint is written in a few milliseconds.
    return [
        Kill(step, "checkpoint", generator.uniform(0, 0.01))
        if number in aimed
        else Kill(step, "", generator.uniform(0, 2 * step_seconds))
        for number, step in enumerate(at)
    ]


def differences(one: Training, other: Training) -> list[str]:
    """What two trainings that have ended differ in, apart from seconds; nothing if they are the same."""
    end = [f"end: {text}" for text in _differences(_end(one), _end(other))]
    return run_differences(one.run, other.run) + end


def run_differences(one: Path, other: Path) -> list[str]:
    """What the folders of two runs that have ended differ in, apart from seconds and places."""
    readers = {
        **{f"{name}.ckpt": partial(_checkpoint, name=name) for name in ("last", "best", "weights")},
        "TensorBoard": scalars,
        "benchmark.json": _benchmark,
    }
    return [f"{name}: {text}" for name, read in readers.items() for text in _differences(read(one), read(other))]


def _checkpoint(run: Path, name: str) -> dict[str, Any]:
    content = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
    if "callbacks" in content:
        # How often it has saved before is no difference.
        del content["callbacks"]["LastCheckpoint"]
        cost = content["callbacks"]["Benchmark"]
        cost["epochs"] = [_counted(epoch) for epoch in cost["epochs"]]
        cost["current"] = _counted(cost["current"])
        del cost["resumes"]
        for state in content["callbacks"].values():
            state.pop("dirpath", None)
            for key, value in state.items():
                if key.endswith("model_path"):
                    state[key] = Path(value).name
                if key == "best_k_models":
                    state[key] = {Path(path).name: score for path, score in value.items()}
        resume = content[RESUME_KEY]
        del resume["logs"]
        resume["metrics"] = _untimed(resume["metrics"])
        resume["unlogged"]["metrics"] = _untimed(resume["unlogged"]["metrics"])
    return content


def _counted(epoch: dict[str, Any]) -> dict[str, Any]:
    return {"epoch": epoch["epoch"], "images": epoch["images"]}


def _untimed(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


def _end(training: Training) -> dict[str, Any]:
    end = torch.load(training.folder / "end.pt", weights_only=True)
    return {**end, "metrics": _untimed(end["metrics"])}


def _benchmark(run: Path) -> dict[str, Any]:
    report = json.loads((run / "benchmark.json").read_text(encoding="utf-8"))
    return {
        "metrics": report["metrics"],
        "epochs": [_counted(epoch) for epoch in report["epochs"]],
        "number of epochs": report["time"]["epochs"],
        "batch_size": report["batch_size"],
        "without seconds": [epoch["epoch"] for epoch in report["epochs"] if not epoch["train_seconds"] > 0],
    }


def scalars(run: Path) -> dict[str, list[Any]]:
    """TensorBoard's scalars by their names: steps and values, or steps alone where the values are seconds."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, 0.0 if tag.startswith("time/") else event.value) for event in log.Scalars(tag)]
        for tag in log.Tags()["scalars"]
    }


def _differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            if key not in one or key not in other:
                yield f"{where}/{key} is in the {'first' if key in one else 'second'} alone"
            else:
                yield from _differences(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            yield f"{where} has {len(one)} and {len(other)} items"
        for number, (left, right) in enumerate(zip(one, other, strict=False)):
            yield from _differences(left, right, f"{where}/{number}")
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        # Bit by bit: -0 is not 0, and the same NaN is the same.
        if one.dtype != other.dtype or one.shape != other.shape or not _same_bits(one, other):
            yield f"{where} differs"
    elif one != other and not (one != one and other != other):
        yield f"{where} is {one!r} and {other!r}"


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    bits = [value.detach().contiguous().reshape(-1).view(torch.uint8) for value in (one, other)]
    return torch.equal(*bits)


def soak(
    folder: Path, argv: Sequence[str], kills: int, seed: int, threads: int = 1
) -> tuple[Training, Training, list[str]]:
    """Trains once in peace and once with kills, in turns of as many processes as it takes.

    Args:
        folder: that takes both.
        argv: of `hps fit`.
        kills: how many.
        seed: of the moments.
        threads: of computation.

    Returns:
        The training in peace, the killed one, and what they differ in.

    Raises:
        UserError: the training has fewer steps than it is to be killed in.
    """
    whole, killed = Training(argv, folder / "whole", threads), Training(argv, folder / "killed", threads)
    whole.go_on()
    steps = torch.load(whole.run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    time = json.loads((whole.run / "benchmark.json").read_text(encoding="utf-8"))["time"]
    # The median epoch's: with the first step, and whatever else held one up, a kill might come after the end.
    for kill in plan(kills, steps, time["epoch_seconds"] * time["epochs"] / steps, random.Random(seed)):
        if not killed.survive(kill):
            break
    else:
        while killed.go_on() is not None:
            pass
    return whole, killed, differences(whole, killed)


def _row(survived: Survived) -> str:
    if not survived.resumed_step:
        where = "the beginning: there was no checkpoint yet"
    elif survived.in_epoch:
        where = f"step {survived.resumed_step}, batch {survived.in_epoch} of its epoch"
    else:
        where = f"step {survived.resumed_step}, between epochs"
    return f"killed in step {survived.step} ({survived.phase}), went on from {where}"


def main() -> int:
    """Runs the command line; returns the exit status: 1 where the trainings differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each training (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=6, help="of the training (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the kills' moments (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of computation (default: %(default)s)")
    parser.add_argument("--precision", nargs="+", default=PRECISIONS, help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="JSON and Markdown of this name; nothing is kept without it")
    parser.add_argument("--folder", type=Path, help="keeps the trainings there, which is to be empty or new")
    parser.add_argument("options", nargs="*", help="further options of `hps fit`, after --")
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for precision in arguments.precision:
            folder = (arguments.folder or Path(temporary)).absolute() / precision
            argv = [*EVERYTHING, f"--trainer.precision={precision}", f"--trainer.max_epochs={arguments.epochs}"]
            argv += arguments.options
            print(
                f"{precision}, {arguments.epochs} epochs, {arguments.kills} kills of seed {arguments.seed}", flush=True
            )
            try:
                whole, killed, found = soak(folder, argv, arguments.kills, arguments.seed, arguments.threads)
            except UserError as error:
                parser.error(str(error))
            for survived in killed.survived:
                print(f"  {_row(survived)}")
            for text in found:
                print(f"  DIFFERENT {text}")
            print(
                f"  kills survived: {len(killed.survived)}, {'NOT the same end' if found else 'the same end'}",
                flush=True,
            )
            results.append(
                {
                    "precision": precision,
                    "arguments": argv,
                    "kills": [asdict(survived) for survived in killed.survived],
                    "differences": found,
                    "seconds": {"whole": whole.seconds, "killed": killed.seconds},
                }
            )
    if arguments.output:
        facts = {
            "seed": arguments.seed,
            "trainings": results,
            "hardware": {**hardware(torch.device("cpu")), "threads": arguments.threads},
            "versions": versions(),
        }
        write_json(suffixed(arguments.output, ".json"), facts)
        write_text(suffixed(arguments.output, ".md"), _markdown(facts))
    return 1 if any(result["differences"] for result in results) else 0


def _markdown(facts: dict[str, Any]) -> str:
    lines = ["# A training killed at random moments", ""]
    lines += [f"By `benchmarks/kill_soak.py`, moments of seed {facts['seed']}, {facts['hardware']['cpu']}."]
    for result in facts["trainings"]:
        kills = [Survived(**kill) for kill in result["kills"]]
        same = "bit by bit the same end" if not result["differences"] else "NOT the same end"
        lines += ["", f"## {result['precision']}: {len(kills)} kills survived, {same}", ""]
        lines += ["| killed in step | while | went on from step | batches into its epoch |", "|---|---|---|---|"]
        lines += [f"| {kill.step} | {kill.phase} | {kill.resumed_step} | {kill.in_epoch} |" for kill in kills]
        lines += [f"\nDifferent: {text}" for text in result["differences"]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
