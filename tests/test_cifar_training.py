"""Two short epochs on the real CIFAR-10, by the commands that a user types."""

import re

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hps_lightning.cli import main
from hps_lightning.data.locate import find_dataset
from hps_lightning.errors import UserError

pytestmark = [pytest.mark.train, pytest.mark.cifar]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    try:
        find_dataset("cifar10", download=False)
    except UserError as error:
        pytest.skip(f"needs the real CIFAR-10: {error}")
    folder = tmp_path_factory.mktemp("training")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        arguments = ["--model=hps_06_05x", "--lr_scheduler=OneCycleLR", "--trainer.max_epochs=2"]
        arguments += ["--trainer.limit_train_batches=0.5"]
        assert main(["fit", "--config=hps.yaml", *arguments]) == 0
    return folder


def test_loss_falls_and_the_network_learns(trained):
    events = EventAccumulator(str(trained / "runs" / "hps_06_05x-cifar10" / "version_0"))
    events.Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert len(losses) == 2
    assert losses[1] < losses[0]
    assert events.Scalars("val/accuracy")[-1].value > 0.35


def test_the_test_command_measures_it_on_all_test_images(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    assert main(["test", "--ckpt_path", "best"]) == 0
    right, total = map(
        int, re.search(r"\(([\d,]+) of ([\d,]+) images", capsys.readouterr().out.replace(",", "")).groups()
    )
    assert total == 10_000
    assert right > 3_500


def test_validation_gives_back_what_training_reported(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    record = torch.load(next(trained.rglob("best.ckpt")), weights_only=True)["hps_lightning"]
    assert main(["validate", "--ckpt_path", "best"]) == 0
    out = capsys.readouterr().out.replace(",", "")
    right, total = map(int, re.search(r"\((\d+) of (\d+) images", out).groups())
    assert total == 5_000
    assert right == round(record["metrics"]["val/accuracy"] * total)
    assert "agrees" in out
