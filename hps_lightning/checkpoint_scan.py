"""What a checkpoint may hold, looked at before PyTorch unpickles anything of it.

PyTorch's weights-only mode executes nothing either. This is narrower: its list of harmless names
grows with the libraries that are imported, and it takes any amount of memory that a file asks for.
Of that this limits what archives and texts ask for; a small file of lists that are copied again and
again still takes some hundred times its size.
"""

import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NAMES = re.compile(
    r"collections (OrderedDict|Counter)|builtins (set|complex)|__builtin__ (set|complex)|_codecs encode"
    r"|torch (\w+Storage|Size|device|b?float\d*|double|half|u?int\d+|long|bool)|torch\.storage UntypedStorage"
    r"|torch\.nn\.parameter Parameter|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
)
"""What a state of weights, optimizers, schedules and callbacks names, as "module name"."""

# These name something by other ways, and no training of ours writes them.
_OTHER_WAYS = frozenset({"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"})

# Of characters; a training of HPS-21-1x-v3 comes to a two-hundredth.
_MOST_COPIED = 2**26

_DEEPEST = 12
_MOST_VALUES = 20_000
_LONGEST = 100_000


def false_size(path: Path) -> str | None:
    """Says how a checkpoint would take more memory than its file has bytes; None where it would not.

    Args:
        path: of the checkpoint. A file that is no archive is not judged here.
    """
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    # The third one is what zipfile raises of an archive of a newer version, or in parts.
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError):
        return None
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            return f"{member.filename} in it is compressed, which no training does"
    claimed = sum(member.file_size for member in members)
    return f"it claims to hold {claimed:,} bytes, and has {size:,}" if claimed > size else None


def foreign_name(path: Path) -> str | None:
    """Says what a checkpoint names beside weights and plain values; None where there is nothing.

    Args:
        path: of an archive of PyTorch's.
    """
    with zipfile.ZipFile(path) as archive:
        # PyTorch finds a member whatever its letters' case.
        pickles = [archive.read(member) for member in archive.infolist() if member.filename.lower().endswith(".pkl")]
    return next(filter(None, map(_foreign_name, pickles)), None)


def _foreign_name(pickled: bytes) -> str | None:
    longest, calls = 0, 0
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            longest = max(longest, len(argument) if isinstance(argument, str | bytes) else 0)
            calls += opcode.name == "REDUCE"
            # A call takes ten bytes, and may copy a text that is as large as the file.
            if calls * longest > _MOST_COPIED:
                return "it would take much more memory than it has bytes"
            if opcode.name in _OTHER_WAYS:
                return f"it names things in a way that no checkpoint does ({opcode.name})"
            if opcode.name == "GLOBAL" and not _NAMES.fullmatch(argument):
                return f"it names {argument.replace(' ', '.')!r}, which is no part of weights"
    except (ValueError, UnicodeDecodeError):
        # Not to be read to its end, which PyTorch will say too.
        pass
    return None


def unplain(value: Any) -> str | None:
    """Says what keeps a value from being numbers, texts, lists and mappings of a moderate size; None if it is plain."""
    # Not by recursion: a list may hold itself.
    waiting = [(value, 0)]
    seen = 0
    while waiting:
        item, depth = waiting.pop()
        seen += 1
        if depth > _DEEPEST or seen > _MOST_VALUES:
            return "it is nested too deeply or too large"
        if isinstance(item, Mapping):
            if not all(isinstance(key, str | int) for key in item):
                return "a key that is no text"
            waiting += [(inner, depth + 1) for inner in item.values()]
        elif isinstance(item, list | tuple):
            waiting += [(inner, depth + 1) for inner in item]
        elif isinstance(item, str):
            if len(item) > _LONGEST:
                return f"a text of {len(item):,} characters"
        elif item is not None and not isinstance(item, bool | int | float):
            return f"a {type(item).__name__}"
    return None
