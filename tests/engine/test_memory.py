import platform
import subprocess
import sys

import pytest

from hps_lightning.engine import keep_freed_memory, memory

# In processes of their own: a setting of the C library stays for good. By its path, without the second torch takes.
SCRIPT = """
import ctypes, importlib.util, sys

spec = importlib.util.spec_from_file_location("memory", sys.argv[1])
memory = importlib.util.module_from_spec(spec)
spec.loader.exec_module(memory)

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

if sys.argv[2] == "keep":
    print(memory.keep_freed_memory())
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.malloc.argtypes = [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
before = resident()
blocks = [library.malloc(16 << 20) for _ in range(3)]
for block in blocks:
    ctypes.memset(block, 1, 16 << 20)
used = resident()
for block in blocks:
    library.free(block)
print(used - before, resident() - before)
"""


def _printed(what):
    command = [sys.executable, "-c", SCRIPT, memory.__file__, what]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc", reason="the C library is not glibc"
)
def test_freed_memory_stays_with_the_process():
    used, left = map(int, _printed("give back"))
    assert used > 40 << 10
    assert left < 1 << 10
    kept, used, left = _printed("keep")
    assert kept == "True"
    assert int(used) > 40 << 10
    assert int(left) > 40 << 10


@pytest.mark.parametrize("name", ["darwin", "win32"])
def test_other_platforms_are_left_alone(monkeypatch, name):
    monkeypatch.setattr(sys, "platform", name)
    # Not even looked for.
    monkeypatch.setattr(memory.ctypes, "CDLL", None)
    assert keep_freed_memory() is False


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert keep_freed_memory() is False


def test_a_library_that_refuses_is_not_claimed(monkeypatch):
    asked = []

    class Library:
        def mallopt(self, option, value):
            asked.append(option)
            return int(len(asked) != 2)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: Library())
    assert keep_freed_memory() is False
    assert sorted(asked) == [-3, -2, -1]
