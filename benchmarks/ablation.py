"""What each part of a recipe is worth: one change at a time, short trainings, several seeds, on the hold-out.

    python benchmarks/ablation.py benchmarks/ablations/hps_06_05x.yaml --output benchmarks/results/ablation-hps_06_05x

The plan names a config, the options of `hps fit` that all trainings share (`base`), and the
changes, each a name with the options that it adds. Every training is a run of `hps fit` of its
own, kept under `runs/`; what the output holds already is not trained again, so that a study
goes on where it stopped. The test images are never looked at. Several train at a time, since
small networks leave a second core idle for much of a step.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from trainings import Training, run_all

from hps_lightning.files import suffixed, write_json, write_text
from hps_lightning.machine import versions

RUNS = Path("runs/ablation")
BASE = "as it is"


def page(plan: dict[str, Any], results: dict[str, dict[str, Any]]) -> str:
    """The results as Markdown: what was changed, and a table with the best change first."""

    def accuracy(name: str) -> float:
        return mean(run["val/accuracy"] for run in results[name]["runs"])

    def difference(name: str) -> float | None:
        """Over the seeds that both have: seeds differ by more than most changes."""
        unchanged, changed = (
            {run["seed"]: run["val/accuracy"] for run in results[one]["runs"]} if one in results else {}
            for one in (BASE, name)
        )
        both = unchanged.keys() & changed.keys()
        return mean(changed[seed] - unchanged[seed] for seed in both) if both else None

    lines = [
        f"Each change alone of `hps fit --config {plan['config']} {plan['base']}`; each seed's accuracy in brackets.",
        "",
        "| change | options | accuracy on the hold-out | difference | training accuracy |",
        "|---|---|---|---|---|",
    ]
    for name in sorted(results, key=accuracy, reverse=True):
        runs = results[name]["runs"]
        each = ", ".join(f"{100 * run['val/accuracy']:.2f}" for run in runs)
        options = f"`{results[name]['options']}`" if results[name]["options"] else ""
        gained = None if name == BASE else difference(name)
        written = "" if gained is None else f"{100 * gained:+.2f}"
        trained = 100 * mean(run["train/accuracy"] for run in runs)
        lines.append(f"| {name} | {options} | {100 * accuracy(name):.2f} % ({each}) | {written} | {trained:.2f} % |")
    return "\n".join(lines) + "\n"


def earlier_results(path: Path, head: dict[str, Any], changes: dict[str, str]) -> dict[str, dict[str, Any]]:
    """What an output file holds of the same study; changes that the plan has no more are left out.

    Raises:
        RuntimeError: it is of a study whose trainings share something else.
    """
    if not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    if {key: found.get(key) for key in ("config", "base")} != {key: head[key] for key in ("config", "base")}:
        raise RuntimeError(f"{path} is of another study; remove it, or give another --output")
    return {name: entry for name, entry in found["changes"].items() if entry["options"] == changes.get(name)}


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, help="YAML file with config, base and changes")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each change (default: %(default)s)")
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count(),
        help="trainings at a time, which share the cores (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, required=True, help="where to write the results, without extension")
    arguments = parser.parse_args()
    plan = yaml.safe_load(arguments.plan.read_text(encoding="utf-8"))
    changes = {BASE: "", **plan["changes"]}
    head = {"config": plan["config"], "base": plan["base"], "versions": versions()}
    output = suffixed(arguments.output, ".json")
    output.parent.mkdir(parents=True, exist_ok=True)

    def training(seed: int, name: str) -> Training:
        folder = RUNS / arguments.plan.stem / re.sub(r"\W+", "-", name) / f"seed_{seed}"
        return Training(plan["config"], f"{plan['base']} {changes[name]}", seed, folder)

    def finished(key: tuple[int, str], figures: dict[str, Any]) -> None:
        seed, name = key
        entry = results.setdefault(name, {"options": changes[name], "runs": []})
        entry["runs"] = sorted([*entry["runs"], figures], key=lambda one: one["seed"])
        print(f"seed {seed}  {name:40} {100 * figures['val/accuracy']:.2f} %", flush=True)
        write_json(output, {**head, "changes": results})

    try:
        results = earlier_results(output, head, changes)
        done = {(entry["seed"], name) for name in results for entry in results[name]["runs"]}
        # Seed by seed, so that an early end leaves the changes with the same number, but for one.
        planned = [(seed, name) for seed in range(arguments.seeds) for name in changes]
        run_all({key: training(*key) for key in planned if key not in done}, arguments.jobs, finished)
    except RuntimeError as error:
        print(f"ablation: error: {error}", file=sys.stderr)
        return 1
    write_text(suffixed(arguments.output, ".md"), page(plan, results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
