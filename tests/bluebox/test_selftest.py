import io
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from hps_lightning.bluebox import INT8_FILE, ONNX_FILE, describe, export_bundle
from hps_lightning.bluebox.onnx_export import export_int8, export_onnx

from .made import change_manifest, record, replace_file

# Python 3.10 has none newer than 1.23; with several threads and AMX those before 1.25 answer wrongly in 8 bits.
_AMX = Path("/proc/cpuinfo").exists() and "amx_int8" in Path("/proc/cpuinfo").read_text().split()
_ORT = tuple(map(int, version("onnxruntime").split(".")[:2]))
steady_int8 = pytest.mark.skipif(_AMX and _ORT < (1, 25), reason="ONNX Runtime before 1.25 is wrong in 8 bits with AMX")


@pytest.fixture
def selftest(board_file):
    return board_file("selftest")


@pytest.fixture
def run(selftest, bundle, capsys, monkeypatch):
    def call():
        monkeypatch.setattr(selftest, "HERE", str(bundle))
        monkeypatch.setattr(selftest, "RUNS", 3)
        status = selftest.main()
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_a_copied_bundle_tests_itself(bundle, tmp_path):
    shutil.move(bundle, tmp_path / "on the board")
    command = [sys.executable, str(tmp_path / "on the board" / "selftest.py")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=120, env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert "files: 10 as exported\n" in result.stdout
    assert result.stdout.endswith("selftest: passed\n")


def test_it_measures_latency(run):
    status, out, err = run()
    assert (status, err) == (0, "")
    assert "one image, PyTorch: " in out


def test_it_measures_as_often_as_it_says(selftest, bundle, bundles, monkeypatch):
    monkeypatch.setattr(selftest, "RUNS", 3)
    assert len(selftest.latencies(bundles.Bundle(str(bundle)), lambda image: None)) == 3


def test_deviations_are_told(selftest, bundle):
    _, logits, levels = selftest.check(str(bundle))
    assert 0 <= logits < 1e-4
    assert levels in (0, 1)


@pytest.mark.parametrize("name", ["weights.pt", "golden.npz", "rtmaps_block.py", "README.md"])
def test_a_damaged_file_is_named(run, bundle, name):
    os.truncate(bundle / name, 100)
    status, out, err = run()
    assert status == 1
    assert err.startswith(f"selftest: FAILED: {bundle / name} has 100 bytes instead of ")
    assert "passed" not in out


@pytest.mark.parametrize("script", ["selftest.py", "classify.py"])
@pytest.mark.parametrize("name", ["bundle.py", "frames.py"])
@pytest.mark.parametrize("content", [b"import os\n", b"def f(\n", b"import os\nos.nothi", b"x = 1\0"])
def test_code_that_is_damaged_is_named(bundle, script, name, content):
    (bundle / name).write_bytes(content)
    command = [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path}; import {script[:-3]}"]
    result = subprocess.run([*command, "x.ppm"], cwd=bundle, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert f": {name}: " in result.stderr
    assert result.stderr.endswith("; numpy, PyTorch and the whole bundle are needed\n")


@pytest.mark.parametrize(("script", "missing"), [("selftest", "numpy"), ("selftest", "torch"), ("classify", "numpy")])
def test_a_library_that_is_missing_is_named(board_file, monkeypatch, script, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit, match=f"numpy.*: .*{missing}.*; numpy, PyTorch and the whole bundle are needed"):
        board_file(script)


def golden(bundle, **changes):
    with np.load(bundle / "golden.npz") as content:
        arrays = {**content, **changes}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: array for name, array in arrays.items() if array is not None})
    replace_file(bundle, "golden.npz", buffer.getvalue())


@pytest.mark.parametrize("off", [0.01, float("nan"), 1e9])
def test_other_answers_fail(run, bundle, off):
    with np.load(bundle / "golden.npz") as content:
        logits = content["logits"].copy()
    logits[3, 1] += off
    golden(bundle, logits=logits)
    status, _, err = run()
    assert status == 1
    assert err.startswith("selftest: FAILED: the logits are ")


def test_another_normalisation_fails(run, bundle):
    change_manifest(bundle, lambda manifest: manifest["input"].update(mean=[0.1, 0.2, 0.31]))
    status, _, err = run()
    assert status == 1
    assert "the logits are " in err


def test_another_way_to_resize_fails(run, bundle):
    with np.load(bundle / "golden.npz") as content:
        resized = content["resized"].copy()
    resized[0, 0, 0] += 2
    golden(bundle, resized=resized)
    status, _, err = run()
    assert status == 1
    assert "grey levels off, more than 1" in err


def test_golden_values_that_are_none(run, bundle):
    golden(bundle, frame=None)
    status, _, err = run()
    assert status == 1
    assert f"{bundle / 'golden.npz'} is damaged: " in err
    replace_file(bundle, "golden.npz", b"nothing")
    assert f"{bundle / 'golden.npz'} is damaged: " in run()[2]


@pytest.fixture(scope="session")
def onnx_exported(decided, tmp_path_factory):
    network, described = decided.network, record(decided)
    manifest = describe(network, described)
    calibration = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8)
    models = {
        ONNX_FILE: export_onnx(network, manifest),
        INT8_FILE: export_int8(network, manifest, calibration, preprocessing=True),
    }
    folder = tmp_path_factory.mktemp("exported") / "with onnx"
    return export_bundle(network, network.state_dict(), folder, described, models=models)


@pytest.fixture
def onnx_bundle(onnx_exported, tmp_path):
    """One that a test may damage."""
    return Path(shutil.copytree(onnx_exported, tmp_path / "with onnx"))


@steady_int8
def test_onnx_files_are_tested_where_they_can_be_run(selftest, onnx_bundle, bundles):
    checked = selftest.check_onnx(bundles.Bundle(str(onnx_bundle)))
    assert [name for name, _, _ in checked] == [INT8_FILE, ONNX_FILE]
    assert all(off < 1e-5 for _, _, off in checked)


def test_what_is_right_is_said_before_an_onnx_file_fails(selftest, onnx_bundle, capsys, monkeypatch):
    golden(onnx_bundle, **{INT8_FILE: None})
    monkeypatch.setattr(selftest, "HERE", str(onnx_bundle))
    assert selftest.main() == 1
    said = capsys.readouterr()
    assert "logits: at most " in said.out
    assert "golden.npz is damaged: " in said.err


@pytest.mark.parametrize("name", [ONNX_FILE, INT8_FILE])
@steady_int8
def test_an_onnx_file_that_answers_otherwise_fails(selftest, onnx_bundle, bundles, name):
    with np.load(onnx_bundle / "golden.npz") as content:
        answers = content[name].copy()
    answers[2, 1] += 0.1
    golden(onnx_bundle, **{name: answers})
    with pytest.raises(selftest.BundleError, match=rf"{name}: the probabilities are 0\.1 off"):
        selftest.check_onnx(bundles.Bundle(str(onnx_bundle)))


@pytest.mark.parametrize(
    ("name", "version", "told"),
    [
        (INT8_FILE, "1.24.4", True),
        (INT8_FILE, "1.25.0", False),
        (ONNX_FILE, "1.24.4", False),
    ],
)
@steady_int8
def test_wrong_answers_in_8_bits_name_an_old_onnx_runtime(
    selftest, onnx_bundle, bundles, monkeypatch, name, version, told
):
    import onnxruntime

    with np.load(onnx_bundle / "golden.npz") as content:
        golden(onnx_bundle, **{name: content[name] + 0.1})
    monkeypatch.setattr(onnxruntime, "__version__", version)
    with pytest.raises(selftest.BundleError) as caught:
        selftest.check_onnx(bundles.Bundle(str(onnx_bundle)))
    assert (f"ONNX Runtime 1.25 or newer is needed for 8 bits, and this is {version}" in str(caught.value)) == told


def test_a_file_that_is_no_onnx_is_told(selftest, onnx_bundle, bundles):
    replace_file(onnx_bundle, ONNX_FILE, b"hello")
    with pytest.raises(selftest.BundleError, match=r"network\.onnx is none that ONNX Runtime runs: "):
        selftest.check_onnx(bundles.Bundle(str(onnx_bundle)))


@pytest.mark.parametrize(("version", "tested"), [("1.13.1", False), ("1.14.0", True), ("2.0", True), ("own", True)])
@steady_int8
def test_an_onnx_runtime_that_is_too_old_fails_nothing(selftest, onnx_bundle, capsys, monkeypatch, version, tested):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "__version__", version)
    monkeypatch.setattr(selftest, "HERE", str(onnx_bundle))
    assert selftest.main() == 0
    out = capsys.readouterr().out
    assert out.endswith("selftest: passed\n")
    assert ("network.onnx: probabilities" in out) == tested
    told = "network-int8.onnx and network.onnx not tested: ONNX Runtime 1.13.1 is too old, 1.14 or newer is needed"
    assert (told in out) != tested
    assert "ONNX Runtime 1.14 or newer" in (onnx_bundle / "README.md").read_text()


def test_a_broken_onnx_runtime_fails_nothing_and_is_said(selftest, onnx_bundle, bundles, tmp_path, monkeypatch):
    (tmp_path / "broken" / "onnxruntime").mkdir(parents=True)
    (tmp_path / "broken" / "onnxruntime" / "__init__.py").write_text("raise ImportError('made for another numpy')")
    monkeypatch.syspath_prepend(tmp_path / "broken")
    monkeypatch.delitem(sys.modules, "onnxruntime")
    bundle = bundles.Bundle(str(onnx_bundle))
    assert selftest.check_onnx(bundle) == []
    told = "network-int8.onnx and network.onnx not tested: ONNX Runtime cannot be imported (made for another numpy)"
    assert selftest.onnx_left_out(bundle) == told


def test_without_onnx_runtime_its_files_are_left_alone(selftest, onnx_bundle, bundles, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert selftest.check_onnx(bundles.Bundle(str(onnx_bundle))) == []
    assert selftest.onnx_left_out(bundles.Bundle(str(onnx_bundle))) is None
