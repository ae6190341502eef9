"""Each optimizer at its best rate, under each schedule: the comparison that the paper describes and does not print.

    python benchmarks/optimizer_study.py benchmarks/optimizer_studies/hps_06_05x.yaml \
        --output benchmarks/results/optimizers-hps_06_05x

Trains in three rounds, all on the hold-out and over equal epochs: every optimizer with every rate
of its grid and beyond the grid's edge while the best lies there, one seed; at its best rate under
every schedule that suits it, all seeds; the best of all with the plan's changes. Every training is
a run of `hps fit` of its own, kept under `runs/`; what the output holds already is not trained
again, so that a study goes on where it stopped.
"""

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import yaml
from trainings import Training, run_all, threads_each

from hps_lightning.files import suffixed, write_json, write_text
from hps_lightning.machine import hardware, versions
from hps_lightning.report.plots import optimizers_figure, write_figure
from hps_lightning.report.studies import optimizer_study

RUNS = Path("runs/optimizers")
CONSTANT = "constant"
BEYOND = 3
"""How many rates are tried beyond a grid's edge at most."""
_SHARED = ("config", "network", "epochs", "base", "tuning_schedule")


@dataclass(frozen=True)
class Setting:
    """What a training is of.

    Attributes:
        optimizer: its name in the plan.
        rate: its learning rate.
        schedule: its name in the plan.
        change: name of the plan's change of the network, or "".
        seed: of everything random.
    """

    optimizer: str
    rate: float
    schedule: str
    change: str
    seed: int


class Study:
    """A plan and what has been trained of it.

    Args:
        plan: the YAML file's content.
        path: the JSON file of the results, which are taken up where it exists.
        jobs: trainings at a time.

    Raises:
        RuntimeError: the file is of a study whose trainings share something else.
    """

    def __init__(self, plan: dict[str, Any], path: Path, jobs: int = 1) -> None:
        self.plan = plan
        self.path = path
        self.jobs = jobs
        self.figures: dict[Setting, dict[str, Any]] = {}
        if not path.exists():
            return
        found = json.loads(path.read_text(encoding="utf-8"))
        if any(found.get(key) != plan[key] for key in _SHARED):
            raise RuntimeError(f"{path} is of another study; remove it, or give another --output")
        for run in found["runs"]:
            setting = Setting(**run["setting"])
            # A training whose options the plan no longer gives is of another study.
            if setting.optimizer in plan["optimizers"] and run["options"] == self.options(setting):
                self.figures[setting] = run["figures"]

    def options(self, setting: Setting) -> str:
        """The options of `hps fit` for a setting, but for its seed."""
        parts = (
            f"--model {self.plan['network']} --trainer.max_epochs {self.plan['epochs']}",
            self.plan["base"],
            self.plan["optimizers"][setting.optimizer]["options"],
            f"--optimizer.lr {setting.rate:g}",
            self.plan["schedules"].get(setting.schedule, ""),
            self.plan["changes"].get(setting.change, ""),
        )
        return " ".join(part for part in parts if part)

    def tuning_schedule(self, optimizer: str) -> str:
        """The schedule under which an optimizer's rate is tuned."""
        return CONSTANT if optimizer in self.plan["unscheduled"] else self.plan["tuning_schedule"]

    def accuracy(self, setting: Setting) -> float:
        """Accuracy of the last epoch on the hold-out; 0 where the training diverged."""
        accuracy = self.figures[setting]["val/accuracy"]
        # A benchmark.json has no value for what is not finite.
        loss = self.figures[setting]["train/loss"]
        return accuracy if loss is not None and math.isfinite(loss) else 0.0

    def rates(self, optimizer: str) -> list[float]:
        """The rates that an optimizer is tried with, as far as the results so far tell."""

        def accuracy(rate: float) -> float:
            return self.accuracy(self._tuning_setting(optimizer, rate))

        rates = sorted(float(rate) for rate in self.plan["optimizers"][optimizer]["rates"])
        for _ in range(BEYOND):
            if any(self._tuning_setting(optimizer, rate) not in self.figures for rate in rates):
                break
            best = max(rates, key=accuracy)
            if best == rates[-1]:
                rates.append(_rounded(rates[-1] ** 2 / rates[-2]))
            elif best == rates[0]:
                rates.insert(0, _rounded(rates[0] ** 2 / rates[1]))
            else:
                break
        return rates

    def _tuning_setting(self, optimizer: str, rate: float) -> Setting:
        return Setting(optimizer, rate, self.tuning_schedule(optimizer), "", self.plan["seeds"][0])

    def tuning(self) -> list[Setting]:
        """The first round: every optimizer with every rate."""
        return [self._tuning_setting(name, rate) for name in self.plan["optimizers"] for rate in self.rates(name)]

    def best_rate(self, optimizer: str) -> float:
        """The rate with which an optimizer did best in the first round, as far as it is trained."""
        tried = [one for one in self.tuning() if one.optimizer == optimizer and one in self.figures]
        return max(tried, key=self.accuracy).rate

    def comparison(self) -> list[Setting]:
        """The second round: every optimizer at its best rate, under every schedule that suits it."""
        begun = {setting.optimizer for setting in self.figures}
        rates = {name: self.best_rate(name) for name in self.plan["optimizers"] if name in begun}
        return [
            Setting(name, rates[name], schedule, "", seed)
            for seed in self.plan["seeds"]
            for name in rates
            for schedule in (self.plan["schedules"] if name not in self.plan["unscheduled"] else [CONSTANT])
        ]

    def changes(self) -> list[Setting]:
        """The third round: the best of the second as far as it is trained, with each change."""
        trained = [setting for setting in self.comparison() if setting in self.figures]
        best = max(trained, key=lambda setting: mean(self.over_seeds(setting)))
        return [
            Setting(best.optimizer, best.rate, best.schedule, change, seed)
            for seed in self.plan["seeds"]
            for change in ("", *self.plan["changes"])
        ]

    def same_but_for_seed(self, setting: Setting) -> list[Setting]:
        """A setting with each of the plan's seeds, as far as they are trained."""
        same = (replace(setting, seed=seed) for seed in self.plan["seeds"])
        return [one for one in same if one in self.figures]

    def over_seeds(self, setting: Setting) -> list[float]:
        """The accuracies of a setting over the plan's seeds, as far as they are trained."""
        return [self.accuracy(one) for one in self.same_but_for_seed(setting)]

    def train(self, wanted: Callable[[], list[Setting]]) -> None:
        """Trains what is not trained yet, and writes each result as it comes.

        Args:
            wanted: tells the settings; asked again afterwards, since results can ask for more.

        Raises:
            RuntimeError: a training failed.
        """
        while due := {setting: self._training(setting) for setting in wanted() if setting not in self.figures}:
            run_all(due, self.jobs, self._finished)

    def _training(self, setting: Setting) -> Training:
        words = (setting.optimizer, f"{setting.rate:g}", setting.schedule, setting.change, f"seed_{setting.seed}")
        folder = RUNS / "-".join(re.sub(r"[^\w.]+", "_", word) for word in words if word)
        # A rate that is too high is a result of the study, not its end.
        options = f"{self.options(setting)} --guards.non_finite ignore"
        return Training(self.plan["config"], options, setting.seed, folder)

    def _finished(self, setting: Setting, figures: dict[str, Any]) -> None:
        self.figures[setting] = figures
        self.write()
        where = f"{setting.optimizer} {setting.rate:g}, {setting.schedule}{setting.change and ', ' + setting.change}"
        print(f"seed {setting.seed}  {where:60} {100 * self.accuracy(setting):.2f} %", flush=True)

    def tuned(self) -> list[str]:
        """The optimizers of which all rates that are asked for are trained."""
        due = {setting.optimizer for setting in self.tuning() if setting not in self.figures}
        return [name for name in self.plan["optimizers"] if name not in due]

    def complete(self) -> bool:
        """Whether all three rounds are trained."""
        rounds = (self.tuning, self.comparison, self.changes)
        return all(setting in self.figures for settings in rounds for setting in settings())

    def write(self) -> None:
        """Writes what was found so far: the file that the study goes on from, tables and plot."""
        tuned = self.tuned()
        compared = [one for one in self.comparison() if one.optimizer in tuned and one.seed == self.plan["seeds"][0]]
        content = {key: self.plan[key] for key in _SHARED}
        machine = {**hardware(torch.device("cpu")), "threads": threads_each(self.jobs)}
        content |= {"versions": versions(), "hardware": machine}
        content["runs"] = [
            {"setting": asdict(one), "options": self.options(one), "figures": found}
            for one, found in self.figures.items()
        ]
        content["summary"] = {
            "network": self.plan["network"],
            "epochs": self.plan["epochs"],
            "complete": self.complete(),
            "trained": [
                {
                    "optimizer": one.optimizer,
                    "rate": one.rate,
                    "schedule": one.schedule,
                    "accuracies": accuracies,
                }
                for one in compared
                if (accuracies := self.over_seeds(one))
            ],
        }
        write_json(self.path, content)
        write_text(self.path.with_suffix(".md"), tables(self))
        trained = optimizer_study(self.path).trained
        if trained:
            write_figure(optimizers_figure(trained), self.path.with_suffix(".png"))


def _rounded(rate: float) -> float:
    return float(f"{rate:.1g}")


def _percent(accuracies: list[float]) -> str:
    if not accuracies:
        return ""
    spread = f" ± {100 * stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    return f"{100 * mean(accuracies):.2f}{spread}"


def tables(study: Study) -> str:
    """The three rounds as Markdown, as far as they are trained."""
    network, epochs = study.plan["network"], study.plan["epochs"]
    lines = [f"Accuracy of `{network}` on the hold-out in percent after the last of {epochs} epochs."]
    if not study.complete():
        lines[0] += f" The study is not finished: {len(study.figures)} trainings so far."
    lines += [
        "",
        f"Rates, one seed, under {study.plan['tuning_schedule']} (where no schedule suits, constant):",
        "",
        "| optimizer | rates and accuracies | best |",
        "|---|---|---|",
    ]
    tuned = study.tuned()
    for name in study.plan["optimizers"]:
        tried = [setting for setting in study.tuning() if setting.optimizer == name and setting in study.figures]
        each = ", ".join(f"{one.rate:g}: {100 * study.accuracy(one):.2f}" for one in tried)
        best = f"{study.best_rate(name):g}" if name in tuned else ""
        edge = ", at the edge of what was tried" if best in (f"{one.rate:g}" for one in tried[:1] + tried[-1:]) else ""
        lines.append(f"| {name} | {each} | {best}{edge} |")
    schedules = list(study.plan["schedules"])
    seeds = len(study.plan["seeds"])
    lines += ["", f"At the best rate, mean and deviation over {seeds} seeds (a figure alone: one):", ""]
    lines += [f"| optimizer | {' | '.join(schedules)} |", "|---" * (1 + len(schedules)) + "|"]
    first = study.plan["seeds"][0]
    for name in tuned:
        rate = study.best_rate(name)
        row = [_percent(study.over_seeds(Setting(name, rate, schedule, "", first))) for schedule in schedules]
        lines.append(f"| {name} | {' | '.join(row)} |")
    changed = study.changes()[: 1 + len(study.plan["changes"])]
    if any(setting not in study.figures for setting in changed):
        return "\n".join(lines) + "\n"
    best = changed[0]
    lines += ["", f"{best.optimizer}, {best.rate:g}, {best.schedule}:", ""]
    lines += ["| change | accuracy | peak memory of the process | seconds an epoch |", "|---|---|---|---|"]
    for setting in changed:
        found = [study.figures[one] for one in study.same_but_for_seed(setting)]
        lines.append(
            f"| {setting.change or 'as it is'} | {_percent(study.over_seeds(setting))} | "
            f"{mean(one['peak_bytes'] for one in found) / 1e6:.0f} MB | "
            f"{mean(one['seconds_per_epoch'] for one in found):.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, help="YAML file with optimizers, rates, schedules and changes")
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count(),
        help="trainings at a time, which share the cores (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, required=True, help="where to write the results, without extension")
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    try:
        plan = yaml.safe_load(arguments.plan.read_text(encoding="utf-8"))
        study = Study(plan, suffixed(arguments.output, ".json"), arguments.jobs)
        for settings in (study.tuning, study.comparison, study.changes):
            study.train(settings)
    except RuntimeError as error:
        print(f"optimizer_study: error: {error}", file=sys.stderr)
        return 1
    study.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
