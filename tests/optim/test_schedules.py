import math

import pytest
import torch
from torch.optim import lr_scheduler

from hps_lightning.errors import UserError
from hps_lightning.optim import SCHEDULES, TrainingLength, build_schedule, schedule_class, spans_training
from hps_lightning.optim import schedules as module

LENGTH = TrainingLength(epochs=6, steps_per_epoch=5, validates=True)


def half_cosine(part):
    """From 1 at 0 to 0 at 1."""
    return (1 + math.cos(math.pi * part)) / 2


def triangle(step, up):
    """From 0 at 0 to 1 after ``up`` steps, back to 0, and so on."""
    return 1 - abs(step % (2 * up) - up) / up


def one_cycle(step, shape=half_cosine):
    # A fifth of 30 steps, of which the first is step 0; and the last of them is step 29.
    if step <= 5:
        return 1 + (1 / 25 - 1) * shape(step / 5)
    return 1 / 250_000 + (1 - 1 / 250_000) * shape((step - 5) / 24)


# Schedule, its arguments, when it steps, and the rate as a part of the optimizer's after so many steps of LENGTH.
CASES = [
    ("MultiStepLR", {"milestones": [4, 2]}, "epoch", lambda step: 0.2 ** ((step >= 10) + (step >= 20))),
    ("StepLR", {"step_size": 2}, "epoch", lambda step: 0.1 ** (step // 10)),
    ("ExponentialLR", {"gamma": 0.9}, "epoch", lambda step: 0.9 ** (step // 5)),
    ("CosineAnnealingLR", {}, "step", lambda step: half_cosine(step / 30)),
    ("CosineAnnealingLR", {"T_max": 10}, "step", lambda step: half_cosine(step / 50)),
    ("CosineAnnealingWarmRestarts", {"T_0": 2}, "step", lambda step: half_cosine(step % 10 / 10)),
    (
        "CosineAnnealingWarmRestarts",
        {"T_0": 1, "T_mult": 2},
        "step",
        lambda step: half_cosine(step / 5 if step < 5 else (step - 5) / 10 if step < 15 else (step - 15) / 20),
    ),
    ("CyclicLR", {"step_size_up": 1}, "step", lambda step: 0.1 + 0.9 * triangle(step, 5)),
    (
        "CyclicLR",
        {"step_size_up": 1, "mode": "triangular2"},
        "step",
        lambda step: 0.1 + 0.9 * triangle(step, 5) / 2 ** (step // 10),
    ),
    (
        "CyclicLR",
        {"step_size_up": 2, "mode": "exp_range", "gamma": 0.95},
        "step",
        lambda step: 0.1 + 0.9 * triangle(step, 10) * 0.95**step,
    ),
    ("OneCycleLR", {}, "step", one_cycle),
    ("OneCycleLR", {"anneal_strategy": "linear"}, "step", lambda step: one_cycle(step, lambda part: 1 - part)),
    # With a metric that never gets better: three bad epochs after the first are one too many.
    ("ReduceLROnPlateau", {"patience": 2}, "epoch", lambda step: 0.2 ** (step >= 20)),
]
IDS = ["-".join([name, *map(str, arguments.values())]) for name, arguments, _, _ in CASES]


def _optimizer(lr=0.1):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def _spec(name, **arguments):
    return {"class_path": name, "init_args": arguments}


def walk(optimizer, config, length, work=lambda: None):
    """The rate of each step of a training that steps ``config``'s scheduler when Lightning does."""
    rates = []
    for _ in range(length.epochs):
        for _ in range(length.steps_per_epoch):
            rates.append(optimizer.param_groups[0]["lr"])
            work()
            optimizer.step()
            if config["interval"] == "step":
                config["scheduler"].step()
        if config["interval"] == "epoch":
            config["scheduler"].step(*([1.0] if "monitor" in config else []))
    return rates


@pytest.mark.parametrize(("name", "arguments", "interval", "part"), CASES, ids=IDS)
def test_rates_follow_the_closed_form(name, arguments, interval, part):
    optimizer = _optimizer()
    config = build_schedule(optimizer, _spec(name, **arguments), LENGTH)
    assert type(config["scheduler"]) is getattr(lr_scheduler, name)
    assert config["interval"] == interval
    rates = walk(optimizer, config, LENGTH)
    assert rates == pytest.approx([0.1 * part(step) for step in range(30)], rel=1e-6, abs=1e-12)


def test_every_schedule_has_a_case():
    assert {name for name, *_ in CASES} == set(SCHEDULES)


@pytest.mark.parametrize("name", SCHEDULES)
def test_defaults_fit_the_paper_s_training(name):
    optimizer = _optimizer()
    config = build_schedule(optimizer, {"class_path": name}, TrainingLength(200, 2, True))
    rates = walk(optimizer, config, TrainingLength(200, 2, True))
    assert all(0 <= rate <= 0.1 + 1e-9 for rate in rates)
    assert len(set(rates)) > 1


def test_the_default_step_decay_is_that_of_the_public_baseline():
    optimizer = _optimizer()
    length = TrainingLength(200, 1, True)
    rates = walk(optimizer, build_schedule(optimizer, {"class_path": "MultiStepLR"}, length), length)
    for epoch, rate in ((0, 0.1), (59, 0.1), (60, 0.02), (119, 0.02), (120, 0.004), (160, 0.0008), (199, 0.0008)):
        assert rates[epoch] == pytest.approx(rate)


def test_eta_min_is_where_a_cosine_ends():
    optimizer = _optimizer()
    config = build_schedule(optimizer, _spec("CosineAnnealingLR", eta_min=0.01), LENGTH)
    walk(optimizer, config, LENGTH)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_cyclic_bounds_are_the_given_ones():
    optimizer = _optimizer()
    config = build_schedule(optimizer, _spec("CyclicLR", base_lr=0.002, max_lr=0.5, step_size_up=1), LENGTH)
    rates = walk(optimizer, config, LENGTH)
    assert (rates[0], rates[5], rates[10]) == pytest.approx((0.002, 0.5, 0.002))


def test_one_cycle_peaks_at_max_lr_and_ends_with_the_training():
    optimizer = _optimizer()
    config = build_schedule(
        optimizer, _spec("OneCycleLR", max_lr=0.4, pct_start=0.5, div_factor=4, final_div_factor=10), LENGTH
    )
    rates = walk(optimizer, config, LENGTH)
    assert (rates[0], max(rates), rates[14], rates[-1]) == pytest.approx((0.1, 0.4, 0.4, 0.01))


@pytest.mark.parametrize(("steps", "pct_start"), [(5, 0.2), (2, 0.5), (10, 0.1), (3, 0.2)])
def test_one_cycle_fits_into_the_shortest_trainings(steps, pct_start):
    length = TrainingLength(epochs=1, steps_per_epoch=steps, validates=True)
    optimizer = _optimizer()
    rates = walk(optimizer, build_schedule(optimizer, _spec("OneCycleLR", pct_start=pct_start), length), length)
    assert max(rates) > 0.1 / 25
    assert all(0 < rate <= 0.1 for rate in rates)


def test_schedules_that_cycle_leave_the_momentum_alone():
    for name in ("CyclicLR", "OneCycleLR"):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.7)
        walk(optimizer, build_schedule(optimizer, _spec(name), LENGTH), LENGTH)
        assert optimizer.param_groups[0]["momentum"] == 0.7


@pytest.mark.parametrize(
    ("arguments", "validates", "monitor"),
    [
        ({}, True, "val/loss"),
        ({}, False, "train/loss"),
        ({"monitor": "val/accuracy", "mode": "max"}, True, "val/accuracy"),
        ({"monitor": "train/accuracy", "mode": "max"}, False, "train/accuracy"),
    ],
)
def test_plateau_watches_what_there_is(arguments, validates, monitor):
    config = build_schedule(_optimizer(), _spec("ReduceLROnPlateau", **arguments), TrainingLength(6, 5, validates))
    assert config["monitor"] == monitor


def test_plateau_lets_go_on_while_the_metric_gets_better_and_stops_at_min_lr():
    optimizer = _optimizer()
    config = build_schedule(
        optimizer, _spec("ReduceLROnPlateau", mode="max", factor=0.1, patience=0, min_lr=0.005), LENGTH
    )
    rates = []
    for accuracy in (0.1, 0.2, 0.3, 0.3, 0.3, 0.3):
        config["scheduler"].step(accuracy)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.01, 0.005, 0.005])


def test_without_a_schedule_the_rate_is_constant():
    assert build_schedule(_optimizer(), None, LENGTH) is None


@pytest.mark.parametrize("name", ["StepLR", "hps_lightning.optim.schedules.StepLR"])
def test_a_schedule_goes_by_name_and_by_path(name):
    assert schedule_class(name) is module.StepLR


@pytest.mark.parametrize(
    "name", ["os.system", "torch.optim.lr_scheduler.LambdaLR", "hps_lightning.optim.LRSchedule", ""]
)
def test_other_classes_are_refused(name):
    with pytest.raises(UserError, match=f"no learning rate schedule called '{name}'.*Known: MultiStepLR, StepLR"):
        schedule_class(name)


def test_a_misspelt_name_is_corrected():
    with pytest.raises(UserError, match=r"'CosineAnealingLR'\. Did you mean CosineAnnealingLR"):
        schedule_class("CosineAnealingLR")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("MultiStepLR", {"gamma": 0}, "gamma must be greater than 0, got 0"),
        ("MultiStepLR", {"milestones": []}, "milestones must list at least one epoch"),
        ("MultiStepLR", {"milestones": [3, 0]}, "milestones must list at least one epoch, counted from 1, got"),
        ("CosineAnnealingLR", {"T_max": 10**30}, "T_max must be at most 1e"),
        ("CosineAnnealingLR", {"eta_min": math.nan}, "eta_min must be a rate of at least 0, got nan"),
        ("CosineAnnealingWarmRestarts", {"eta_min": -1.0}, "eta_min must be a rate of at least 0"),
        ("CyclicLR", {"gamma": 1e300, "mode": "exp_range"}, "gamma must be greater than 0 and at most 1"),
        ("OneCycleLR", {"max_lr": math.inf}, "max_lr must be at most 1e"),
        ("ReduceLROnPlateau", {"patience": -1}, "patience must not be negative, got -1"),
        ("StepLR", {"step_size": 0}, "step_size must be greater than 0, got 0"),
        ("StepLR", {"gamma": -0.5}, "gamma must be greater than 0, got -0.5"),
        ("ExponentialLR", {"gamma": math.nan}, "gamma must be greater than 0, got nan"),
        ("CosineAnnealingLR", {"T_max": 0}, "T_max must be greater than 0, got 0"),
        ("CosineAnnealingWarmRestarts", {"T_0": 0}, "T_0 must be greater than 0, got 0"),
        ("CosineAnnealingWarmRestarts", {"T_mult": 0}, "T_mult must be greater than 0, got 0"),
        ("CosineAnnealingWarmRestarts", {"T_mult": 1.5}, "1.5"),
        ("CyclicLR", {"base_lr": 0.5}, "base_lr 0.5 is greater than max_lr 0.1"),
        ("CyclicLR", {"max_lr": -1.0}, "max_lr must be greater than 0, got -1.0"),
        ("CyclicLR", {"step_size_up": 0}, "step_size_up must be greater than 0, got 0"),
        ("CyclicLR", {"mode": "square"}, "mode"),
        ("OneCycleLR", {"pct_start": 1.0}, "pct_start must lie between 0 and 1, got 1.0"),
        ("OneCycleLR", {"div_factor": 0}, "div_factor must be greater than 0, got 0"),
        ("OneCycleLR", {"final_div_factor": -1}, "final_div_factor must be greater than 0, got -1"),
        ("OneCycleLR", {"anneal_strategy": "square"}, "square"),
        ("OneCycleLR", {"max_lr": -1.0}, "max_lr must be greater than 0, got -1.0"),
        ("ReduceLROnPlateau", {"factor": 1.0}, "factor must lie between 0 and 1, got 1.0"),
        ("ReduceLROnPlateau", {"mode": "most"}, "most"),
        ("StepLR", {"gama": 0.1}, "StepLR cannot be made with .*gama"),
    ],
)
def test_mistakes_are_the_user_s(name, arguments, message):
    with pytest.raises(UserError, match=message):
        build_schedule(_optimizer(), _spec(name, **arguments), LENGTH)


def test_plateau_cannot_watch_a_validation_that_there_is_not():
    with pytest.raises(UserError, match="has no val/accuracy"):
        build_schedule(
            _optimizer(), _spec("ReduceLROnPlateau", monitor="val/accuracy"), TrainingLength(6, 5, validates=False)
        )


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_spans_the_training_if_a_longer_one_changes_its_rates(name):
    rates = []
    for epochs in (6, 12):
        optimizer = _optimizer()
        config = build_schedule(optimizer, _spec(name), TrainingLength(epochs, 5, validates=True))
        rates.append(walk(optimizer, config, LENGTH))
    assert spans_training(_spec(name)) == (rates[0] != rates[1])


def test_a_cosine_of_a_given_length_does_not_span_the_training():
    assert not spans_training(_spec("CosineAnnealingLR", T_max=6))


def test_the_length_counts_steps():
    assert LENGTH.steps == 30
    assert TrainingLength(6, 5, validates=True, max_steps=7).steps == 7
    assert TrainingLength(6, 5, validates=True, max_steps=31).steps == 30
