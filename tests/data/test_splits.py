import math

import pytest
import torch

from hps_lightning.data.splits import stratified_holdout
from hps_lightning.errors import UserError


def _labels(*counts, seed=0):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("counts", [(20, 20), (40, 10, 30), (100,), (7, 1, 13)])
def test_parts_are_disjoint_complete_sorted_and_stratified(counts, fraction):
    labels = _labels(*counts)
    parts = stratified_holdout(labels, fraction, seed=3)
    assert torch.equal(torch.cat([parts.train, parts.val]).sort().values, torch.arange(len(labels)))
    for part in (parts.train, parts.val):
        assert part.dtype == torch.int64
        assert (part.diff() > 0).all()
    held = torch.bincount(labels[parts.val], minlength=len(counts))
    assert held.tolist() == [round(count * fraction) for count in counts]


def test_the_seed_alone_decides():
    labels = _labels(50, 50)
    torch.manual_seed(1)
    first = stratified_holdout(labels, 0.2, seed=5)
    torch.manual_seed(2)
    second = stratified_holdout(labels, 0.2, seed=5)
    assert torch.equal(first.val, second.val)
    assert not torch.equal(first.val, stratified_holdout(labels, 0.2, seed=6).val)


def test_the_choice_is_the_same_on_every_machine():
    # Published figures rest on it: it must not change from release to release.
    labels = torch.arange(20) % 2
    assert stratified_holdout(labels, 0.2, seed=0).val.tolist() == [2, 7, 8, 19]


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    stratified_holdout(_labels(10, 10), 0.5, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_image_can_be_held_out():
    labels = _labels(6, 6)
    held = torch.cat([stratified_holdout(labels, 0.5, seed).val for seed in range(20)])
    assert set(held.tolist()) == set(range(12))


def test_classes_may_have_any_number():
    parts = stratified_holdout(torch.tensor([7, 7, 3, 3, 7, 3]), 1 / 3, seed=0)
    assert (len(parts.train), len(parts.val)) == (4, 2)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, math.nan, math.inf])
def test_a_fraction_outside_0_to_1_is_refused(fraction):
    with pytest.raises(UserError, match=f"val_fraction must lie between 0 and 1, got {fraction}"):
        stratified_holdout(_labels(10, 10), fraction, seed=0)


@pytest.mark.parametrize(("fraction", "message"), [(0.01, "20 to train and 0"), (0.99, "0 to train and 20")])
def test_a_fraction_that_leaves_one_side_empty_is_refused(fraction, message):
    with pytest.raises(UserError, match=f"val_fraction {fraction} of 20 images leaves {message}"):
        stratified_holdout(_labels(10, 10), fraction, seed=0)
