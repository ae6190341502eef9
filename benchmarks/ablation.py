"""What each part of a recipe is worth: one change at a time, short trainings, several seeds, on the hold-out.

    python benchmarks/ablation.py benchmarks/ablations/hps_06_05x.yaml --output benchmarks/results/ablation-hps_06_05x

The file names a config, the options of `hps fit` that all trainings share, and the changes,
each a name with the options that it adds. Every training is a run of `hps fit` of its own, kept
under `runs/`; what is finished is not trained again. The test images are never looked at.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

RUNS = Path("runs/ablation")
BASE = "as it is"


def train(config: str, options: str, folder: Path, seed: int) -> dict[str, Any]:
    """The figures of a training's last epoch.

    Raises:
        RuntimeError: `hps fit` failed.
    """
    found = next(folder.glob("**/benchmark.json"), None)
    if found is None:
        command = ["hps", "fit", "--config", config, *shlex.split(options)]
        command += ["--seed_everything", str(seed), "--trainer.default_root_dir", str(folder)]
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "fit.log", "w", encoding="utf-8") as log:
            if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode:
                raise RuntimeError(f"{shlex.join(command)} failed; see {folder / 'fit.log'}")
        found = next(folder.glob("**/benchmark.json"))
    facts = json.loads(found.read_text(encoding="utf-8"))
    figures = {name: facts["metrics"]["final"][name] for name in ("train/loss", "train/accuracy", "val/accuracy")}
    return {"seed": seed, "seconds_per_epoch": facts["time"]["train_seconds"], **figures}


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """The results as a Markdown table, the best change first."""

    def accuracy(name: str) -> float:
        return mean(run["val/accuracy"] for run in results[name])

    lines = [
        "| change | options | accuracy on the hold-out | difference | training accuracy |",
        "|---|---|---|---|---|",
    ]
    for name in sorted(results, key=accuracy, reverse=True):
        runs = results[name]
        each = ", ".join(f"{100 * run['val/accuracy']:.2f}" for run in runs)
        options = f"`{runs[0]['change']}`" if runs[0]["change"] else ""
        difference = "" if name == BASE else f"{100 * (accuracy(name) - accuracy(BASE)):+.2f}"
        trained = 100 * mean(run["train/accuracy"] for run in runs)
        lines.append(f"| {name} | {options} | {100 * accuracy(name):.2f} % ({each}) | {difference} | {trained:.2f} % |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, help="YAML file with config, base and changes")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each change (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="where to write the results, without extension")
    arguments = parser.parse_args()
    plan = yaml.safe_load(arguments.plan.read_text(encoding="utf-8"))
    results: dict[str, list[dict[str, Any]]] = {}
    # Seed by seed, so that an early end leaves every change with the same number.
    for seed in range(arguments.seeds):
        for name, change in {BASE: "", **plan["changes"]}.items():
            folder = RUNS / arguments.plan.stem / re.sub(r"\W+", "-", name) / f"seed_{seed}"
            try:
                run = train(plan["config"], f"{plan['base']} {change}", folder, seed)
            except RuntimeError as error:
                print(f"ablation: error: {error}", file=sys.stderr)
                return 1
            results.setdefault(name, []).append({**run, "change": change})
            print(f"seed {seed}  {name:40} {100 * run['val/accuracy']:.2f} %", flush=True)
            arguments.output.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            arguments.output.with_suffix(".md").write_text(table(results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
