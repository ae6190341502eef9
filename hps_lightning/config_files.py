"""Configs: where they are found by name, and what each of them has to be like."""

import contextlib
import re
from pathlib import Path
from typing import Any

from hps_lightning.errors import UserError
from hps_lightning.installed import configs_folder
from hps_lightning.names import did_you_mean
from hps_lightning.yaml_files import read_yaml


def config_dirs() -> list[Path]:
    """The folders in which a config is looked up, in this order."""
    return [Path(), Path("configs"), configs_folder()]


def find_config(name: str) -> Path:
    """The config that ``name`` stands for: a path, or a name below one of :func:`config_dirs`.

    Raises:
        UserError: there is none; the message lists what there is.
    """
    names = [name] if name.endswith((".yaml", ".yml", ".json")) else [name, f"{name}.yaml"]
    for folder in config_dirs():
        for candidate in names:
            # A name may be too long, or no name at all.
            with contextlib.suppress(OSError, ValueError):
                if (folder / candidate).is_file():
                    return folder / candidate
    installed = config_dirs()[-1]
    known = sorted(path.relative_to(installed).as_posix() for path in installed.rglob("*.yaml"))
    raise UserError(
        f"There is no config {name!r:.200} in {Path.cwd()}, in its configs/, or among the installed ones."
        f"{did_you_mean(name, known)} Installed: {', '.join(known)}."
    )


def read_config(path: Path) -> dict[str, Any]:
    """What a config holds.

    Raises:
        UserError: it cannot be read, or holds something else than keys with values.
    """
    return checked_config(read_yaml(path), str(path))


def checked_config(content: Any, source: str) -> dict[str, Any]:
    """What was read from ``source``, if it can be a config.

    Raises:
        UserError: it holds something else than keys with values.
    """
    if not isinstance(content, dict):
        holds = "is empty" if content is None else f"holds {content!r:.60}"
        raise UserError(f"{source}: a config must hold keys with values, such as `model:`; it {holds}.")
    if "config" in content:
        raise UserError(
            f"{source}: a config has no `config`; give several, one after the other: --config A --config B."
        )
    bad = _bad_key(content)
    if bad is not None:
        raise UserError(f"{source}: a key must be a text without spaces, got {bad!r:.60}.")
    return content


def _bad_key(content: Any) -> Any:
    """The first key at any depth that is no name; None if there is none."""
    if isinstance(content, list):
        return next(filter(lambda bad: bad is not None, map(_bad_key, content)), None)
    if not isinstance(content, dict):
        return None
    for key, value in content.items():
        # The parser takes dots for levels.
        if not isinstance(key, str) or not all(key.split(".")) or re.search(r"\s", key):
            return str(key) if key is None else key
        bad = _bad_key(value)
        if bad is not None:
            return bad
    return None


def replaced_whole_by(content: dict[str, Any]) -> list[str]:
    """The entries that a config replaces whole, since it names their classes.

    jsonargparse keeps the arguments of the class before where both share a name: SGD's rate would become Adam's.
    """
    return [
        key
        for key in ("optimizer", "lr_scheduler")
        if isinstance(content.get(key), dict) and "class_path" in content[key]
    ]
