import pytest
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner

from hps_lightning.explore.pruning import Pruning, dominated

RULE = Pruning("dominated", warmup_epochs=2, margin=0.05)
RIVAL = ({"size_bytes": 100, "latency_ms": 1.0}, {0: 0.5, 1: 0.4, 2: 0.3, 3: 0.2})


@pytest.mark.parametrize(
    ("costs", "curve", "worse"),
    [
        ({"size_bytes": 100, "latency_ms": 1.0}, {0: 0.9, 1: 0.8, 2: 0.4}, True),
        ({"size_bytes": 200, "latency_ms": 2.0}, {0: 0.9, 1: 0.8, 2: 0.4}, True),
        # Smaller, or faster, than the other.
        ({"size_bytes": 99, "latency_ms": 2.0}, {0: 0.9, 1: 0.8, 2: 0.4}, False),
        ({"size_bytes": 200, "latency_ms": 0.9}, {0: 0.9, 1: 0.8, 2: 0.4}, False),
        # Within the margin of what the other had at that epoch, if not of what it ended with.
        ({"size_bytes": 200, "latency_ms": 2.0}, {0: 0.9, 1: 0.8, 2: 0.34}, False),
        # One bad epoch.
        ({"size_bytes": 200, "latency_ms": 2.0}, {0: 0.9, 1: 0.31, 2: 0.9}, False),
        # The first epochs.
        ({"size_bytes": 200, "latency_ms": 2.0}, {0: 0.9, 1: 0.8}, False),
        # Longer than the other.
        ({"size_bytes": 200, "latency_ms": 2.0}, {0: 0.9, 4: 0.9}, False),
    ],
)
def test_a_trial_stops_where_another_beats_it_in_everything(costs, curve, worse):
    assert dominated(costs, curve, [RIVAL], RULE) is worse
    assert dominated(costs, curve, [], RULE) is False


def test_a_rival_whose_costs_are_unknown_beats_nobody():
    assert not dominated({"macs": 1}, {2: 0.9}, [RIVAL], RULE)


def test_optunas_pruners_are_made_by_name():
    kinds = {"median": MedianPruner, "hyperband": HyperbandPruner, "dominated": NopPruner, "none": NopPruner}
    for name, kind in kinds.items():
        assert type(Pruning(name).pruner()) is kind
