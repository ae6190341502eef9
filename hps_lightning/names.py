"""Names that were typed, and those that were perhaps meant."""

import difflib
from collections.abc import Iterable

LONGEST = 80
"""Characters of a name or value that are shown."""


def shown(name: str) -> str:
    """``name`` between quotes, cut to a bearable length."""
    return repr(name if len(name) <= LONGEST else name[: LONGEST - 4] + " ...")


def near(name: str, known: Iterable[str], cutoff: float = 0.6, most: int = 1) -> list[str]:
    """The known names that are most like ``name``, whatever the capitals, the most alike first.

    Args:
        name: as typed.
        known: all that there are.
        cutoff: how much alike they have to be, 0 to 1.
        most: how many at the most.
    """
    by_lower = {candidate.lower(): candidate for candidate in sorted(known)}
    return [by_lower[found] for found in difflib.get_close_matches(name.lower(), by_lower, n=most, cutoff=cutoff)]


def did_you_mean(name: str, known: Iterable[str], most: int = 1) -> str:
    """A question after the names that :func:`near` finds, with a space before it; empty if it finds none."""
    meant = near(name, known, most=most)
    return f" Did you mean {' or '.join(meant)}?" if meant else ""


def no_name(kind: str, name: str, known: Iterable[str]) -> str:
    """That there is no such name, with the one that was perhaps meant, and all that there are.

    Args:
        kind: of thing that is named, such as "optimizer".
        name: as typed; of a class's path, its last part is compared.
        known: all that there are.
    """
    known = list(known)
    hint = did_you_mean(name.rpartition(".")[2], known)
    return f"There is no {kind} called {shown(name)}.{hint} Known: {', '.join(known)}."


def no_network(name: str, known: Iterable[str]) -> str:
    """As :func:`no_name`, of the networks, which are too many to name and near each other."""
    return f"There is no network called {shown(name)}.{did_you_mean(name, known, most=3)} `hps models` lists them."
