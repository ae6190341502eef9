"""What `make quickstart` promises: a trained network on images that need no download."""

import re

import pytest

from hps_lightning.cli import main


@pytest.mark.train
def test_the_offline_default_learns_the_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", "quickstart.yaml"]) == 0
    capsys.readouterr()
    assert main(["test", "--ckpt_path", "best"]) == 0
    right, total = map(int, re.search(r"\((\d+) of (\d+) images", capsys.readouterr().out).groups())
    assert total == 359
    assert right / total >= 0.97
