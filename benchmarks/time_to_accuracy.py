"""How long it takes here to train a network to the paper's accuracy, beside the paper's recipe.

    python benchmarks/time_to_accuracy.py --model hps_06_05x --epochs 30 --output benchmarks/results/NAME.json

Trains by the network's `fast` config on all training images over a schedule of the given
length, and measures the test accuracy of its end. The time is that of the whole `hps fit`, from
typing the command to its last line. The paper's recipe takes 200 epochs of the reference loop
of `train_speed.py`, whose epoch time is measured here, before and after. Several lengths may be
given; the shortest that reaches the paper's accuracy with every seed counts.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

import torch
from train_speed import reference_rates

from hps_lightning import zoo
from hps_lightning.data import DATASETS
from hps_lightning.errors import UserError
from hps_lightning.files import write_json
from hps_lightning.machine import hardware, versions
from hps_lightning.precision import fast_precision

PAPER_EPOCHS = 200
RUNS = Path("runs/time_to_accuracy")


def _hps(log: Path, *arguments: str) -> str:
    """The output of an `hps` command, kept in a file."""
    with open(log, "w", encoding="utf-8") as file:
        status = subprocess.run(["hps", *arguments], stdout=file, stderr=subprocess.STDOUT).returncode
    text = log.read_text(encoding="utf-8")
    if status:
        raise UserError(f"hps {' '.join(arguments)} failed:\n{text[-2000:]}")
    return text


def train(config: str, epochs: int, seed: int, folder: Path) -> dict[str, Any]:
    """Trains over a schedule of ``epochs`` and tests its last state.

    Returns:
        ``seconds`` of the whole training command, ``accuracy`` on the test images (0 to 1).
    """
    folder.mkdir(parents=True)
    started = perf_counter()
    options = ["--trainer.max_epochs", str(epochs), "--seed_everything", str(seed)]
    options += ["--trainer.default_root_dir", str(folder), "--data.protocol", "full"]
    _hps(folder / "fit.log", "fit", "--config", config, *options)
    seconds = perf_counter() - started
    checkpoint = next(folder.glob("**/checkpoints/weights.ckpt"))
    text = _hps(folder / "test.log", "test", "--ckpt_path", str(checkpoint))
    correct, images = re.search(r"([\d,]+) of ([\d,]+)", text).groups()
    accuracy = int(correct.replace(",", "")) / int(images.replace(",", ""))
    return {"epochs": epochs, "seed": seed, "seconds": seconds, "accuracy": accuracy}


def _folder(model: str, epochs: int, seed: int) -> Path:
    return RUNS / f"{model}-{epochs}-{seed}"


def _check(arguments: argparse.Namespace) -> float:
    """Finds before hours of training what would spoil them; returns the paper's accuracy, 0 to 1.

    Raises:
        UserError: something would.
    """
    published = zoo.find_variant(arguments.model).published("cifar10")
    if published is None:
        raise UserError(f"the paper has no accuracy of {arguments.model} on CIFAR-10")
    if len(set(arguments.epochs)) < len(arguments.epochs):
        raise UserError(f"--epochs {' '.join(map(str, arguments.epochs))}: a length stands there twice")
    for epochs in arguments.epochs:
        for folder in (_folder(arguments.model, epochs, seed) for seed in range(arguments.seeds)):
            if folder.exists():
                raise UserError(f"{folder} holds an earlier training; remove it first")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    return published.accuracy / 100


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="hps_06_05x", help="a network of the zoo (default: %(default)s)")
    parser.add_argument("--config", help="default: fast/MODEL.yaml")
    parser.add_argument("--epochs", type=int, nargs="+", required=True, help="lengths of the schedule to try")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each length (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the figures")
    arguments = parser.parse_args()
    size = DATASETS["cifar10"].train_size
    trainings: list[dict[str, Any]] = []
    try:
        target = _check(arguments)
        rates = reference_rates(arguments.model)
        for epochs in arguments.epochs:
            for seed in range(arguments.seeds):
                folder = _folder(arguments.model, epochs, seed)
                training = train(arguments.config or f"fast/{arguments.model}.yaml", epochs, seed, folder)
                trainings.append(training)
                # Kept at once: the end may be hours away.
                write_json(arguments.output, {"trainings": trainings})
                print(
                    f"{epochs} epochs, seed {seed}: {100 * training['accuracy']:.2f} % (paper {100 * target:.2f} %) "
                    f"in {training['seconds'] / 60:.1f} min",
                    flush=True,
                )
        rates += reference_rates(arguments.model)
    except UserError as error:
        print(f"time_to_accuracy: error: {error}", file=sys.stderr)
        return 2
    paper_seconds = PAPER_EPOCHS * size / median(rates)
    facts: dict[str, Any] = {
        "model": arguments.model,
        "paper_accuracy": target,
        "reference": {"images_per_second": rates, "seconds_per_epoch": size / median(rates), "seconds": paper_seconds},
        "trainings": trainings,
        "precision": fast_precision("cpu"),
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
    }
    print(f"the paper's recipe: {PAPER_EPOCHS} epochs of {size / median(rates):.1f} s, {paper_seconds / 60:.1f} min")
    for epochs in sorted(arguments.epochs):
        group = [training for training in trainings if training["epochs"] == epochs]
        if all(training["accuracy"] >= target for training in group):
            seconds = mean(training["seconds"] for training in group)
            facts["shortest"] = {"epochs": epochs, "seconds": seconds, "ratio": paper_seconds / seconds}
            print(
                f"to {100 * target:.2f} %: {epochs} epochs, {seconds / 60:.1f} min, "
                f"{paper_seconds / seconds:.1f} times less"
            )
            break
    else:
        print(f"none of these lengths reaches {100 * target:.2f} % with every seed")
    write_json(arguments.output, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
