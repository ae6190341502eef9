from pathlib import Path

import pytest

from hps_lightning.installed import published_folder
from hps_lightning.report import page
from tests.report import made

ROOT = Path(__file__).parents[2]


@pytest.fixture
def written(monkeypatch):
    """What the report is told to make; the page itself is tested in tests/report/test_page.py."""
    calls = []

    def write_report(*arguments):
        calls.append(arguments)
        return ["report.md"]

    monkeypatch.setattr(page, "write_report", write_report)
    return calls


def test_by_default_it_shows_the_recorded_results(hps, written):
    status, out, err = hps("report")
    assert status == 0, err
    ((output, checkpoints, results, curves),) = written
    assert (output, checkpoints) == (Path("report"), published_folder())
    assert results == ROOT / "benchmarks" / "results"
    assert len(curves) == len(list((results / "curves").glob("*.csv")))
    assert "Open report/report.html" in out


def test_runs_are_shown_instead_of_the_recorded_curves(hps, written, tmp_path):
    made.run(tmp_path / "runs")
    made.run(tmp_path / "runs", "hps_06_1x")
    folders = ("runs/hps_06_05x-digits", "runs/hps_06_1x-digits")
    status, _, err = hps("report", "--runs", *folders, "--output", "elsewhere")
    assert status == 0, err
    ((output, _, _, curves),) = written
    assert output == Path("elsewhere")
    assert [title for _, title in curves] == ["hps_06_05x", "hps_06_1x"]


def test_curves_of_given_results_are_shown(hps, written, tmp_path):
    made.run(tmp_path / "runs")
    (tmp_path / "results" / "curves").mkdir(parents=True)
    assert hps("plot", "runs", "--csv", "results/curves/a.csv")[0] == 0
    status, _, err = hps("report", "--results", "results")
    assert status == 0, err
    ((_, _, results, ((run, title),)),) = written
    assert results == Path("results")
    assert (run.dataset, title) == ("digits", "hps_06_05x")


def test_a_whole_report_takes_the_place_of_an_earlier_one(hps, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "curves-cifar10.png").write_text("of an earlier report, with curves")
    status, out, err = hps("report", "--results", "results", "--output", "out")
    assert status == 0, err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"report.md", "report.html", "tables.csv", "time.png", "size-cifar10.svg"} <= names
    assert "curves-cifar10.png" not in names
    assert all(name in out for name in names)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "No curves of ours are recorded" in text
    assert "`hps_06_05x` on CIFAR-10" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "results"]


def test_mistakes_end_with_status_2_and_a_message(hps, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    for argv, message in (
        (["--runs", "nowhere"], "There is no run nowhere"),
        (["--runs", "empty"], "empty holds no TensorBoard logs"),
        (["--results", "nowhere"], "There is no folder of results nowhere"),
        (["--output", "mine"], "mine holds thesis.tex, which is no part of a report"),
        # Not even root makes folders in /proc.
        (["--output", "/proc/report"], "/proc/report cannot be written"),
    ):
        status, out, err = hps("report", *argv)
        assert (status, out) == (2, ""), argv
        assert message in err
        assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "mine"]


def test_help_has_an_example(hps):
    status, out, _ = hps("report", "--help")
    assert status == 0
    assert "hps report --output report" in out
    for option in ("--output", "--runs", "--results"):
        assert option in out
