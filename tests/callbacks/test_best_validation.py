"""Tests of which validation counts as a training's best."""

from types import SimpleNamespace

import torch

from hps_lightning.callbacks.best_validation import BestValidation


def trained(accuracy, epoch, sanity_checking=False):
    metrics = {"val/accuracy": torch.tensor(accuracy), "val/loss": torch.tensor(1 - accuracy)}
    return SimpleNamespace(callback_metrics=metrics, current_epoch=epoch, sanity_checking=sanity_checking)


def test_keeps_the_first_of_the_highest():
    best = BestValidation()
    accuracies = [0.25, 0.75, 0.75, 0.5]
    assert [best.update(trained(accuracy, epoch)) for epoch, accuracy in enumerate(accuracies)] == [
        True,
        True,
        False,
        False,
    ]
    assert best == BestValidation(accuracy=0.75, loss=0.25, epoch=2)


def test_ignores_the_sanity_check():
    best = BestValidation()
    assert not best.update(trained(1.0, 0, sanity_checking=True))
    assert best.accuracy is None
