"""A short one of the soak that kills a training at random moments; the long one's result is in benchmarks/results."""

import random

import pytest

from benchmarks.kill_soak import EVERYTHING, plan, soak
from hps_lightning.errors import UserError

# In float32 a third checkpoint an epoch, in bfloat16 too, but with fewer kills: each costs a process.
KILLS = {"32-true": 4, "bf16-mixed": 2}


@pytest.mark.train
@pytest.mark.parametrize("precision", KILLS)
def test_a_training_killed_at_random_moments_ends_as_one_left_in_peace(tmp_path, tally, precision):
    argv = [*EVERYTHING, f"--trainer.precision={precision}", "--trainer.max_epochs=2"]
    argv += ["--trainer.limit_train_batches=12", "--trainer.limit_val_batches=1"]
    _, killed, differences = soak(tmp_path, argv, KILLS[precision], seed=1)
    assert differences == []
    assert len(killed.survived) == KILLS[precision]
    assert any(kill.in_epoch for kill in killed.survived), "some went on in the middle of an epoch"
    tally("kills survived", len(killed.survived))


def test_kills_come_in_steps_of_their_own():
    kills = plan(12, steps=12, step_seconds=0.1, generator=random.Random(0))
    assert [kill.step for kill in kills] == list(range(12))
    with pytest.raises(UserError, match="--kills 13: the training has 12 steps"):
        plan(13, steps=12, step_seconds=0.1, generator=random.Random(0))
