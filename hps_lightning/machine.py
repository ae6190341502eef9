"""The machine that a measurement is made on, and what the measuring process takes of it."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hps_lightning import __version__

if TYPE_CHECKING:
    # Else who measures what a process without it holds would measure it too.
    import torch

try:
    import resource
except ImportError:  # Windows
    resource = None

_STATUS = Path("/proc/self/status")
_CPUINFO = Path("/proc/cpuinfo")
_X86 = ("x86_64", "amd64", "i386", "i686", "x86")


def peak_resident_bytes() -> int | None:
    """The most memory that this process has held so far, in bytes; None where the system does not tell."""
    try:
        # Not ru_maxrss there: a process that another one starts begins with what that one held.
        lines = _STATUS.read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def hardware(device: "torch.device") -> dict[str, Any]:
    """The machine that a measurement was made on, in plain types."""
    import torch

    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "cores_usable": len(affinity(0)) if affinity else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": _memory_bytes(),
        "device": device.type,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "platform": platform.platform(),
    }


def _cpu_name() -> str:
    try:
        if platform.system() == "Darwin":
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        for line in _CPUINFO.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except (OSError, subprocess.SubprocessError):
        pass
    # Linux does not name a model on every architecture.
    return platform.processor() or platform.machine()


def int8_sums_overflow() -> bool:
    """Whether this processor may add pairs of 8-bit products in 16 bits, which onnxruntime lets overflow.

    x86 does so before VNNI, and is taken to where the system does not tell; Arm does not.
    """
    # An Arm that is emulated may be told of the processor that emulates it.
    if platform.machine().lower() not in _X86:
        return False
    try:
        flags = set(_CPUINFO.read_text(errors="replace").split())
    except OSError:
        return True
    return not flags & {"avx512_vnni", "avx_vnni"}


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def versions() -> dict[str, str]:
    """Of Python and the packages that decide how fast a training is."""
    import torch

    found = {"python": platform.python_version(), "hps_lightning": __version__, "torch": str(torch.__version__)}
    for package in ("torchvision", "lightning"):
        found[package] = version(package)
    return found
