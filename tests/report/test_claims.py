import dataclasses

import pytest

from hps_lightning import paper
from hps_lightning.report.claims import ELSEWHERE, FAILS, HOLDS, OPEN, check, check_claims, rounds_to


def found(claimed, section="8. Conclusion"):
    (one,) = [one for one in check_claims() if one.claim.claimed == claimed and one.claim.section == section]
    return one


def test_fifteen_times_is_fifteen_points_over_squeezenet():
    claim = found("15")
    assert claim.verdict == ELSEWHERE
    values = {(r.baseline.model, r.meaning): r.value for r in claim.readings}
    assert values["Baseline SqueezeNet-v1.1", "percentage points"] == pytest.approx(14.95)
    assert values["Baseline SqueezeNet-v1.0", "ratio of accuracies"] == pytest.approx(92.5 / 79.59)
    assert values["Baseline SqueezeNet-v1.0", "ratio of error rates"] == pytest.approx(20.41 / 7.5)
    assert "14.95 over Baseline SqueezeNet-v1.1" in claim.finding
    # 15 times the lower of the two accuracies.
    assert "15 times would be 1,163 %" in claim.finding


def test_thirteen_times_fits_no_squeezenext_but_the_points_over_squeezenet():
    claim = found("13")
    assert claim.verdict == FAILS
    assert [(r.baseline.model, r.meaning) for r in claim.readings if r.fits] == [
        ("Baseline SqueezeNet-v1.0", "percentage points")
    ]


@pytest.mark.parametrize(("claimed", "ratio"), [("8", 3.013 / 0.37), ("7", 2.586 / 0.37)])
def test_eight_and_seven_times_smaller_hold_for_a_network_of_less_accuracy(claimed, ratio):
    claim = found(claimed)
    assert claim.verdict == HOLDS
    assert any(r.fits and r.value == pytest.approx(ratio) for r in claim.readings)
    assert "0.37 MB has 82.44 %" in claim.finding


def test_no_network_has_both_370_kb_and_92_percent():
    claim = found("0.37")
    assert claim.verdict == FAILS
    assert claim.finding == "What has 0.37 MB has 82.44 %; what has 92.05 % has 2.6 MB."


def test_a_difference_is_recomputed():
    wrong, right = found("3.35", "7.1.1"), found("2.02", "7.1.1")
    assert (wrong.verdict, right.verdict) == (FAILS, HOLDS)
    assert "5.35" in wrong.finding


def test_ranges_drops_and_counts():
    # 10.8 MB stand in Table 3, of which the sentence does not speak; so do 55.89 %.
    assert found("0.37", "7.1").verdict == ELSEWHERE
    assert "Tables 1 and 2 print 0.37 MB" in found("0.37", "7.1").finding
    assert "to 10.8 MB" in found("0.37", "7.1").finding
    assert found("70", "7.1").verdict == HOLDS
    assert "with Table 3, 55.89 %" in found("70", "7.1").finding
    assert found("", "7.1").verdict == FAILS
    assert "29 s" in found("", "7.1").finding
    assert found("500", "7.1").verdict == OPEN
    drop = found("20", "7.1.2")
    # (28.32 + 26.78 + 20.16 + 24.05) / 4
    assert drop.verdict == FAILS
    assert "24.83 on average" in drop.finding


def test_better_without_a_measure_is_tried_in_every_sense():
    claim = found("5", "7.2")
    assert claim.verdict == ELSEWHERE
    assert {r.meaning for r in claim.readings if r.fits} == {"ratio of sizes"}


def test_every_claim_ends_in_a_verdict():
    verdicts = [claim.verdict for claim in check_claims()]
    assert len(verdicts) == len(paper.claims())
    assert set(verdicts) == {HOLDS, ELSEWHERE, FAILS, OPEN}


def test_an_unknown_network_is_a_mistake_of_ours():
    claim = dataclasses.replace(found("15.8").claim, baseline="LeNet")
    with pytest.raises(LookupError, match="LeNet"):
        check(claim)


def test_rounding_goes_by_the_printed_digits():
    assert rounds_to(14.95, "15")
    assert not rounds_to(14.4, "15")
    assert rounds_to(3.354, "3.35")
    assert not rounds_to(3.36, "3.35")
