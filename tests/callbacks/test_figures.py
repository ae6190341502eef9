"""Tests of the pictures of what a network answers."""

import itertools
import sys

import numpy as np
import pytest
import torch

from hps_lightning.callbacks.figures import confusion_figure, denormalise, render, samples_figure, superclass_counts
from hps_lightning.data.batches import normalise


def test_few_classes_are_numbered():
    counts = torch.tensor([[8, 2, 0], [0, 0, 0], [1, 0, 9]])
    figure = confusion_figure(counts, ["a$b$", "c_d", "e"], "title")
    axes = figure.axes[0]
    written = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    # Positions are (column, row).
    assert written == {(0, 0): "8", (1, 0): "2", (0, 2): "1", (2, 2): "9"}
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.8, 0.2, 0], [0, 0, 0], [0.1, 0, 0.9]], rtol=1e-6)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a$b$", "c_d", "e"]
    assert render(figure).dtype == np.uint8


def test_many_classes_are_named_without_overlap():
    names = [f"aquarium_fish_{index}" for index in range(100)]
    figure = confusion_figure(torch.eye(100, dtype=torch.int64), names, "title")
    pixels = render(figure)
    axes = figure.axes[0]
    assert not axes.texts
    assert [label.get_text() for label in axes.get_xticklabels()] == names
    rows = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(not upper.overlaps(lower) for upper, lower in itertools.pairwise(rows))
    columns = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert all(not left.overlaps(right) for left, right in itertools.pairwise(columns))
    assert min(box.x0 for box in rows) >= 0
    assert min(box.y0 for box in columns) >= 0
    assert pixels.shape[:2] == (1900, 2000)


def test_samples_tell_right_from_wrong_without_colour():
    probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2]])
    figure = samples_figure(torch.rand(2, 3, 32, 32), torch.tensor([0, 1]), probabilities, ["cat", "dog"], "title")
    right, wrong = figure.axes[:2]
    assert right.get_xlabel().strip() == "✓ cat 90 %"
    assert wrong.get_xlabel() == "✗ cat 80 %\ntrue: dog"
    assert right.spines["left"].get_linestyle() != wrong.spines["left"].get_linestyle()
    # A missing glyph would be warned of, and warnings are errors.
    assert render(figure).ndim == 3


@pytest.mark.parametrize("count", [1, 5, 16, 25])
def test_samples_of_any_number(count):
    probabilities = torch.rand(count, 4).softmax(1)
    labels = torch.zeros(count, dtype=torch.int64)
    figure = samples_figure(torch.rand(count, 3, 32, 32), labels, probabilities, list("abcd"), "title")
    assert sum(bool(axes.images) for axes in figure.axes) == count
    assert render(figure).shape[2] == 3


def test_figures_do_not_pass_through_pyplot():
    render(confusion_figure(torch.eye(3, dtype=torch.int64), list("abc"), "title"))
    helpers = sys.modules.get("matplotlib._pylab_helpers")
    assert helpers is None or not helpers.Gcf.figs


def test_superclasses_are_sums():
    counts = torch.arange(16).reshape(4, 4)
    superclass_of = (1, 0, 1, 0)
    expected = torch.zeros(2, 2, dtype=torch.int64)
    for true in range(4):
        for predicted in range(4):
            expected[superclass_of[true], superclass_of[predicted]] += counts[true, predicted]
    assert torch.equal(superclass_counts(counts, superclass_of), expected)


def test_denormalise_undoes_normalise():
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    torch.testing.assert_close(denormalise(normalise(images, mean, std), mean, std), images / 255)
