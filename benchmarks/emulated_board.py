"""Runs a bundle's self-test on the board's processor without the board: qemu's user mode as a Cortex-A72.

    apt-get install qemu-user debootstrap
    python benchmarks/emulated_board.py BUNDLE --output benchmarks/results/emulated_board-hps_06_05x.txt

It needs Debian, root (for debootstrap), and about 1 GB below --system: Debian's Python for
aarch64 and the aarch64 wheels of numpy, PyTorch and ONNX Runtime. What it shows is that the same
files give the same answers on that processor's instructions. Its times are the emulator's, and
say nothing of a board's.
"""

import argparse
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

RELEASE, PYTHON = "bookworm", "3.11"
PROCESSOR = "cortex-a72"
# The newest PyTorch whose wheel for aarch64 is a plain CPU build, and an ONNX Runtime that qemu 7.2
# runs (1.32.0 crashes there as soon as it is imported). With all that they import, since pip would
# take what they need on the processor that it runs on.
PACKAGES = ("numpy", "onnxruntime==1.23.2", "torch==2.9.1")
PACKAGES += ("filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "sympy", "typing_extensions")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64", "manylinux_2_17_aarch64")


class MissingPartError(RuntimeError):
    """Something that the emulation needs cannot be had; the message says what, and how to get it."""


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise MissingPartError(f"{command[0]} does not run ({error}): apt-get install qemu-user debootstrap") from error
    if done.returncode:
        raise MissingPartError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


def prepare(system: Path) -> None:
    """Lays out the aarch64 system, once: Debian's Python, and wheels in ``site/``.

    Raises:
        MissingPartError: a tool or a download is missing, or the folder holds something else.
    """
    begun, finished = system / "begun", system / "finished"
    if finished.exists():
        return
    if system.exists() and not begun.exists() and (not system.is_dir() or any(system.iterdir())):
        raise MissingPartError(f"{system} holds something else; choose an empty or new folder: --system FOLDER")
    shutil.rmtree(system, ignore_errors=True)
    system.mkdir(parents=True)
    begun.touch()
    # Only unpacked: nothing of it is ever installed or started but its Python.
    include = "--include=python3,libgomp1,libstdc++6"
    _run(["debootstrap", "--foreign", "--arch=arm64", "--variant=minbase", include, RELEASE, str(system)])
    for package in sorted(system.glob("var/cache/apt/archives/*.deb")):
        files = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package)], capture_output=True, check=True).stdout
        # The archives write to /lib, which here is a link to /usr/lib.
        subprocess.run(["tar", "-x", "-C", str(system), "--keep-directory-symlink"], input=files, check=True)
    with tempfile.TemporaryDirectory() as wheels:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", wheels]
        pip += ["--python-version", PYTHON, *(f"--platform={name}" for name in PLATFORMS)]
        _run([*pip, *PACKAGES])
        for wheel in Path(wheels).glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(system / "site")
    finished.touch()


def main() -> int:
    """Runs the command line; returns the exit status: that of the self-test, or 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="folder that `hps export` wrote")
    parser.add_argument(
        "--system", type=Path, default=Path("build/cortex-a72"), help="where the aarch64 system is laid out"
    )
    parser.add_argument("--output", type=Path, help="file that keeps what the self-test prints, if it passes")
    arguments = parser.parse_args()
    if not (arguments.bundle / "selftest.py").is_file():
        parser.error(f"{arguments.bundle} is no bundle: it has no selftest.py")
    try:
        prepare(arguments.system)
        version = _run(["qemu-aarch64", "--version"]).splitlines()[0]
    except MissingPartError as error:
        print(f"emulated_board: error: {error}", file=sys.stderr)
        return 2
    system = arguments.system.absolute()
    command = ["qemu-aarch64", "-cpu", PROCESSOR, "-L", str(system), "-E", f"PYTHONPATH={system / 'site'}"]
    command += [str(system / "usr/bin" / f"python{PYTHON}"), str(arguments.bundle / "selftest.py")]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    text = (
        f"{version}, as a {PROCESSOR}, on {platform.machine()}; times are the emulator's, not a board's\n{done.stdout}"
    )
    print(text, end="")
    if arguments.output and done.returncode == 0:
        arguments.output.write_text(text, encoding="utf-8")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
