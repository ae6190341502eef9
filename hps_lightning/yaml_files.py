"""Reading YAML that anybody may have written: plain values or one clear error, whatever is in the file.

YAML lets a key stand twice, of which the last one silently counts; lets a text of a few lines stand for
gigabytes; and lets a value contain itself. None of that has a use in a config, so that none is let in.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hps_lightning.errors import UserError

LARGEST_FILE = 1_000_000
"""Bytes of the largest file that is read; the configs here have about a thousand."""

MOST_VALUES = 100_000
"""Values in a file, with everything that its anchors repeat."""

DEEPEST = 40
"""Levels of lists and mappings in each other; the deepest config here has 6."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads numbers as the parser of the command line does (1e-3 is one), and no dates."""


# Copies: yaml's own tables belong to all of a process.
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in ("timestamp", "float", "value")
    ]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
        r"|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def read_yaml(path: Path) -> Any:
    """The content of a file, in plain values.

    Raises:
        UserError: the file cannot be read, is no YAML, or holds what no config needs.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    if len(content) > LARGEST_FILE:
        raise UserError(f"{path} has more than {LARGEST_FILE:,} bytes, which is no config.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} is no text in UTF-8: the byte 0x{content[error.start]:02x} in line {line}.") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Any:
    """The values that a text of YAML stands for.

    Args:
        text: the YAML, or JSON, which is YAML too.
        source: what the text is, for messages.

    Raises:
        UserError: it is no YAML, or holds what no config needs.
    """
    try:
        check_structure(text, source)
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = " ".join(str(error.problem or error.context).split())
        problem = problem.replace("found unhashable key", "a list or mapping stands where a key should")
        tabs = mark is not None and "\t" in "".join(text.splitlines()[mark.line : mark.line + 1])
        hint = "; YAML is indented with spaces, not with tabs" if tabs else ""
        raise UserError(f"{source}{where}: this is not valid YAML: {problem}{hint}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{source}: this is not valid YAML: {' '.join(str(error).split())}.") from error
    except UnicodeError as error:
        raise UserError(f"{source}: this is no text in Unicode: {error}.") from error
    except ValueError as error:
        # A number of more digits than Python reads, or 0b without any.
        raise UserError(f"{source}: a number in it cannot be read: {error}.") from error


@dataclass
class _Open:
    """A list or mapping that has begun."""

    anchor: str | None
    mapping: bool
    keys: set[str] = field(default_factory=set)
    values: int = 1
    children: int = 0


def check_structure(text: str, source: str) -> None:
    """Refuses what no config needs, without building anything, which could take all memory.

    Args:
        text: YAML.
        source: what the text is, for messages.

    Raises:
        UserError: it has a key twice, tags, anchors without end, or far too much of anything.
        yaml.YAMLError: it is no YAML.
    """
    opened: list[_Open] = []
    sizes: dict[str, int] = {}

    def count(values: int, line: int) -> None:
        if opened:
            opened[-1].values += values
            opened[-1].children += 1
            values = opened[-1].values
        if values > MOST_VALUES:
            raise UserError(f"{source}, line {line}: more than {MOST_VALUES:,} values, which is no config.")

    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1
        if getattr(event, "tag", None) not in (None, "!"):
            raise UserError(f"{source}, line {line}: the tag {event.tag!r:.80} has no meaning here; leave it out.")
        is_key = bool(opened) and opened[-1].mapping and opened[-1].children % 2 == 0
        if isinstance(event, yaml.ScalarEvent):
            if is_key:
                if event.value in opened[-1].keys:
                    raise UserError(
                        f"{source}, line {line}: the key {event.value!r:.80} stands there twice; only one can count."
                    )
                opened[-1].keys.add(event.value)
            if event.anchor:
                sizes[event.anchor] = 1
            count(1, line)
        elif isinstance(event, yaml.AliasEvent):
            if any(event.anchor == one.anchor for one in opened):
                raise UserError(f"{source}, line {line}: *{event.anchor} stands within itself, without an end.")
            count(sizes.get(event.anchor, 1), line)
        elif isinstance(event, yaml.CollectionStartEvent):
            if len(opened) == DEEPEST:
                raise UserError(f"{source}, line {line}: more than {DEEPEST} levels, which is no config.")
            opened.append(_Open(event.anchor, isinstance(event, yaml.MappingStartEvent)))
        elif isinstance(event, yaml.CollectionEndEvent):
            done = opened.pop()
            if done.anchor:
                sizes[done.anchor] = done.values
            count(done.values, line)
