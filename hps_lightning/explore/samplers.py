"""What draws the next trial's parameters, seeded so that no two workers draw the same."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState


def _tpe(seed: int) -> BaseSampler:
    # Parameters of one choice alone (an optimizer's rate) make groups, each with a joint density.
    return TPESampler(seed=seed, multivariate=True, group=True)


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": _tpe,
    # Learns from trained trials alone, so that it wants limits that most networks meet.
    "nsgaii": lambda seed: NSGAIISampler(seed=seed, population_size=20),
    "random": lambda seed: RandomSampler(seed=seed),
}
"""Optuna's samplers, made with a seed."""


class SeededByTrial(BaseSampler):
    """A sampler that begins each trial with a seed made of the study's and the trial's number.

    Several workers with one seed would else draw the same parameters, and a study that was
    interrupted would draw others than one that was not. All that Optuna's samplers know of
    earlier trials they read from the study, so that a new one each time loses nothing.

    Args:
        name: one of :data:`SAMPLERS`.
        seed: the study's.
    """

    def __init__(self, name: str, seed: int) -> None:
        self._name = name
        self._seed = seed
        self._sampler = self._made(0)

    def _made(self, number: int) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return SAMPLERS[self._name](int(np.random.SeedSequence((self._seed, number)).generate_state(1)[0]))

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Begins with the trial's seed."""
        self._sampler = self._made(trial.number)
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As Optuna's."""
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As Optuna's."""
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As Optuna's."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """As Optuna's."""
        self._sampler.after_trial(study, trial, state, values)
