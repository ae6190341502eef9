"""Publishes a finished training: its last weights, what was measured, and the table of all.

    python benchmarks/publish.py runs/hps_06_05x-cifar10/version_0 --command "hps fit ..."
    python benchmarks/publish.py --table

The last epoch counts, under the protocol "full": nothing was chosen by an accuracy on the test
images, which are looked at here for the first time.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from hps_lightning import zoo
from hps_lightning.checkpoint import load_classifier, read_checkpoint, save_weights
from hps_lightning.cli.runs import run_of
from hps_lightning.data.batches import normalise
from hps_lightning.data.readers import load_images
from hps_lightning.errors import UserError
from hps_lightning.modules import RECORD_KEY

FOLDER = Path(__file__).parents[1] / "checkpoints"
FIXED = 1000
"""The first test images, on which the tests repeat the measurement."""

_MARK = "<!-- made by benchmarks/publish.py -->"


def right_answers(checkpoint: Path) -> torch.Tensor:
    """Whether each test image (N, bool) is classified correctly, in float32."""
    record = read_checkpoint(checkpoint)[RECORD_KEY]
    module = load_classifier(checkpoint)
    test = load_images(record["dataset"], "test")
    with torch.inference_mode():
        predicted = [
            module(normalise(images, record["mean"], record["std"])).argmax(1) for images in test.images.split(500)
        ]
    return torch.cat(predicted) == test.labels


def publish(run: Path, command: str) -> str:
    """Writes ``NAME-DATASET.ckpt``, ``.json`` and ``.yaml`` into ``checkpoints/``; returns the name.

    Raises:
        UserError: the training is not finished, or not of the protocol "full".
    """
    source = run / "checkpoints" / "last.ckpt"
    record = read_checkpoint(source)[RECORD_KEY]
    if record["protocol"] != "full":
        raise UserError(f"{source} was trained under the protocol {record['protocol']!r}; publish 'full' alone.")
    if record["epoch"] + 1 != record["max_epochs"]:
        raise UserError(f"{source} is at epoch {record['epoch'] + 1} of {record['max_epochs']}.")
    name = run_of(source).name
    target = FOLDER / f"{name}.ckpt"
    save_weights(source, target)
    right = right_answers(target)
    facts = json.loads((run / "benchmark.json").read_text(encoding="utf-8"))
    # The single epochs stay with the run.
    del facts["epochs"]
    facts["command"] = command
    facts["test"] = {
        "correct": int(right.sum()),
        "images": len(right),
        "accuracy": float(right.float().mean()),
        "correct_of_first_1000": int(right[:FIXED].sum()),
    }
    target.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    config["data"]["root"] = None
    target.with_suffix(".yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return name


def table() -> str:
    """The Markdown table of all published networks."""
    lines = [
        "| network | data set | test accuracy | paper | parameters | state dict | epochs | training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    commands = []
    for path in sorted(FOLDER.glob("*.json")):
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        name, dataset = path.stem.rsplit("-", 1)
        paper = zoo.find_variant(name).published(dataset)
        test = facts["test"]
        lines.append(
            f"| `{name}` | {dataset} | {100 * test['accuracy']:.2f} % ({test['correct']:,} of {test['images']:,}) "
            f"| {f'{paper.accuracy:.2f} %' if paper else '-'} | {facts['network']['parameters']:,} "
            f"| {facts['network']['state_dict_bytes'] / 1e3:.1f} kB | {facts['time']['epochs']} "
            f"| {facts['time']['total_seconds'] / 60:.0f} min |"
        )
        commands.append(f"- `{name}`, {dataset}: `{facts['command']}`")
    return "\n".join([*lines, "", "One seed each. To reproduce:", "", *commands])


def write_table() -> None:
    """Puts the table into ``checkpoints/README.md``, between its two marks."""
    readme = FOLDER / "README.md"
    text = readme.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(_MARK)}.*{re.escape(_MARK)}", re.DOTALL)
    if not pattern.search(text):
        raise UserError(f"{readme} lacks the two lines {_MARK} between which the table belongs.")
    readme.write_text(pattern.sub(lambda _: f"{_MARK}\n\n{table()}\n\n{_MARK}", text), encoding="utf-8")


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="folder of a finished training, runs/NAME/version_N")
    parser.add_argument("--command", help="the command that made it")
    parser.add_argument("--table", action="store_true", help="only make the table anew")
    arguments = parser.parse_args()
    if not arguments.table and not (arguments.run and arguments.command):
        parser.error("give a run and its --command, or --table")
    try:
        if not arguments.table:
            print(f"published {publish(arguments.run, arguments.command)}")
        write_table()
    except UserError as error:
        print(f"publish: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
