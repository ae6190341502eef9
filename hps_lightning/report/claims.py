"""What the paper's text derives from its tables, derived once more from the same tables."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import mean

from hps_lightning import paper
from hps_lightning.paper import PaperClaim, PaperResult
from hps_lightning.report.reproduction import variant_of

HOLDS = "holds"
ELSEWHERE = "holds in another sense"
FAILS = "does not hold"
OPEN = "cannot be checked"

_ACCURACIES, _ERRORS, _POINTS = "ratio of accuracies", "ratio of error rates", "percentage points"
_SIZES, _MEGABYTES, _RELATIVE = "ratio of sizes", "MB less", "percent of the baseline's accuracy"

_MEANINGS: dict[str, Callable[[PaperResult, PaperResult], float]] = {
    _ACCURACIES: lambda network, baseline: network.accuracy / baseline.accuracy,
    _ERRORS: lambda network, baseline: (100 - baseline.accuracy) / (100 - network.accuracy),
    _POINTS: lambda network, baseline: network.accuracy - baseline.accuracy,
    _RELATIVE: lambda network, baseline: 100 * (network.accuracy / baseline.accuracy - 1),
    _SIZES: lambda network, baseline: baseline.size_mb / network.size_mb,
    _MEGABYTES: lambda network, baseline: baseline.size_mb - network.size_mb,
}

# What a claim of a quantity in a unit says (first), and what else it may have meant.
_READ_AS: dict[tuple[str, str], tuple[str, ...]] = {
    ("accuracy", "times"): (_ACCURACIES, _ERRORS, _POINTS),
    ("accuracy", "points"): (_POINTS, _RELATIVE),
    ("size", "times"): (_SIZES,),
    ("size", "MB"): (_MEGABYTES,),
    ("any", "times"): (_ACCURACIES, _SIZES, _ERRORS, _POINTS),
}


@dataclass(frozen=True)
class Reading:
    """One way to understand a comparison.

    Attributes:
        meaning: in words.
        network: the row that is claimed to be better.
        baseline: the row that it is compared with.
        value: computed from the two.
        fits: whether it rounds to the claimed figure.
        literal: whether this is what the words say: their meaning, and a baseline that they name.
    """

    meaning: str
    network: PaperResult
    baseline: PaperResult
    value: float
    fits: bool
    literal: bool


@dataclass(frozen=True)
class CheckedClaim:
    """A claim with what the tables say of it.

    Attributes:
        claim: the paper's.
        verdict: :data:`HOLDS`, :data:`ELSEWHERE`, :data:`FAILS` or :data:`OPEN`.
        finding: why, in a sentence.
        readings: of a comparison, all that were tried; empty for other claims.
    """

    claim: PaperClaim
    verdict: str
    finding: str
    readings: tuple[Reading, ...] = ()


def check_claims() -> list[CheckedClaim]:
    """Every claim of ``paper.claims()``, checked."""
    return [check(claim) for claim in paper.claims()]


def check(claim: PaperClaim) -> CheckedClaim:
    """Derives a claim's figure from the tables."""
    special = {"together": _together, "range": _range, "drop": _drop, "count": _count}
    return special[claim.unit](claim) if claim.unit in special else _comparison(claim)


def rounds_to(value: float, printed: str) -> bool:
    """Whether a value is the printed figure, to the digits that are printed."""
    decimals = len(printed.partition(".")[2])
    return abs(value - float(printed)) <= 0.5 * 10**-decimals + 1e-9


def _find(name: str) -> list[PaperResult]:
    """The rows of CIFAR-10 that a model's or a family's name means, each model once."""
    rows = [row for row in paper.results() if row.dataset == "cifar10" and name in (row.model, row.family)]
    if not rows:
        raise LookupError(f"the paper's tables have no {name!r}")
    return list({row.model: row for row in reversed(rows)}.values())[::-1]


def _comparison(claim: PaperClaim) -> CheckedClaim:
    (network,) = _find(claim.network)
    own = _find(claim.baseline)
    # A sentence with several figures may have mixed their baselines up.
    same_sentence = [other.baseline for other in paper.claims() if other.quote == claim.quote]
    others = [row for name in dict.fromkeys(same_sentence) for row in _find(name) if row not in own]
    meanings = _READ_AS[claim.quantity, claim.unit]
    readings = tuple(
        Reading(
            meaning=meaning,
            network=network,
            baseline=baseline,
            value=value,
            fits=rounds_to(value, claim.claimed),
            literal=baseline in own and meaning == meanings[0],
        )
        for baseline in (*own, *others)
        for meaning in meanings
        if baseline.size_mb is not None or meaning not in (_SIZES, _MEGABYTES)
        for value in [_MEANINGS[meaning](network, baseline)]
    )
    fitting = [reading for reading in readings if reading.fits]
    if any(reading.literal for reading in fitting):
        verdict, finding = HOLDS, _values(reading for reading in fitting if reading.literal)
    elif any(reading.baseline in own for reading in fitting):
        verdict = ELSEWHERE
        ratio = _ratios(reading for reading in readings if reading.literal)
        finding = f"Only as {_values(reading for reading in fitting if reading.baseline in own)}. {ratio}"
    else:
        verdict, finding = FAILS, _values(reading for reading in readings if reading.literal)
        if fitting:
            finding += f". The figure is that of another network, {_values(fitting)}"
    if claim.unit == "times" and meanings[0] == _ACCURACIES:
        needed = float(claim.claimed) * min(row.accuracy for row in own)
        finding += f"; {claim.claimed} times would be {needed:,.0f} %" if needed > 100 else ""
    if claim.quantity == "size" and claim.unit == "times":
        finding += f". The network of {network.size_mb:g} MB has {network.accuracy:.2f} %"
    return CheckedClaim(claim, verdict, finding[0].upper() + finding[1:] + ".", readings)


def _ratios(readings: Iterable[Reading]) -> str:
    readings = list(readings)
    values = sorted({f"{reading.value:.2f}" for reading in readings}, key=float)
    return f"The {readings[0].meaning} is {' to '.join([values[0], *values[1:][-1:]])}"


def _values(readings: Iterable[Reading]) -> str:
    parts: dict[str, list[str]] = {}
    for reading in readings:
        parts.setdefault(reading.meaning, []).append(f"{reading.value:.4g} over {reading.baseline.model}")
    return "; ".join(f"{meaning}: {', '.join(values)}" for meaning, values in parts.items())


def _together(claim: PaperClaim) -> CheckedClaim:
    size, accuracy = float(claim.claimed), float(claim.second)
    rows = [row for row in paper.results() if row.dataset == "cifar10"]
    of_size = sorted({row.accuracy for row in rows if row.size_mb == size})
    of_accuracy = sorted({row.size_mb for row in rows if row.accuracy == accuracy and row.size_mb is not None})
    verdict = HOLDS if accuracy in of_size else FAILS
    return CheckedClaim(
        claim,
        verdict,
        f"What has {size:g} MB has {_listed(of_size, '.2f')} %; what has {accuracy:g} % has {_listed(of_accuracy)} MB.",
    )


def _listed(values: Iterable[float], format: str = "g") -> str:
    return " and ".join(f"{value:{format}}" for value in values) or "no"


_UNITS = {"accuracy": ("accuracy", "%"), "size": ("size_mb", "MB"), "seconds": ("seconds_per_epoch", "s")}


def _range(claim: PaperClaim) -> CheckedClaim:
    attribute, unit = _UNITS[claim.quantity]
    every = [row for row in paper.results() if row.family == claim.network]
    # The sentence names these two.
    scopes = {"Tables 1 and 2 print": [row for row in every if row.table in ("1", "2")], "with Table 3,": every}
    holds, parts = [], []
    for words, rows in scopes.items():
        low, high = (choose(rows, key=lambda row: getattr(row, attribute)) for choose in (min, max))
        least, greatest = getattr(low, attribute), getattr(high, attribute)
        inside = (not claim.claimed or least >= float(claim.claimed)) and greatest <= float(claim.second)
        # A size "ranges from" one printed figure to another; the others lie "between" or "under" round ones.
        exact = claim.quantity != "size" or (least, greatest) == (float(claim.claimed), float(claim.second))
        holds.append(inside and exact)
        parts.append(f"{words} {least:g} {unit} ({low.model}) to {greatest:g} {unit} ({high.model})")
    verdict = HOLDS if holds[0] else ELSEWHERE if holds[1] else FAILS
    return CheckedClaim(claim, verdict, f"{'; '.join(parts)}.")


def _drop(claim: PaperClaim) -> CheckedClaim:
    accuracies: dict[str, dict[str, float]] = {}
    for row in paper.results():
        if row.table != "text":
            accuracies.setdefault(variant_of(row).name, {})[row.dataset] = row.accuracy
    drops = [both["cifar10"] - both["cifar100"] for both in accuracies.values() if len(both) == 2]
    return CheckedClaim(
        claim,
        HOLDS if rounds_to(mean(drops), claim.claimed) else FAILS,
        f"{len(drops)} networks have a row in Tables 2 and 3; from CIFAR-10 to CIFAR-100 they lose "
        f"{min(drops):.2f} to {max(drops):.2f} points, {mean(drops):.2f} on average.",
    )


def _count(claim: PaperClaim) -> CheckedClaim:
    printed = {
        (variant_of(row).name, row.dataset)
        for row in paper.results()
        if row.table != "text" and row.family == claim.network
    }
    return CheckedClaim(
        claim,
        OPEN,
        f"The tables print {len(printed)} pairs of an HPS network and a data set; of the other experiments nothing is "
        "given.",
    )
