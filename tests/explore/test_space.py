import json

import optuna
import pytest
import yaml

from hps_lightning.errors import UserError
from hps_lightning.explore.space import Corner, Space

EVERYTHING = yaml.safe_load("""
model.stages: {each: [{low: 1, high: 2}, [1, 4], 1]}
model.width: {low: 0.25, high: 1.0, step: 0.05}
model.activation: [relu, elu]
data.augmentation.flip: [true, false]
optimizer:
  SGD:
    optimizer.lr: {low: 0.02, high: 0.5, log: true}
    optimizer.nesterov: [true, false]
  AdamW: {optimizer.lr: {low: 1e-4, high: 1e-2, log: true}}
lr_scheduler: [OneCycleLR, null]
""")


def trials(space, count=40):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    made = [study.ask() for _ in range(count)]
    return [(space.suggest(trial), trial.params) for trial in made]


def test_every_form_is_drawn_within_its_bounds():
    drawn = trials(Space.parse(EVERYTHING))
    for options, _ in drawn:
        first, second, third = options["model.stages"]
        assert first in (1, 2)
        assert second in (1, 4)
        assert third == 1
        assert 0.25 <= options["model.width"] <= 1
        assert options["model.width"] == round(options["model.width"] * 20) / 20
        json.dumps(options)
    for name, values in (("lr_scheduler", {"OneCycleLR", None}), ("data.augmentation.flip", {True, False})):
        assert {options[name] for options, _ in drawn} == values


def test_a_range_ends_at_its_last_step():
    # Of whose end Optuna would warn: 0.1 + 29 * 0.1 is a little more than 3.
    drawn = [options["x"] for options, _ in trials(Space.parse({"x": {"low": 0.1, "high": 3, "step": 0.1}}))]
    assert max(drawn) <= 3
    assert {round(value * 10) for value in drawn} <= set(range(1, 31))


def test_parameters_of_one_choice_belong_to_it_alone():
    for options, params in trials(Space.parse(EVERYTHING)):
        sgd = options["optimizer"] == "SGD"
        assert ("optimizer.nesterov" in options) == sgd
        assert 0.02 <= options["optimizer.lr"] <= 0.5 if sgd else 1e-4 <= options["optimizer.lr"] <= 1e-2
        assert ("SGD:optimizer.lr" in params) == sgd
        assert ("AdamW:optimizer.lr" in params) != sgd


def test_lists_are_choices_and_come_back_as_lists():
    space = Space.parse({"model.stages": [[1, 1, 1, 1], [1, 2, 2, 1]]})
    drawn = [options["model.stages"] for options, _ in trials(space)]
    assert [1, 1, 1, 1] in drawn
    assert [1, 2, 2, 1] in drawn
    assert space.count() == 2


def test_values_that_equal_each_other_in_python_are_told_apart():
    drawn = [options["x"] for options, _ in trials(Space.parse({"x": [1, True, 1.0]}))]
    assert {type(value) for value in drawn} == {int, bool, float}


def test_corner_is_the_largest_network():
    options = Space.parse(EVERYTHING).suggest(Corner())
    assert options["model.stages"] == [2, 4, 1]
    assert options["model.width"] == 1.0
    assert options["optimizer"] == "AdamW"
    assert options["optimizer.lr"] == 1e-2


def test_points_are_counted():
    assert Space.parse({"a": [1, 2], "b": {"low": 0.1, "high": 0.5, "step": 0.1}}).count() == 10
    assert Space.parse({"a": {"x": {"b": [1, 2]}, "y": None}}).count() == 3
    assert Space.parse(EVERYTHING).count() == float("inf")


@pytest.mark.parametrize(
    ("space", "parts"),
    [
        (None, ["nothing in it"]),
        ({}, ["nothing in it", "space:"]),
        ([1], ["nothing in it"]),
        ({"model.width": [0.5]}, ["one single point"]),
        ({"model.width": {"low": 1, "high": 1}}, ["one single point"]),
        ({"model.width": []}, ["model.width", "empty"]),
        ({"model.width": 0.5}, ["model.width", "0.5", "base: options:"]),
        ({"model.width": {"low": 1.0, "high": 0.5}}, ["model.width", "nothing from 1.0 to 0.5"]),
        ({"model.width": {"low": 0.0, "high": 0.5, "log": True}}, ["model.width", "above 0"]),
        ({"model.width": {"low": 0.1, "high": 0.5, "step": 0}}, ["model.width", "step"]),
        ({"model.width": {"low": 0.1}}, ["model.width", "low and high"]),
        ({"model.width": {"low": "few", "high": 2}}, ["model.width: low", "few"]),
        ({"model.width": {"low": 1, "high": 2, "steps": 1}}, ["model.width", "steps"]),
        ({"model.width": [0.5, 0.5]}, ["model.width", "twice"]),
        ({"model.stages": {"each": []}}, ["model.stages", "each"]),
        ({"optimizer": {"SGD": 3}}, ["optimizer", "SGD", "3"]),
        ({"--model.width": [1, 2]}, ["--model.width", "without dashes"]),
        ({1: [1, 2]}, ["without dashes", "1"]),
    ],
)
def test_a_space_that_cannot_be_used_is_refused(space, parts):
    with pytest.raises(UserError) as error:
        Space.parse(space)
    for part in parts:
        assert part in str(error.value)
