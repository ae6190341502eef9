import random

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from hps_lightning.data import augmentation
from hps_lightning.data.augmentation import Augmentation, cutout, random_crop, random_flip
from hps_lightning.errors import UserError

OFF = {"crop_padding": 0, "flip": False}
POLICIES = ["autoaugment", "randaugment", "trivialaugment", "augmix"]
EVERYTHING = {
    "cutout": 4,
    "random_erasing": 0.5,
    "color_jitter": 0.3,
    "policy": "randaugment",
    "mixup": 0.4,
    "cutmix": 1.0,
}


def _images(count=8, height=8, width=8, seed=0):
    # Never black, so that what padding, Cutout and erasing blacken is told apart.
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def _labels(count=8):
    return torch.arange(count) % 4


def _apply(seed=0, images=None, **arguments):
    images = _images() if images is None else images
    return Augmentation(**arguments)(images, _labels(len(images)), 4, seed)


@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 9)])
def test_crop_equals_one_image_at_a_time(padding, height, width, mode):
    images = _images(16, height, width)
    torch.manual_seed(3)
    cropped = random_crop(images, padding, mode)
    torch.manual_seed(3)
    tops, lefts = torch.randint(0, 2 * padding + 1, (2, 16))
    assert cropped.dtype == torch.uint8
    for image, crop, top, left in zip(images, cropped, tops, lefts, strict=True):
        padded = F.pad(image.float(), (padding,) * 4, mode).to(torch.uint8)
        assert torch.equal(crop, padded[:, top : top + height, left : left + width])


def test_crop_reaches_every_window_of_the_padded_image_and_no_other():
    image = _images(1)
    padded = F.pad(image[0], (1,) * 4)
    windows = [padded[:, top : top + 8, left : left + 8] for top in range(3) for left in range(3)]
    torch.manual_seed(0)
    seen = set()
    for crop in random_crop(image.expand(200, -1, -1, -1), 1):
        (index,) = [index for index, window in enumerate(windows) if torch.equal(window, crop)]
        seen.add(index)
    assert seen == set(range(9))


def test_flip_mirrors_an_image_wholly_or_not_at_all():
    images = _images(400)
    torch.manual_seed(0)
    flipped = 0
    for before, after in zip(images, random_flip(images), strict=True):
        mirrored = torch.equal(after, before.flip(2))
        assert mirrored != torch.equal(after, before)
        flipped += mirrored
    assert 150 < flipped < 250


@pytest.mark.parametrize("size", [1, 2, 5, 8, 30])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 9)])
def test_cutout_blackens_a_square_around_the_centre_it_draws(size, height, width):
    images = _images(32, height, width)
    torch.manual_seed(5)
    cut = cutout(images, size)
    torch.manual_seed(5)
    rows, columns = torch.randint(0, height, (32,)), torch.randint(0, width, (32,))
    for before, after, row, column in zip(images, cut, rows.tolist(), columns.tolist(), strict=True):
        expected = before.clone()
        top, left = row - size // 2, column - size // 2
        expected[:, max(0, top) : max(0, top + size), max(0, left) : max(0, left + size)] = 0
        assert torch.equal(after, expected)


def test_cutout_centres_reach_every_pixel():
    torch.manual_seed(0)
    cut = cutout(_images(1).expand(1000, -1, -1, -1), 1)
    assert ((cut == 0).all(1).sum(0) > 0).all()
    assert ((cut == 0).all(1).sum((1, 2)) == 1).all()


CHOICES = [
    {},
    {**OFF, "flip": True},
    {**OFF, "crop_padding": 2},
    {**OFF, "cutout": 3},
    {**OFF, "random_erasing": 0.7},
    {**OFF, "color_jitter": 0.5},
    {**OFF, "mixup": 1.0},
    {**OFF, "cutmix": 1.0},
    *[{**OFF, "policy": policy} for policy in POLICIES],
    EVERYTHING,
]


def _id(arguments):
    return "-".join(f"{name}={value}" for name, value in arguments.items() if OFF.get(name) != value) or "default"


@pytest.mark.parametrize("arguments", CHOICES, ids=_id)
def test_the_seed_decides_and_nothing_else_is_touched(arguments):
    images, labels = _images(16, 32, 32), _labels(16)
    augment = Augmentation(**arguments)
    results = []
    for outside, seed in ((1, 7), (2, 7), (1, 8)):
        torch.manual_seed(outside)
        random.seed(outside)
        np.random.seed(outside)
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        results.append(augment(images, labels, 4, seed))
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]
        assert np.random.get_state()[1].tolist() == states[2]
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], results[2][0])
    # The data set's own images and labels are as they were.
    assert torch.equal(images, _images(16, 32, 32))
    assert torch.equal(labels, _labels(16))
    assert results[0][0].shape == images.shape
    assert results[0][0].dtype == torch.uint8


def test_the_gpu_s_generators_are_left_alone(monkeypatch):
    # A batch made in the training's own process would otherwise decide the dropout of that step.
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    _apply()
    assert seeded == []


@pytest.mark.parametrize("seed", [0, 2**62 - 1])
def test_any_seed_of_the_sampler_is_taken(seed):
    assert _apply(seed)[0].shape == (8, 3, 8, 8)


def test_everything_off_changes_nothing():
    images, labels = _apply(**OFF)
    assert torch.equal(images, _images())
    assert torch.equal(labels, _labels())


def test_the_default_pads_by_4_and_flips():
    images = _images(1).expand(300, -1, -1, -1)
    augmented, _ = _apply(images=images)
    padded = F.pad(images[0], (4,) * 4)
    mirrored = padded.flip(2)
    seen = set()
    for after in augmented:
        seen |= {
            (flip, top, left)
            for flip, source in enumerate((padded, mirrored))
            for top in range(9)
            for left in range(9)
            if torch.equal(after, source[:, top : top + 8, left : left + 8])
        }
    # 300 draws of 162 windows miss few of them.
    assert len(seen) > 100
    assert {window[0] for window in seen} == {0, 1}


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_change_images_and_keep_labels(policy):
    images = _images(16, 32, 32)
    augmented, labels = _apply(images=images, policy=policy, **OFF)
    changed = [not torch.equal(before, after) for before, after in zip(images, augmented, strict=True)]
    assert sum(changed) > 8
    assert torch.equal(labels, _labels(16))


def test_augmix_draws_on_the_cpu_wherever_the_images_lie(monkeypatch):
    drawn = []

    def draw(params):
        drawn.append(params.device.type)
        return params

    monkeypatch.setattr(torch, "_sample_dirichlet", draw)
    # Stands for a GPU where there is none.
    with FakeTensorMode():
        given = augmentation._POLICIES["augmix"]()._sample_dirichlet(torch.ones(2, 3, device="cuda"))
    assert (drawn, given.device.type) == (["cpu"], "cuda")


def test_color_jitter_acts_image_by_image():
    augmented, _ = _apply(images=_images(1).expand(4, -1, -1, -1), color_jitter=0.5, **OFF)
    assert len({tuple(image.flatten().tolist()) for image in augmented}) == 4


def test_random_erasing_blackens_a_rectangle_of_some_images():
    augmented, _ = _apply(images=_images(200), random_erasing=0.5, **OFF)
    erased = (augmented == 0).all(1)
    touched = erased.flatten(1).any(1)
    assert 60 < touched.sum() < 140
    for mask in erased[touched]:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns)


def test_mixup_blends_images_and_labels_alike():
    images = _images(8, 8, 8)
    augmented, probabilities = _apply(images=images, mixup=1.0, **OFF)
    _check_probabilities(probabilities)
    share = probabilities[0, 0]
    # Each image is blended with the one before it.
    expected = share * images.float() + (1 - share) * images.roll(1, 0).float()
    assert (augmented.float() - expected).abs().max() <= 0.501


def test_cutmix_pastes_a_rectangle_and_shares_the_labels_by_its_area():
    images = _images(8, 16, 16)
    augmented, probabilities = _apply(images=images, cutmix=1.0, **OFF)
    _check_probabilities(probabilities)
    own = (augmented == images).all(1)
    other = (augmented == images.roll(1, 0)).all(1)
    assert (own | other).all()
    assert own[0].float().mean() == pytest.approx(probabilities[0, 0].item(), abs=1e-6)


def _check_probabilities(probabilities):
    assert probabilities.shape == (8, 4)
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities.sum(1), torch.ones(8))
    assert (probabilities >= 0).all()
    for row, own in zip(probabilities, _labels(), strict=True):
        assert set(row.nonzero().flatten().tolist()) <= {own.item(), (own.item() - 1) % 4}


def test_mixup_and_cutmix_together_take_turns():
    images = _images(8, 16, 16)
    pasted = []
    for seed in range(20):
        augmented, probabilities = _apply(seed, images=images, mixup=1.0, cutmix=1.0, **OFF)
        _check_probabilities(probabilities)
        pasted.append(bool(((augmented == images) | (augmented == images.roll(1, 0))).all()))
    assert len(set(pasted)) == 2


@pytest.mark.parametrize("count", [1, 3])
def test_small_batches_are_augmented_too(count):
    images, labels = _apply(images=_images(count, 32, 32), **EVERYTHING)
    assert images.shape == (count, 3, 32, 32)
    torch.testing.assert_close(labels.sum(1), torch.ones(count))


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("crop_padding", -1, "must not be negative, got -1"),
        ("cutout", -2, "must not be negative, got -2"),
        ("mixup", -0.1, "must not be negative, got -0.1"),
        ("cutmix", float("nan"), "must not be negative, got nan"),
        ("mixup", 5e-324, "must be 0, or at least 1e-06, got 5e-324"),
        ("cutmix", 1e-9, "must be 0, or at least 1e-06, got 1e-09"),
        ("crop_padding", 33, "must be at most 32, got 33"),
        ("random_erasing", 1.1, "must lie between 0 and 1, got 1.1"),
        ("color_jitter", -0.5, "must lie between 0 and 1, got -0.5"),
        ("policy", "augment", "must be one of autoaugment, .*got 'augment'"),
        ("padding_mode", "mirror", "must be one of constant, reflect, got 'mirror'"),
    ],
)
def test_mistakes_are_the_user_s(argument, value, message):
    with pytest.raises(UserError, match=f"augmentation.{argument} {message}"):
        Augmentation(**{argument: value})


def test_an_image_is_too_small_to_be_mirrored_by_its_whole_side():
    assert Augmentation(crop_padding=31, padding_mode="reflect")
    with pytest.raises(UserError, match=r"augmentation\.crop_padding must be at most 31 .* got 32"):
        Augmentation(crop_padding=32, padding_mode="reflect")


def test_mirrored_edges_leave_nothing_black():
    augmented, _ = _apply(images=_images(64, 32, 32), crop_padding=4, padding_mode="reflect", flip=False)
    assert (augmented > 0).all()
