"""Compiles the C++ kernels for this machine's processor, once, and loads them."""

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import stat
import subprocess
from pathlib import Path

import torch  # noqa: F401 (loads the OpenMP library that the kernels use)

from hps_lightning.cache import CACHE_DIR_VARIABLE, cache_dir
from hps_lightning.errors import UserError
from hps_lightning.files import remove_leftovers, replaced_whole

SOURCE = Path(__file__).with_name("batch_norm.cpp")

# Errors and signals of single operations are nobody's concern here, and keep loops from being vectorised.
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")
# PyTorch's OpenMP library is loaded already; a second one would fight it for the cores.
_LINKS = ((), ("-fopenmp",))

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class NativeUnavailableError(RuntimeError):
    """The kernels cannot be compiled or loaded here; the message says why."""


@functools.cache
def load_kernels() -> ctypes.CDLL:
    """The compiled kernels, from the cache where they were compiled before.

    Raises:
        NativeUnavailableError: there is no C++ compiler with OpenMP, or no place for its output.
    """
    compiler = _compiler()
    try:
        target = cache_dir() / "kernels" / f"{_fingerprint(compiler)}.so"
        target.parent.mkdir(parents=True, exist_ok=True)
        if _ours_alone(target):
            try:
                return _declare(ctypes.CDLL(str(target)))
            except (OSError, AttributeError):
                pass  # Left broken by something else: compiled anew.
        return _compile(compiler, target)
    except (OSError, UserError) as error:
        raise NativeUnavailableError(str(error)) from error


def _ours_alone(target: Path) -> bool:
    """Whether a library is there that nobody else can have put there: to load one is to run it.

    Its folder is closed to others from here on.

    Raises:
        NativeUnavailableError: the folder belongs to somebody else.
    """
    if not hasattr(os, "geteuid"):
        # Windows keeps others out of a user's folders by itself.
        return target.exists()
    folder = target.parent
    status = os.stat(folder)
    if status.st_uid != os.geteuid():
        raise NativeUnavailableError(
            f"{folder} belongs to another user, who could put anything there to be run; set {CACHE_DIR_VARIABLE} to a "
            "folder of your own"
        )
    was_open = bool(status.st_mode & _OTHERS_WRITE)
    if was_open:
        folder.chmod(0o700)
    try:
        status = os.lstat(target)
    except FileNotFoundError:
        return False
    # A link may lead to where others write.
    own = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & _OTHERS_WRITE
    return own and not was_open


def _compiler() -> list[str]:
    named = os.environ.get("CXX")
    if named:
        try:
            return shlex.split(named)
        except ValueError as error:
            raise NativeUnavailableError(f"CXX is {named!r}: {error}") from error
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise NativeUnavailableError("no C++ compiler was found")


def _run(command: list[str], text: str = "") -> str:
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, errors="replace", timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailableError(f"{command[0]} does not run: {error}") from error
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
        raise NativeUnavailableError(f"{command[0]} failed: {first}")
    return done.stdout


def _fingerprint(compiler: list[str]) -> str:
    # The predefined macros tell compiler, version and processor apart: a home folder may serve many machines.
    macros = _run([*compiler, *_FLAGS, "-dM", "-E", "-x", "c++", "-"])
    parts = (SOURCE.read_text(encoding="utf-8"), macros, *_FLAGS)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _compile(compiler: list[str], target: Path) -> ctypes.CDLL:
    remove_leftovers(target.parent)
    with replaced_whole(target) as aside:
        compiled = aside.with_suffix(".o")
        try:
            _run([*compiler, *_FLAGS, "-c", str(SOURCE), "-o", str(compiled)])
            for link in _LINKS:
                _run([*compiler, "-shared", str(compiled), *link, "-o", str(aside)])
                try:
                    kernels = _declare(ctypes.CDLL(str(aside)))
                    break
                except OSError as error:
                    reason = error
            else:
                raise NativeUnavailableError(f"the compiled kernels do not load: {reason}")
            # Whatever the umask: what others may write is not loaded again.
            aside.chmod(0o700)
        finally:
            compiled.unlink(missing_ok=True)
    return kernels


def _declare(kernels: ctypes.CDLL) -> ctypes.CDLL:
    pointer, number, flag, real = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
    shape = [number, number, flag, flag]
    forward, backward = kernels.hps_batch_norm_forward, kernels.hps_batch_norm_backward
    forward.argtypes = [flag, *[pointer] * 3, *shape, *[pointer] * 4, real, real, pointer, number]
    backward.argtypes = [flag, *[pointer] * 3, *shape, *[pointer] * 3, number]
    forward.restype = backward.restype = None
    return kernels
