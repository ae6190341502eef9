"""Publishes a finished training: its last weights, what was measured, and the table of all.

    python benchmarks/publish.py runs/hps_06_05x-cifar10/version_0 --command "hps fit ..."
    python benchmarks/publish.py RUN_OF_SEED_0 RUN_OF_SEED_1 RUN_OF_SEED_2 --command "hps fit ..."
    python benchmarks/publish.py RUN_OF_SEED_3 --add
    python benchmarks/publish.py RUN --command "hps fit ..." --into benchmarks/results/NAME
    python benchmarks/publish.py --table

Of several runs, which may differ in their seed alone, the first is published, and the accuracy
of all is told. The last epoch counts, under the protocol "full": within a training nothing was chosen by an accuracy
on the test images, at which it is looked here. `--add` counts further seeds of what is
published already, whose network stays. `--into` keeps the same of a training that is
a result, but not a network that we recommend.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import yaml

from hps_lightning import zoo
from hps_lightning.callbacks.distillation import teacher_name
from hps_lightning.checkpoint import read_checkpoint, rebuilt, save_weights
from hps_lightning.data.batches import normalise
from hps_lightning.data.readers import load_images
from hps_lightning.errors import UserError
from hps_lightning.files import write_json, write_text
from hps_lightning.modules import CLASSIFIERS, RECORD_KEY

FOLDER = Path(__file__).parents[1] / "checkpoints"
FIXED = 1000
"""The first test images, on which the tests repeat the measurement."""

_MARK = "<!-- made by benchmarks/publish.py -->"


def right_answers(checkpoint: Path) -> torch.Tensor:
    """Whether each test image (N, bool) is classified correctly, in float32."""
    content = read_checkpoint(checkpoint)
    record, module = content[RECORD_KEY], rebuilt(checkpoint, content)
    test = load_images(record["dataset"], "test")
    with torch.inference_mode():
        predicted = [
            module(normalise(images, record["mean"], record["std"])).argmax(1) for images in test.images.split(500)
        ]
    return torch.cat(predicted) == test.labels


def _name(run: Path, source: Path) -> str:
    """NAME-DATASET, as the zoo calls the network.

    Raises:
        UserError: the zoo does not know it.
    """
    record = read_checkpoint(source)[RECORD_KEY]
    model = record["model"]
    family = next(key for key, value in CLASSIFIERS.items() if value.__name__ == model["class_path"])
    name = zoo.find_name(family, model["init_args"])
    if name is None:
        raise UserError(f"{run} trained a network without a name of its own in `hps models`; keep it by --into.")
    return f"{name}-{record['dataset']}"


def _finished(run: Path) -> Path:
    """The last checkpoint of a run that may be published.

    Raises:
        UserError: the training is not finished, or not of the protocol "full".
    """
    source = run / "checkpoints" / "last.ckpt"
    record = read_checkpoint(source)[RECORD_KEY]
    if record["protocol"] != "full":
        raise UserError(f"{source} was trained under the protocol {record['protocol']!r}; publish 'full' alone.")
    if record["epoch"] + 1 != record["max_epochs"]:
        raise UserError(f"{source} is at epoch {record['epoch'] + 1} of {record['max_epochs']}.")
    return source


def _config(run: Path) -> dict[str, Any]:
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    # Where the images lay, and where the run was kept, is of no use to anybody else.
    config["data"]["root"] = config["trainer"]["default_root_dir"] = None
    config["trainer"]["logger"] = None
    config["ckpt_path"] = None
    return config


def _training(config: dict[str, Any]) -> dict[str, Any]:
    """What the seeds of one training have in common: not the seed, nor what is written beside the training."""
    parts = ("model", "data", "optimizer", "lr_scheduler", "trainer", "init_weights")
    return {part: config.get(part) for part in parts}


def _teaching(source: Path) -> dict[str, Any] | None:
    """Who taught, by today's names; None without a teacher."""
    distillation = read_checkpoint(source)[RECORD_KEY].get("distillation")
    if distillation is None:
        return None
    teacher = distillation["teacher"]
    return {**distillation, "teacher": {**teacher, "name": teacher_name(teacher["model"])}}


def publish(runs: list[Path], command: str, into: Path | None = None) -> str:
    """Writes weights, facts and configuration of the first run; returns its name.

    Args:
        runs: folders of trainings.
        command: that made them.
        into: the folder for ``weights.ckpt``, ``benchmark.json`` and ``config.yaml``; by default they are published, as
            ``NAME-DATASET.ckpt``, ``.json`` and ``.yaml`` in ``checkpoints/``.

    Raises:
        UserError: a training is not finished, not of the protocol "full", differs from the
            first in more than its seed, or is of a network that has no name to be published by.
    """
    sources = [_finished(run) for run in runs]
    configs = [_config(run) for run in runs]
    for run, config in zip(runs, configs, strict=True):
        if _training(config) != _training(configs[0]):
            raise UserError(f"{run} differs from {runs[0]} in more than its seed; publish it by itself.")
    given = [config["seed_everything"] for config in configs]
    for run, seed in zip(runs, given, strict=True):
        if given.count(seed) > 1:
            raise UserError(f"{run} has the seed {seed}, as another run has; each seed counts once.")
    teachers = [_teaching(source) for source in sources]
    for run, teacher in zip(runs, teachers, strict=True):
        if teacher != teachers[0]:
            raise UserError(f"{run} had another teacher than {runs[0]}; publish it by itself.")
    if into is None:
        name = _name(runs[0], sources[0])
        weights, benchmark, written_config = (FOLDER / f"{name}{suffix}" for suffix in (".ckpt", ".json", ".yaml"))
    else:
        name = str(runs[0])
        weights, benchmark, written_config = (into / file for file in ("weights.ckpt", "benchmark.json", "config.yaml"))
    path = runs[0] / "benchmark.json"
    if not path.is_file():
        raise UserError(f"There is no {path}; what a training measured is written at its end.")
    facts = json.loads(path.read_text(encoding="utf-8"))
    # Measured first, so that nothing is replaced where the images are missing.
    right = [right_answers(source) for source in sources]
    # The single epochs stay with the run.
    del facts["epochs"]
    facts["command"] = command
    facts["distillation"] = teachers[0]
    facts["test"] = {
        "correct": int(right[0].sum()),
        "images": len(right[0]),
        "accuracy": float(right[0].float().mean()),
        "correct_of_first_1000": int(right[0][:FIXED].sum()),
    }
    facts["seeds"] = [
        {"seed": config["seed_everything"], "correct": int(of_seed.sum())}
        for of_seed, config in zip(right, configs, strict=True)
    ]
    weights.parent.mkdir(parents=True, exist_ok=True)
    save_weights(sources[0], weights)
    write_json(benchmark, facts)
    write_text(written_config, yaml.safe_dump(configs[0], sort_keys=False))
    return name


def add(runs: list[Path]) -> str:
    """Counts further seeds of a published network; returns its name.

    Args:
        runs: folders of trainings that differ from the published one in their seed alone.

    Raises:
        UserError: a training is not finished, not of the protocol "full", is counted already, or differs from the
            published one in more than its seed.
    """
    sources = [_finished(run) for run in runs]
    name = _name(runs[0], sources[0])
    benchmark, written_config = FOLDER / f"{name}.json", FOLDER / f"{name}.yaml"
    if not benchmark.is_file():
        raise UserError(f"{name} is not published yet; publish {runs[0]} first, with its --command.")
    facts = json.loads(benchmark.read_text(encoding="utf-8"))
    published = _training(yaml.safe_load(written_config.read_text(encoding="utf-8")))
    seeds = {seed["seed"] for seed in facts["seeds"]}
    for run, source in zip(runs, sources, strict=True):
        config = _config(run)
        if _training(config) != published:
            raise UserError(f"{run} differs from the published {name} in more than its seed.")
        if _teaching(source) != facts.get("distillation"):
            raise UserError(f"{run} had another teacher than the published {name}.")
        if config["seed_everything"] in seeds:
            raise UserError(f"The seed {config['seed_everything']} of {name} is counted already.")
        seeds.add(config["seed_everything"])
        facts["seeds"].append({"seed": config["seed_everything"], "correct": int(right_answers(source).sum())})
    write_json(benchmark, facts)
    return name


def _of_seeds(facts: dict[str, Any]) -> str:
    accuracies = [100 * seed["correct"] / facts["test"]["images"] for seed in facts["seeds"]]
    if len(accuracies) == 1:
        return "one seed"
    return f"{mean(accuracies):.2f} % ({min(accuracies):.2f} to {max(accuracies):.2f}, {len(accuracies)} seeds)"


def _taught(facts: dict[str, Any]) -> str:
    distillation = facts.get("distillation")
    return f", distilled from `{distillation['teacher']['name']}`" if distillation else ""


def _on(facts: dict[str, Any]) -> str:
    gpu = facts["hardware"].get("gpu")
    return f", {gpu}" if gpu else ""


def table() -> str:
    """The Markdown table of all published networks."""
    lines = [
        "| network | data set | test accuracy | mean of seeds | paper | parameters | state dict | epochs | training |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    commands = []
    for path in sorted(FOLDER.glob("*.json")):
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        name, dataset = path.stem.rsplit("-", 1)
        paper = zoo.find_variant(name).published(dataset)
        test = facts["test"]
        lines.append(
            f"| `{name}`{_taught(facts)} | {dataset} "
            f"| {100 * test['accuracy']:.2f} % ({test['correct']:,} of {test['images']:,}) "
            f"| {_of_seeds(facts)} | {f'{paper.accuracy:.2f} %' if paper else '-'} "
            f"| {facts['network']['parameters']:,} "
            f"| {facts['network']['state_dict_bytes'] / 1e3:.1f} kB | {facts['time']['epochs']} "
            f"| {facts['time']['total_seconds'] / 60:.0f} min{_on(facts)} |"
        )
        commands.append(f"- `{name}`, {dataset}: `{facts['command']}`")
    return "\n".join(
        [*lines, "", "Of several seeds the first is here, whatever its accuracy. To reproduce:", "", *commands]
    )


def write_table() -> None:
    """Puts the table into ``checkpoints/README.md``, between its two marks."""
    readme = FOLDER / "README.md"
    text = readme.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(_MARK)}.*{re.escape(_MARK)}", re.DOTALL)
    if not pattern.search(text):
        raise UserError(f"{readme} lacks the two lines {_MARK} between which the table belongs.")
    write_text(readme, pattern.sub(lambda _: f"{_MARK}\n\n{table()}\n\n{_MARK}", text))


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of finished trainings, runs/NAME/version_N")
    parser.add_argument("--command", help="the command that made it")
    parser.add_argument("--add", action="store_true", help="count them as further seeds of what is published")
    parser.add_argument("--into", type=Path, help="folder to keep it in, instead of publishing it")
    parser.add_argument("--table", action="store_true", help="only make the table anew")
    arguments = parser.parse_args()
    if arguments.add and (arguments.command or arguments.into or not arguments.runs):
        parser.error("--add takes runs alone")
    if not arguments.table and not arguments.add and not (arguments.runs and arguments.command):
        parser.error("give a run and its --command, or --add, or --table")
    try:
        if arguments.add:
            print(f"counted with {add(arguments.runs)}")
        elif not arguments.table:
            name = publish(arguments.runs, arguments.command, arguments.into)
            print(f"kept {name} in {arguments.into}" if arguments.into else f"published {name}")
        if not arguments.into:
            write_table()
    except UserError as error:
        print(f"publish: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
