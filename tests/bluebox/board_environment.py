"""A Python 3.7 with PyTorch 1.1.0, which is what the board has run, and how it is called."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

PACKAGES = ("torch==1.1.0", "numpy")


def run(*command, **settings) -> subprocess.CompletedProcess:
    """Runs a command without what this Python's environment would tell the other."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, **settings)


def answers(*command) -> str | None:
    """What a command prints, or None if it fails."""
    try:
        result = run(*command, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def find_python37() -> str | None:
    candidates = [shutil.which("python3.7")]
    pyenv = answers("pyenv", "root") or os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv"
    candidates += sorted(Path(pyenv, "versions").glob("3.7*/bin/python"), reverse=True)
    # pyenv puts a python3.7 on the path that fails unless 3.7 is switched on, so that each is tried.
    for candidate in filter(None, candidates):
        if answers(candidate, "-c", "import sys; print(*sys.version_info[:2])") == "3 7":
            return str(candidate)
    return None


def make_board_python(folder: Path) -> Path:
    """The interpreter of an environment in ``folder``, made if need be; skips the test where it cannot be made."""
    python = folder / "bin" / "python"
    check = (python, "-c", "import numpy, sys, torch; print(*sys.version_info[:2], torch.__version__)")
    if answers(*check) == "3 7 1.1.0":
        return python
    base = find_python37()
    if base is None:
        pytest.skip("there is no Python 3.7, on the path or under pyenv")
    made = run(base, "-m", "venv", folder)
    if made.returncode:
        pytest.skip(f"no environment of Python 3.7 can be made: {(made.stdout + made.stderr).strip()[-300:]}")
    install = (python, "-m", "pip", "install", "--disable-pip-version-check", "--no-cache-dir", *PACKAGES)
    try:
        installed = run(*install, timeout=1800)
    except subprocess.TimeoutExpired:
        pytest.skip("PyTorch 1.1.0 could not be installed within half an hour")
    if installed.returncode:
        pytest.skip(f"PyTorch 1.1.0 cannot be installed: {installed.stderr.strip()[-300:]}")
    assert answers(*check) == "3 7 1.1.0"
    return python
