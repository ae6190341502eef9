"""Strategies that spoil what users write: configs, as values and as text, and command lines."""

import copy
import math
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

CONFIGS = Path(__file__).parents[1] / "configs"

VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    2**31,
    -(2**63),
    10**30,
    0.5,
    -0.0,
    1e-300,
    1e300,
    math.nan,
    math.inf,
    -math.inf,
    "",
    " ",
    "null",
    "nan",
    "1e3",
    "1_000",
    "0x10",
    "1:30",
    "yes",
    "ü",
    "\u202e\u0000",
    "🚀" * 20,
    "x" * 5000,
    "a.b",
    "os.system",
    "builtins.dict",
    "../../x",
    "/",
    "~",
    "[",
    "{",
    "]",
    "*a",
    "&a",
    "%",
    "${x}",
    "!!python/name:os.system",
    "2024-01-01",
    [],
    [[]],
    [None],
    [0, 1, 2, 3],
    [1, 1, 1, 1, 1],
    ["relu", 3, {}],
    {},
    {"a": 1},
    {"class_path": "X"},
    {"class_path": "torch.optim.Adam"},
    {"class_path": "MobileNetClassifier", "init_args": {"width": 0.1}},
    {"class_path": "EarlyStopping"},
    {"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss"}},
    {"class_path": ["a"], "init_args": 3},
    {"class_path": None},
    {"init_args": {"lr": 1}},
    {"low": 1, "high": 3},
    {"low": 3, "high": 1},
    {"low": 0, "high": 1, "log": True},
    {"low": 0.1, "high": 1e14, "step": 1e-9},
    {"low": -(10**400), "high": 1e308},
    {"each": [1, [2, 3]]},
    {"each": [{"each": [{"low": 1, "high": 2}]}]},
    {"SGD": {"optimizer.lr": [0.1, 0.2]}, None: {}},
]
"""What stands where something else should."""

NAMES = [
    "model",
    "data",
    "optimizer",
    "lr_scheduler",
    "trainer",
    "class_path",
    "init_args",
    "config",
    "fit",
    "subcommand",
    "seed_everything",
    "ckpt_path",
    "init_weights",
    "guards",
    "a.b.c",
    ".",
    "",
    "a b",
    "__class__",
    "self",
    "dict_kwargs",
    "help",
    "ü",
    "-",
    "--x",
    "callbacks",
    "logger",
    "devices",
    "precision",
    "augmentation",
    "space",
    "limits",
    "x" * 300,
]
"""What keys become."""


def read(name: str) -> Any:
    """One of our configs, as plain values."""
    return yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))


def _containers(value: Any) -> list[Any]:
    """A value's mappings and lists, itself included, that are not empty."""
    if not isinstance(value, dict | list) or not value:
        return []
    inner = value.values() if isinstance(value, dict) else value
    return [value, *(found for item in inner for found in _containers(item))]


def _misspelled(draw: st.DrawFn, name: str) -> str:
    position = draw(st.integers(0, max(0, len(name) - 1)))
    how = draw(st.sampled_from(["drop", "double", "upper", "swap", "append"]))
    head, letter, tail = name[:position], name[position : position + 1], name[position + 1 :]
    return {
        "drop": head + tail,
        "double": head + letter * 2 + tail,
        "upper": head + letter.upper() + tail,
        "swap": head + tail[:1] + letter + tail[1:],
        "append": f"{name}s",
    }[how]


@st.composite
def spoiled(draw: st.DrawFn, *contents: Any) -> Any:
    """One of ``contents``, with up to three things wrong in it."""
    content = copy.deepcopy(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(1, 3))):
        places = _containers(content)
        if not places:
            break
        place = draw(st.sampled_from(places))
        key = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
        how = draw(st.sampled_from(["value", "value", "value", "drop", "rename", "misspell", "wrap", "move", "add"]))
        if how == "value":
            place[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
        elif how == "drop":
            del place[key]
        elif how == "wrap":
            place[key] = draw(st.sampled_from([[place[key]], {"a": place[key]}, str(place[key])]))
        elif how == "move":
            place[key] = copy.deepcopy(draw(st.sampled_from(places)))
        elif isinstance(place, list):
            place.insert(key, copy.deepcopy(draw(st.sampled_from(VALUES))))
        elif how == "add":
            place[draw(st.sampled_from([*NAMES, None, 3, 0.5, True]))] = copy.deepcopy(draw(st.sampled_from(VALUES)))
        else:
            new = draw(st.sampled_from(NAMES)) if how == "rename" else _misspelled(draw, str(key))
            place[new] = place.pop(key)
    if draw(st.integers(0, 19)) == 0:
        content = draw(st.sampled_from(VALUES))
    return content


def written(content: Any) -> str:
    """Values as YAML, which has no anchors for what is there twice."""

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return yaml.dump(content, Dumper=Dumper, allow_unicode=True)


PIECES = [
    "\t",
    "- ",
    ": ",
    "\n",
    "  ",
    "{",
    "}",
    "[",
    "]",
    "&a ",
    "*a",
    "<<: *a",
    "!!python/object:os.system ",
    "!!binary x",
    "!x ",
    "? ",
    "|\n",
    ">\n",
    "---\n",
    "...",
    "%YAML 1.1\n",
    "#",
    "'",
    '"',
    "\\x",
    "0b_",
    "9" * 5000,
    "2024-01-01",
    "\ufeff",
    "\x00",
    "\u2028",
    "=",
    "~",
    "[" * 60,
    "é",
]
"""What is inserted into a text."""


@st.composite
def spoiled_text(draw: st.DrawFn, *texts: str) -> bytes:
    """One of ``texts`` in UTF-8, with lines or characters gone, doubled, or put in."""
    text = draw(st.sampled_from(texts))
    for _ in range(draw(st.integers(1, 4))):
        lines = text.splitlines(keepends=True) or [""]
        row = draw(st.integers(0, len(lines) - 1))
        column = draw(st.integers(0, len(lines[row])))
        how = draw(st.sampled_from(["insert", "insert", "double", "drop", "cut", "indent", "move"]))
        if how == "insert":
            lines[row] = lines[row][:column] + draw(st.sampled_from(PIECES)) + lines[row][column:]
        elif how == "double":
            lines.insert(row, lines[row])
        elif how == "drop":
            del lines[row]
        elif how == "cut":
            lines[row] = lines[row][column:]
        elif how == "indent":
            lines[row] = " " + lines[row]
        else:
            lines.insert(draw(st.integers(0, len(lines))), lines[row])
        text = "".join(lines)
    content = text.encode()
    if draw(st.integers(0, 9)) == 0:
        position = draw(st.integers(0, len(content)))
        content = content[:position] + draw(st.binary(min_size=1, max_size=4)) + content[position:]
    return content


@st.composite
def spoiled_line(draw: st.DrawFn, options: list[str], *lines: list[str]) -> list[str]:
    """One of ``lines``, each a list of arguments, with up to three things wrong in it.

    Args:
        draw: Hypothesis's.
        options: that may be put in, with their dashes.
        lines: of which one is spoiled.
    """
    tokens = list(draw(st.sampled_from(lines)))
    for _ in range(draw(st.integers(1, 3))):
        position = draw(st.integers(0, max(0, len(tokens) - 1)))
        how = draw(st.sampled_from(["add", "add", "add", "value", "misspell", "drop", "double", "alone"]))
        value = draw(st.sampled_from(VALUES))
        text = value if isinstance(value, str) else written(value).removesuffix("...\n").strip()
        if how == "add":
            tokens.insert(position, f"{draw(st.sampled_from(options))}={text}")
        elif how == "alone":
            tokens.insert(position, draw(st.sampled_from([*options, text, "-x", "--", "---", "-", "--=1"])))
        elif not tokens:
            continue
        elif how == "value":
            tokens[position] = f"{tokens[position].partition('=')[0]}={text}"
        elif how == "misspell":
            name, equals, rest = tokens[position].partition("=")
            tokens[position] = _misspelled(draw, name) + equals + rest
        elif how == "drop":
            del tokens[position]
        else:
            tokens.insert(position, tokens[position])
    # The shell passes no others.
    return [token.replace("\0", "") for token in tokens]
