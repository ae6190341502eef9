"""Which trials are not worth their end.

Optuna's pruners compare one value, and refuse studies of several objectives. There a rule of our
own decides, ``dominated``: a trial stops at an epoch where some other trial beats it in everything
that is explored. Size, latency and the like are known from the start; the errors are compared at
the same epoch, and have to differ by a margin, since curves of different schedules cross. Both
have to be past a few epochs, which tell little. Such a trial could still reach a point that the
other does not dominate, by falling further in what is left; margin and first epochs are how sure
one wants to be.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner

PRUNERS = ("median", "hyperband", "dominated", "none")
"""The first two are Optuna's, for studies whose one objective is the error."""


@dataclass(frozen=True)
class Pruning:
    """When a trial is stopped early.

    Attributes:
        name: one of :data:`PRUNERS`.
        warmup_epochs: that every trial is granted.
        margin: of the error, from 0 to 1, that makes ``dominated`` sure.
    """

    name: str = "none"
    warmup_epochs: int = 2
    margin: float = 0.05

    def pruner(self) -> BasePruner:
        """Optuna's part of it."""
        if self.name == "median":
            return MedianPruner(n_startup_trials=5, n_warmup_steps=self.warmup_epochs)
        if self.name == "hyperband":
            return HyperbandPruner(min_resource=max(1, self.warmup_epochs))
        return NopPruner()


def dominated(
    costs: Mapping[str, float],
    curve: Mapping[int, float],
    others: Iterable[tuple[Mapping[str, float], Mapping[int, float]]],
    pruning: Pruning,
) -> bool:
    """Whether another trial beats one in everything so far; see the module.

    Args:
        costs: of the trial, by name, without the error: those that are objectives.
        curve: its error after each epoch, counted from 0.
        others: costs and curves of the others.
        pruning: the margin, and the epochs that go by first.
    """
    epoch = max(curve)
    if epoch < pruning.warmup_epochs:
        return False
    # The best so far, as Optuna's median rule takes it: one bad epoch stops nobody.
    error = min(curve.values())
    return any(
        epoch in other
        and error > other[epoch] + pruning.margin
        and all(their_costs[name] <= cost for name, cost in costs.items())
        for their_costs, other in others
        if costs.keys() <= their_costs.keys()
    )
