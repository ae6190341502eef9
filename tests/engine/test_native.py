import os
import shlex
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from hps_lightning.engine import FusedTraining, NativeUnavailableError, load_kernels, native

COMPILER = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")

# The last argument is where the output goes.
OUTPUT = (
    'for output; do :; done\ncase "$*" in *" -c "*) step=compile;; *-shared*) step=link;; *) step=describe;; esac\n'
)


@pytest.fixture(autouse=True)
def loaded_anew():
    load_kernels.cache_clear()
    yield
    # The next test finds the kernels of its own cache.
    load_kernels.cache_clear()


def _script(path, text):
    path.write_text(f"#!/bin/sh\n{OUTPUT}{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def _files(cache):
    return sorted(file.name for file in cache.rglob("*") if file.is_file())


def _works():
    torch.manual_seed(0)
    unit, images = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), torch.randn(2, 3, 8, 8)
    expected = unit(images)
    with FusedTraining(unit).applied():
        torch.testing.assert_close(unit(images), expected, rtol=1e-4, atol=1e-4)


class Compiled:
    """A cache with kernels in it, and a compiler that logs its steps and compiles only what it did not before."""

    def __init__(self, folder):
        self.cache = folder / "cache"
        self.log = folder / "log"
        kept = folder / "kept.o"
        self.compiler = _script(
            folder / "compiler",
            f'echo $step >> "{self.log}"\n'
            f'if [ $step = compile ] && [ -e "{kept}" ]; then cp "{kept}" "$output"; exit; fi\n'
            f'{COMPILER} "$@" || exit\n'
            f'if [ $step = compile ]; then cp "$output" "{kept}"; fi',
        )

    def steps(self):
        steps = self.log.read_text().split()
        self.log.unlink()
        return steps


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    made = Compiled(tmp_path_factory.mktemp("native"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HPS_CACHE_DIR", str(made.cache))
        patch.setenv("CXX", str(made.compiler))
        load_kernels.cache_clear()
        load_kernels()
    assert made.steps()[:3] == ["describe", "compile", "link"]
    return made


@pytest.fixture
def here(compiled, monkeypatch):
    monkeypatch.setenv("HPS_CACHE_DIR", str(compiled.cache))
    monkeypatch.setenv("CXX", str(compiled.compiler))
    return compiled


@needs_compiler
def test_the_kernels_lie_in_the_cache_alone(here):
    (name,) = _files(here.cache)
    assert (here.cache / "kernels" / name).is_file()
    assert Path(name).suffix == ".so"


@needs_compiler
def test_kernels_compiled_before_are_found(here):
    _works()
    assert here.steps() == ["describe"]


@needs_compiler
def test_kernels_are_loaded_once(here):
    assert load_kernels() is load_kernels()
    assert here.steps() == ["describe"]


@needs_compiler
def test_without_a_cache_they_are_compiled_again(here, tmp_path, monkeypatch):
    monkeypatch.setenv("HPS_CACHE_DIR", str(tmp_path / "not" / "yet"))
    _works()
    assert here.steps()[:3] == ["describe", "compile", "link"]
    assert _files(tmp_path) == _files(here.cache)


@needs_compiler
@pytest.mark.parametrize("content", [b"", b"broken", b"\x7fELF and no more"])
def test_a_broken_file_in_the_cache_is_replaced(here, tmp_path, monkeypatch, content):
    (name,) = _files(here.cache)
    target = tmp_path / "kernels" / name
    target.parent.mkdir()
    target.write_bytes(content)
    monkeypatch.setenv("HPS_CACHE_DIR", str(tmp_path))
    _works()
    assert _files(tmp_path) == [name]
    assert target.stat().st_size > 1000
    here.steps()
    load_kernels.cache_clear()
    _works()
    assert here.steps() == ["describe"]


@needs_compiler
def test_a_library_of_something_else_in_the_cache_is_replaced(here, tmp_path, monkeypatch):
    (name,) = _files(here.cache)
    target = tmp_path / "kernels" / name
    target.parent.mkdir()
    empty = [*shlex.split(COMPILER), "-shared", "-fPIC", "-x", "c++", os.devnull, "-o", str(target)]
    subprocess.run(empty, check=True)
    monkeypatch.setenv("HPS_CACHE_DIR", str(tmp_path))
    _works()
    assert _files(tmp_path) == [name]


@needs_compiler
def test_another_compiler_or_processor_has_kernels_of_its_own(here, tmp_path, monkeypatch):
    shutil.copytree(here.cache, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("HPS_CACHE_DIR", str(tmp_path))
    # What tells processors apart are the macros that the compiler predefines.
    monkeypatch.setenv("CXX", f"{here.compiler} -DANOTHER_PROCESSOR=1")
    _works()
    assert "compile" in here.steps()
    assert len(_files(tmp_path)) == 2


def test_a_compiler_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HPS_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(NativeUnavailableError, match=r"^/nowhere/c\+\+ does not run"):
        load_kernels()
    assert _files(tmp_path) == []


def test_without_any_compiler_that_is_the_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("HPS_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NativeUnavailableError, match=r"^no C\+\+ compiler was found$"):
        load_kernels()


@pytest.mark.parametrize("name", ["c++", "g++", "clang++"])
def test_any_of_the_usual_compilers_is_found(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HPS_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    _script(tmp_path / name, "echo error: that one >&2; exit 1")
    with pytest.raises(NativeUnavailableError) as caught:
        load_kernels()
    assert str(caught.value) == f"{name} failed: error: that one"


def test_networks_that_cannot_be_fused_say_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HPS_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(NativeUnavailableError, match="/nowhere"):
        FusedTraining(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))
    # Nothing to compile for.
    assert FusedTraining(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())).units == 0


@pytest.mark.parametrize("step", ["describe", "compile", "link"])
def test_a_compiler_that_fails_says_why_and_leaves_nothing(tmp_path, monkeypatch, step):
    cache = tmp_path / "cache"
    compiler = _script(
        tmp_path / "compiler",
        f'if [ $step != describe ]; then echo half > "$output"; fi\n'
        f"if [ $step = {step} ]; then\n"
        "  echo some words before it >&2; echo 'x: error: no such option -fopenmp' >&2; echo more >&2; exit 1\n"
        "fi",
    )
    monkeypatch.setenv("HPS_CACHE_DIR", str(cache))
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(NativeUnavailableError) as caught:
        load_kernels()
    assert str(caught.value) == f"{compiler} failed: x: error: no such option -fopenmp"
    assert _files(cache) == []


def test_a_compiler_that_fails_without_an_error_is_quoted(tmp_path, monkeypatch):
    compiler = _script(tmp_path / "compiler", "echo killed >&2; exit 137")
    monkeypatch.setenv("HPS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(NativeUnavailableError, match=r"failed: killed$"):
        load_kernels()


def test_kernels_that_do_not_load_are_not_kept(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    compiler = _script(tmp_path / "compiler", 'if [ $step != describe ]; then echo no library > "$output"; fi')
    monkeypatch.setenv("HPS_CACHE_DIR", str(cache))
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(NativeUnavailableError, match="the compiled kernels do not load"):
        load_kernels()
    assert _files(cache) == []


def test_a_failure_is_not_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("HPS_CACHE_DIR", str(tmp_path))
    for name in ("/nowhere/c++", "/elsewhere/c++"):
        monkeypatch.setenv("CXX", name)
        with pytest.raises(NativeUnavailableError, match=name.replace("+", r"\+")):
            load_kernels()


@pytest.fixture
def silent(tmp_path, monkeypatch):
    """A compiler that has nothing to say, and is never asked for more."""
    monkeypatch.setenv("CXX", str(_script(tmp_path / "compiler", "[ $step = describe ]")))


def test_a_cache_that_cannot_be_is_the_reason(silent, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HPS_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(NativeUnavailableError) as caught:
        load_kernels()
    assert str(tmp_path / "file" / "cache") in str(caught.value)


def test_without_a_home_the_variable_is_named(silent, monkeypatch):
    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("HPS_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", no_home)
    with pytest.raises(NativeUnavailableError, match="HPS_CACHE_DIR"):
        load_kernels()


def test_a_compiler_that_cannot_be_read_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("HPS_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", 'g++ "-O2')
    with pytest.raises(NativeUnavailableError, match="O2"):
        load_kernels()


def test_what_a_compiler_says_in_another_encoding_is_no_harm(tmp_path, monkeypatch):
    compiler = _script(tmp_path / "compiler", r"printf 'error: \374\n' >&2; exit 1")
    monkeypatch.setenv("HPS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(NativeUnavailableError, match="failed: error: "):
        load_kernels()


# --- A cache that others can write ---


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A cache with a library of somebody's in the kernels' place, which leaves a trace when it is loaded."""
    monkeypatch.setenv("HPS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "_fingerprint", lambda compiler: "kernels")
    monkeypatch.setattr(native, "_compile", lambda compiler, target: f"compiled anew: {target}")
    source = tmp_path / "planted.c"
    trace = tmp_path / "trace"
    source.write_text(
        f'#include <stdio.h>\n__attribute__((constructor)) static void run(void) {{ fclose(fopen("{trace}", "w")); }}\n'
        "void hps_batch_norm_forward(void) {}\nvoid hps_batch_norm_backward(void) {}\n"
    )
    target = tmp_path / "cache" / "kernels" / "kernels.so"
    target.parent.mkdir(parents=True)
    subprocess.run([*shlex.split(COMPILER), "-x", "c", "-shared", "-fPIC", str(source), "-o", str(target)], check=True)
    target.parent.chmod(0o700)
    target.chmod(0o700)
    return target, trace


def open_folder(target, monkeypatch):
    target.parent.chmod(0o777)


def open_to_the_group(target, monkeypatch):
    target.parent.chmod(0o770)


def open_file(target, monkeypatch):
    target.chmod(0o722)


def link(target, monkeypatch):
    target.rename(target.parent.parent / "elsewhere.so")
    target.symlink_to(target.parent.parent / "elsewhere.so")


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows keeps others out by itself")
@pytest.mark.parametrize("opened", [open_folder, open_to_the_group, open_file, link])
def test_a_library_that_others_could_have_put_there_is_not_run(planted, monkeypatch, tally, opened):
    target, trace = planted
    opened(target, monkeypatch)
    assert load_kernels() == f"compiled anew: {target}"
    assert not trace.exists()
    # From here on nobody else can.
    assert not target.parent.stat().st_mode & 0o022
    tally("malicious files refused")


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows keeps others out by itself")
def test_a_cache_of_another_user_is_not_used(planted, monkeypatch, tally):
    target, trace = planted
    monkeypatch.setattr(os, "geteuid", lambda: target.stat().st_uid + 1)
    with pytest.raises(NativeUnavailableError, match=r"kernels belongs to another user.* set HPS_CACHE_DIR"):
        load_kernels()
    assert not trace.exists()
    tally("malicious files refused")


@needs_compiler
def test_such_a_library_runs_where_it_is_loaded(planted):
    _, trace = planted
    load_kernels()
    assert trace.exists(), "the library is harmless, so that the tests above show nothing"
