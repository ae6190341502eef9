import platform
import subprocess
import sys

import pytest

from hps_lightning import machine

HELD = """
import subprocess, sys
held = bytearray(300_000_000)
held[::4096] = bytes(len(held[::4096]))
subprocess.run([sys.executable, "-c", "from hps_lightning import machine; print(machine.peak_resident_bytes())"])
"""


@pytest.mark.skipif(not machine._STATUS.exists(), reason="this system tells no VmHWM")
def test_peak_memory_is_that_of_the_process_and_not_of_the_one_that_started_it():
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    assert 1e6 < int(done.stdout) < 150e6


@pytest.mark.parametrize(("system", "unit"), [("Linux", 1024), ("Darwin", 1)])
def test_peak_memory_is_in_bytes_whatever_the_systems_unit(monkeypatch, tmp_path, system, unit):
    monkeypatch.setattr(machine, "_STATUS", tmp_path / "none")
    monkeypatch.setattr(platform, "system", lambda: system)
    usage = machine.resource.getrusage(machine.resource.RUSAGE_SELF).ru_maxrss
    assert usage * unit <= machine.peak_resident_bytes() <= usage * unit * 1.1


@pytest.mark.parametrize(
    ("name", "flags", "overflow"),
    [
        ("x86_64", "sse4_2 avx2 fma", True),
        ("x86_64", "avx2 avx512f avx512bw", True),
        ("x86_64", "avx2 avx512f avx512_vnni", False),
        ("AMD64", "avx2 avx_vnni", False),
        ("AMD64", None, True),
        ("aarch64", "fp asimd asimddp", False),
        ("aarch64", "sse4_2 avx2 fma", False),
        ("arm64", None, False),
    ],
    ids=["AVX2", "AVX-512", "AVX-512 VNNI", "AVX VNNI", "Windows", "Arm", "emulated Arm", "Apple"],
)
def test_8_bit_sums_overflow_on_x86_before_vnni(monkeypatch, tmp_path, name, flags, overflow):
    told = tmp_path / "cpuinfo"
    if flags is not None:
        told.write_text(f"processor\t: 0\nflags\t\t: fpu {flags} sha_ni\n")
    monkeypatch.setattr(machine, "_CPUINFO", told)
    monkeypatch.setattr(machine.platform, "machine", lambda: name)
    assert machine.int8_sums_overflow() is overflow
