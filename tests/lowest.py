"""Prints the lowest version of every dependency that setup.cfg claims, as constraints for pip: `make test-lowest`."""

import configparser
import re
from pathlib import Path

SETUP = Path(__file__).parents[1] / "setup.cfg"
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[[\w,]+\])?>=(?P<lowest>[\w.]+)[^;]*(?P<marker>;.*)?")


def constraints() -> list[str]:
    """Lines for pip, such as ``torch==2.9``, of the package's own dependencies and of those of its tests.

    Raises:
        ValueError: a dependency has no lower bound.
    """
    setup = configparser.ConfigParser()
    setup.read(SETUP, encoding="utf-8")
    extras = setup["options.extras_require"]
    lines = [setup["options"]["install_requires"], *(extras[name] for name in ("digits", "postgresql", "test"))]
    found = []
    for line in "\n".join(lines).splitlines():
        if not line.strip() or line.lstrip().startswith(("#", "%")):
            continue
        requirement = _REQUIREMENT.match(line.strip())
        if requirement is None:
            raise ValueError(f"{SETUP}: {line.strip()} has no lower bound")
        found.append(f"{requirement['name']}=={requirement['lowest']}{requirement['marker'] or ''}")
    return sorted(set(found))


if __name__ == "__main__":
    print("\n".join(constraints()))
