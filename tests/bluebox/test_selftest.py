import io
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from .made import change_manifest, replace_file


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
    assert "files: 9 as exported\n" in result.stdout
    assert result.stdout.endswith("selftest: passed\n")


def test_it_measures_latency(run):
    status, out, err = run()
    assert (status, err) == (0, "")
    assert "one image: " in out


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


def golden(bundle, **changes):
    with np.load(bundle / "golden.npz") as content:
        arrays = {**content, **changes}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: array for name, array in arrays.items() if array is not None})
    replace_file(bundle, "golden.npz", buffer.getvalue())


@pytest.mark.parametrize("off", [0.001, float("nan"), 1e9])
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
