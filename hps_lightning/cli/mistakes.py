"""What jsonargparse says of a mistake, in one line that names the value and the way out.

Its own messages tell of union types and namespaces, over many lines. What is understood here is the
wording of the versions that setup.cfg allows; anything else is passed on in its words.
"""

import argparse
import importlib
import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any

from jsonargparse import Namespace

from hps_lightning.cli.arguments import CLASSIFIER_NAMES
from hps_lightning.modules import CLASSIFIERS
from hps_lightning.names import LONGEST, did_you_mean, near, no_name, shown
from hps_lightning.optim import OPTIMIZERS, SCHEDULES

_LONGEST = 400
"""Characters of a message that is passed on."""

_LINKED = {"self", "params", "num_classes", "optimizer", "lr_scheduler"}
"""Arguments of classes that are set elsewhere."""

_EXPECTED = re.compile(r"Expected an? (?:<class '([^']+)'>|typing\.Literal\[([^\]]*)\]|([^\n]+?))(?=[.,\n]|$)")

_NO_CLASS = re.compile(
    r"module '.*' has no attribute|No module named|dot import path|correspond to|Not a valid subclass"
)

_BASES = re.compile(
    r"\n\s*- Problem with given class_path '[\w.]*\.(?:Callback|Logger)':.*?(?=\n\s*- |\n\s*Given value|\Z)", re.DOTALL
)
"""What jsonargparse says of arguments for the class that all callbacks, or loggers, are."""

_UNION = re.compile(r"\s*Does not validate against any of the Union subtypes")
_OWN_WORDS = re.compile(r"^\s*- (?!Expected |Not a valid |Problem with |a class path|a dict )(\S.*)$", re.MULTILINE)
"""What a class itself says against its arguments, where it is built."""

_USUAL = {
    "epochs": "trainer.max_epochs",
    "seed": "seed_everything",
    "gpus": "trainer.devices",
    "rate": "optimizer.lr",
    "learning_rate": "optimizer.lr",
    "scheduler": "lr_scheduler",
    "checkpoint": "ckpt_path",
    "resume": "ckpt_path",
}
"""What options are called in other programs."""

_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "complex": "a number",
    "bool": "true or false",
    "str": "a text",
    "NoneType": "null",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "datetime.timedelta": "a time such as 00:30:00",
}


def explain(message: str, options: Collection[str]) -> str:
    """A message of jsonargparse in one line.

    Args:
        message: of the exception that it raised.
        options: names of all options, without dashes.
    """
    known = {*options, *_class_options()}
    for pattern, answer in (
        (r"(?:[Uu]nrecognized arguments|ambiguous option): (\S+)", lambda found: _no_option(found[1], known)),
        (r"^Subcommand '\w+' does not accept option '([^']*)'", lambda found: _no_option(found[1], known)),
        (r"^Group '([^']*)' does not accept option '([^']*)'", lambda found: _no_option(_joined(found), known)),
        (r"^Option '([^']*)' is not accepted", lambda found: _no_option(found[1], known)),
        (r"argument (\S+): expected (?:one|at least one) argument", lambda found: f"{found[1]} needs a value."),
        (
            r'^Parser key "([^"]*)":\s*Unable to load config (.*?)(?:\n|$)',
            lambda found: f"{_plain(found[1])} must hold keys with values, got {found[2]:.{LONGEST}}.",
        ),
        (r"^Key must be a string, got: (.*?)\.?$", lambda found: f"A key must be a text, got {found[1]}."),
        (r"^Spaces not allowed in keys: (.*)$", lambda found: f"A key must not have spaces, got {found[1]}."),
        (r"^Empty nested key: (.*)$", lambda found: f"A key must not be empty between dots, got {found[1]}."),
        (r'^Linked "([^"]*)" must be given via "([^"]*)"', lambda found: f"{_plain(found[1])} follows {found[2]}."),
    ):
        found = re.search(pattern, message.strip().strip('"'))
        if found:
            return answer(found)
    # Where a callback is added to a list, jsonargparse tries the class of all of them besides, which has no arguments.
    others = _BASES.sub("", message)
    if others != message and "Problem with given class_path" not in others:
        return _unnamed(message)
    own = _UNION.match(others) and _OWN_WORDS.search(others)
    return passed_on(own[1]) if own else _value(others, "", None) or passed_on(message)


def _unnamed(message: str) -> str:
    """That an argument is given before the class whose it is."""
    found = re.search(r"""Parser key "([^"]*)".*?Option '([^']*)' is not accepted""", message, re.DOTALL)
    if found is None:
        return passed_on(message)
    add = f"--{found[1]}{'+' * found[1].endswith('callbacks')}=NAME"
    return f"{_plain(_joined(found))} belongs to a class that must be named before it: {add}."


def passed_on(message: str) -> str:
    """A message in its own words, in one line of bearable length."""
    return textwrap.shorten(" ".join(message.split()), _LONGEST, placeholder=" ...") or "it gave no further word"


def _near_option(name: str, known: Collection[str]) -> str | None:
    if name in _USUAL:
        return _USUAL[name]
    found = near(name, known, cutoff=0.75)
    if found:
        return found[0]
    # `max_epochs` for `trainer.max_epochs`.
    by_end: dict[str, str] = {}
    for candidate in sorted(known):
        by_end.setdefault(candidate.rpartition(".")[2], candidate)
    found = near(name.rpartition(".")[2], by_end, cutoff=0.75)
    return by_end[found[0]] if found else None


def missing_value(config: Mapping[str, Any], actions: Collection[argparse.Action]) -> str | None:
    """The first option that is null though it must have a value, in words; None if there is none.

    jsonargparse takes null for any type.

    Args:
        config: of a subcommand, as parsed.
        actions: of its parser.
    """
    if config.get("model") is None:
        return "There is no network to train: name one by --model NAME, or by `model:` in a config."
    classes = {action.dest for action in actions if hasattr(action, "_typehint")}
    for action in actions:
        group = action.dest.partition(".")[0]
        grouped = group not in {*classes, action.dest} and group in config
        if grouped and not isinstance(config.get(group), Namespace):
            return f"{group} must hold keys with values, got {shown(str(config.get(group)))}."
        if action.dest not in config:
            continue
        value = config.get(action.dest)
        hint = getattr(action, "_typehint", None)
        if value is None and action.default is not None and hint is not None and not _takes_null(hint):
            return f"{action.dest} must have a value, got null."
        for spec in value if isinstance(value, list) else [value]:
            found = _missing_argument(spec)
            if found:
                return f"{action.dest}: {found}"
    return None


def _missing_argument(spec: Any) -> str | None:
    if not isinstance(spec, Namespace) or not isinstance(spec.get("class_path"), str):
        return None
    found = _imported(spec.class_path)
    if not isinstance(spec.get("init_args"), Namespace) or found is None:
        return None
    parameters = inspect.signature(found).parameters
    for name, value in spec.init_args.items(nested=False, branches=True):
        if value is None and name in parameters and name not in _LINKED and parameters[name].default is not None:
            return f"{name} of {spec.class_path.rpartition('.')[2]} must have a value, got null."
    return None


def _takes_null(hint: Any) -> bool:
    return hint is Any or type(None) in typing.get_args(hint)


def _no_option(name: str, known: Collection[str]) -> str:
    typed = name.partition("=")[0] or name
    name = _plain(typed.lstrip("-"))
    meant = _near_option(name, known) if name else None
    hint = f"Did you mean {'--' * typed.startswith('-')}{meant}?" if meant else "`hps fit --help` lists them."
    return f"There is no option {_plain(typed):.{LONGEST}}. {hint}"


def _class_options() -> set[str]:
    options = {"optimizer.lr", "optimizer.momentum", "optimizer.weight_decay"}
    for key, classes in (("model", CLASSIFIERS.values()), ("lr_scheduler", SCHEDULES.values())):
        options |= {f"{key}.{name}" for found in classes for name in _parameters(found)}
    return options


def _parameters(found: Any) -> list[str]:
    try:
        names = inspect.signature(found).parameters
    except (TypeError, ValueError):
        return []
    return [name for name in names if name not in _LINKED]


def _value(message: str, key: str, of: str | None) -> str | None:
    """What is wrong with the value of a key; None where the words are not understood.

    Args:
        message: what remains of jsonargparse's.
        key: of the options, so far.
        of: the class whose argument it is, if it is one's.
    """
    inner = re.search(r'Parser key "([^"]*)"[^:\n]*:?\s*(.*)', message, re.DOTALL)
    if inner:
        return _value(inner[2], f"{key}.{inner[1]}".strip("."), of)
    inner = re.search(r"Problem with given class_path '([^']*)':\s*(.*)", message, re.DOTALL)
    if inner and inner[1] != of:
        return _value(inner[2], key, inner[1])
    found = re.search(r"Option '([^']*)' is not accepted", message)
    if found and of:
        if found[1] == "class_path":
            return f"{_plain(key)}: what stands beside class_path belongs into init_args."
        return _no_argument(of, found[1])
    if of and re.match(r"'\w+' object has no attribute 'keys'", message):
        return f"{_plain(key)}: init_args must hold the arguments of {of.rpartition('.')[2]} with their values."
    # The second is how versions before 4.48 say it.
    found = re.search(r"the following arguments are required: (\S.*)|Option '([^']*)' is required but", message)
    if found and of:
        return f"{of.rpartition('.')[2]} needs a value for {found[1] or found[2]}."
    expected = _expected(message)
    # A rate may be a tensor too, which nobody types.
    if key and expected and key not in _KINDS:
        return f"{_plain(key)} must be {expected}, got {_given(message)}."
    if _NO_CLASS.search(message):
        return _no_class(message, key, of)
    if key in _KINDS and expected == "null":
        return _no_class(message, key, of)
    return f"{_plain(key)} must be {expected}, got {_given(message)}." if key and expected else None


def _no_argument(of: str, name: str) -> str:
    names = _parameters(_imported(of))
    hint = did_you_mean(name, [*names, "class_path", "init_args"])
    short = of.rpartition(".")[2]
    return f"{short} has no argument {shown(name)}.{hint} It has {', '.join(names) or 'none'}."


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError):
        return None


def _no_class(message: str, key: str, of: str | None) -> str:
    dotted = re.search(r"dot import path string: (\S+)", message)
    path = re.search(r"Import path (\S+) does not correspond", message)
    name = of or (dotted and dotted[1]) or (path and path[1]) or _given(message, quoted=False)
    # A mapping without a class: a part of one was mistyped.
    if not of and (name.startswith(("{", "Namespace", "[")) or not name):
        return f"{_plain(key)} must name a class by class_path, and its arguments in init_args; got {shown(name)}."
    for start, (kind, known) in _KINDS.items():
        if key == start:
            return no_name(kind, name, known())
    where = f"{_plain(key)}: there" if key else "There"
    return f"{where} is no class {shown(name)} that can stand here."


def _callbacks() -> list[str]:
    from lightning.pytorch import callbacks

    ours = {"Distillation", "ProgressiveResolution"}
    return sorted({*callbacks.__all__} - {"Callback", "Checkpoint", "ProgressBar"} | ours)


def _loggers() -> list[str]:
    from lightning.pytorch import loggers

    return sorted({*loggers.__all__} - {"Logger"})


_KINDS: dict[str, tuple[str, Callable[[], Collection[str]]]] = {
    "model": ("network", lambda: list(CLASSIFIER_NAMES.values())),
    "optimizer": ("optimizer", lambda: list(OPTIMIZERS)),
    "lr_scheduler": ("learning rate schedule", lambda: list(SCHEDULES)),
    "trainer.callbacks": ("callback", _callbacks),
    "trainer.logger": ("logger", _loggers),
}


def _expected(message: str) -> str:
    """What a value may be, in words; empty where jsonargparse does not say."""
    words: list[str] = []
    for found in _EXPECTED.finditer(message):
        if found[2]:
            words.append(f"one of {found[2]}".replace("'", ""))
        else:
            name = found[1] or found[3]
            if name.startswith(("dot import", "path")):
                # Of a class, which may stand here too.
                continue
            words.append(_TYPES.get(name, f"a {name.rpartition('.')[2]}" if found[1] else name))
    words = list(dict.fromkeys(words))
    # Nobody types null by mistake.
    words = [word for word in words if word != "null"] or words
    return " or ".join(words)


def _given(message: str, quoted: bool = True) -> str:
    found = re.search(r"(?:Got|Given) value: (.*?)(?=\n\s*(?:- |Given value)|\Z)", message, re.DOTALL)
    value = found[1] if found else ""
    # What jsonargparse makes of a value for an argument of a class.
    nested = re.fullmatch(r"NestedArg\(key='[^']*', val=(['\"])(.*)\1\)", value.strip(), re.DOTALL)
    value = " ".join((nested[2] if nested else value).split())
    if not quoted:
        return value
    return "null" if value == "None" else shown(value)


def _joined(found: re.Match[str]) -> str:
    return f"{found[1]}.{found[2]}"


def _plain(key: str) -> str:
    """The key as the command line has it."""
    return key.replace(".init_args.", ".").replace(".init_args", "").replace(".class_path", "")
