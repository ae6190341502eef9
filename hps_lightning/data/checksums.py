"""What a data set's files must be: the SHA-256 that lies beside them, or in the name that they are stored under."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHECKSUMS_FILE = "SHA256SUMS"
"""Beside the files, as ``sha256sum`` writes it and ``sha256sum --check`` reads it."""

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def digest(path: Path, algorithm: Any) -> str:
    """The hexadecimal digest of a file.

    Args:
        path: of the file.
        algorithm: a fresh one of :mod:`hashlib`.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            algorithm.update(chunk)
    return algorithm.hexdigest()


def write_checksums(folder: Path, checksums: Mapping[str, str]) -> None:
    """Writes the SHA-256 of files beside them.

    Args:
        folder: that holds them.
        checksums: by file name.

    Raises:
        OSError: it cannot be written.
    """
    lines = [f"{checksum}  {name}\n" for name, checksum in checksums.items()]
    (folder / CHECKSUMS_FILE).write_text("".join(lines), encoding="utf-8")


def stated_sha256(path: Path) -> str | None:
    """The SHA-256 that a file is said to have, or None where nothing says so.

    The Hugging Face hub's cache stores each large file under its SHA-256 and links to it.

    Args:
        path: of the file.
    """
    try:
        text = (path.parent / CHECKSUMS_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match and match[2] == path.name:
            return match[1]
    stored = path.resolve().name
    return stored if path.is_symlink() and _SHA256.fullmatch(stored) else None
