import subprocess
import sys

import pytest
from PIL import Image

from tests.report import made


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


def test_two_runs_are_drawn_in_one_picture(hps, runs, tmp_path):
    made.run(runs)
    made.run(runs, "hps_06_1x")
    folders = ("runs/hps_06_05x-digits/version_0", "runs/hps_06_1x-digits")
    status, out, err = hps("plot", *folders)
    assert status == 0, err
    assert out == "Wrote curves.png.\n"
    with Image.open(tmp_path / "curves.png") as image:
        assert image.format == "PNG"
    assert hps("plot", *folders, "--output", "x.svg")[0] == 0
    assert b"<svg" in (tmp_path / "x.svg").read_bytes()


def test_curves_are_kept_as_csv_and_drawn_from_it(hps, runs, tmp_path):
    made.run(runs)
    status, out, err = hps("plot", "runs", "--csv", "a.csv")
    assert status == 0, err
    assert out == "Wrote a.csv.\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "runs"]
    assert hps("plot", "a.csv", "--output", "a.png")[0] == 0
    assert (tmp_path / "a.png").is_file()


def test_a_run_has_no_curve_of_what_it_did_not_log(hps, runs, tmp_path):
    made.run(runs, series=("val/accuracy",))
    status, _, err = hps("plot", "runs", "--metric", "loss")
    assert status == 2
    assert "hps_06_05x has logged no loss" in err
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_mistakes_end_with_status_2_and_a_message(hps, runs, tmp_path):
    made.run(runs)
    made.run(runs, "hps_14_1x", "cifar100")
    (tmp_path / "empty").mkdir()
    here = "runs/hps_06_05x-digits"
    for argv, message in (
        (["nowhere"], "There is no run nowhere"),
        (["empty"], "empty holds no TensorBoard logs"),
        ([here, "runs/hps_14_1x-cifar100"], "hps_06_05x is trained on digits, hps_14_1x is trained on cifar100"),
        ([here, "--output", "a.jpg"], "a.jpg: a picture is written as .png or .svg"),
        ([here, "--output", "nowhere/a.png"], "nowhere/a.png cannot be written"),
        ([here, "--csv", "nowhere/a.csv"], "nowhere/a.csv cannot be written"),
        ([here, here, "--csv", "a.csv"], "--csv keeps the curves of a single run"),
    ):
        status, out, err = hps("plot", *argv)
        assert (status, out) == (2, ""), argv
        assert message in err
        assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "runs"]


def test_help_has_an_example(hps):
    status, out, _ = hps("plot", "--help")
    assert status == 0
    assert "hps plot runs/hps_06_05x-cifar10/version_0 runs/hps_06_1x-cifar10/version_0" in out
    for option in ("--metric", "--output", "--csv"):
        assert option in out


def test_it_does_not_wait_for_lightning(runs):
    folder = made.run(runs)
    script = (
        "import sys; from hps_lightning.cli import main;"
        f"status = main(['plot', {str(folder)!r}, '--output', {str(folder / 'a.png')!r}]);"
        "sys.exit(status or 'lightning' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], stdout=subprocess.DEVNULL, check=False).returncode == 0
