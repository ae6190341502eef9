"""Trainings that a study is made of: each a run of `hps fit` of its own, several at a time."""

import json
import os
import shlex
import subprocess
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

FIGURES = ("train/loss", "train/accuracy", "val/loss", "val/accuracy")


@dataclass(frozen=True)
class Training:
    """One run of `hps fit`.

    Attributes:
        config: the config that it starts from.
        options: further options of `hps fit`, as typed in a shell.
        seed: of everything random.
        folder: where its run and its output go.
    """

    config: str
    options: str
    seed: int
    folder: Path

    def run(self, threads: int) -> dict[str, Any]:
        """The figures of the last epoch.

        Args:
            threads: of computation.

        Returns:
            ``seed``, ``seconds_per_epoch``, ``peak_bytes`` of the process, and :data:`FIGURES`.

        Raises:
            RuntimeError: `hps fit` failed, or did not validate.
        """
        command = ["hps", "fit", "--config", self.config, *shlex.split(self.options)]
        command += ["--seed_everything", str(self.seed), "--trainer.default_root_dir", str(self.folder)]
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "fit.log", "w", encoding="utf-8") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode
        if status:
            raise RuntimeError(f"{shlex.join(command)} failed; see {self.folder / 'fit.log'}")
        newest = max(self.folder.glob("**/benchmark.json"), key=lambda path: path.stat().st_mtime)
        facts = json.loads(newest.read_text(encoding="utf-8"))
        missing = [name for name in FIGURES if name not in facts["metrics"]["final"]]
        if missing:
            raise RuntimeError(
                f"{shlex.join(command)} has measured no {missing[0]}; a study compares on --data.protocol holdout"
            )
        return {
            "seed": self.seed,
            "seconds_per_epoch": facts["time"]["train_seconds"],
            "peak_bytes": facts["memory"]["process_peak_bytes"],
            **{name: facts["metrics"]["final"][name] for name in FIGURES},
        }


def threads_each(jobs: int) -> int:
    """How many threads each of several trainings at a time has."""
    # PyTorch's own count keeps to the cores that the caller has left us, and to OMP_NUM_THREADS.
    return max(1, torch.get_num_threads() // jobs)


def run_all(
    trainings: dict[Hashable, Training], jobs: int, finished: Callable[[Hashable, dict[str, Any]], None]
) -> None:
    """Runs trainings in their order, several at a time, since small networks leave a second core idle.

    Args:
        trainings: by a key of the caller's.
        jobs: how many share the cores.
        finished: told each training's key and figures, in the calling thread.

    Raises:
        RuntimeError: a training failed; those under way are finished and told first, no other is begun.
    """
    threads = threads_each(jobs)
    with ThreadPoolExecutor(jobs) as pool:
        under_way = {pool.submit(training.run, threads): key for key, training in trainings.items()}
        told = set()
        try:
            for done in as_completed(under_way):
                figures = done.result()
                told.add(done)
                finished(under_way[done], figures)
        except BaseException as error:
            # Else leaving the block would wait for all that has not begun, Ctrl+C or not.
            pool.shutdown(cancel_futures=True)
            if isinstance(error, RuntimeError):
                # What others have reached meanwhile is not lost with the one that failed.
                for other in under_way.keys() - told:
                    if not other.cancelled() and other.exception() is None:
                        finished(under_way[other], other.result())
            raise
