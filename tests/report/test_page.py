"""The report as a whole, made once of what is published and of made results."""

import csv
import json
import re
import shutil

import pytest

from hps_lightning.errors import UserError
from hps_lightning.report.curves import Run
from hps_lightning.report.page import write_report
from tests.report.test_measured import facts, write
from tests.report.test_studies import made_studies

CURVES = {"train/accuracy": {1: 0.4, 2: 0.6}, "val/accuracy": {1: 0.5, 2: 0.5625}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Checkpoints of one network with two seeds, and results with one training."""
    root = tmp_path_factory.mktemp("made")
    write(root / "checkpoints" / "hps_06_05x-cifar10.json", facts(command="hps fit --seed_everything 0"))
    write(root / "results" / "a<b>|run" / "benchmark.json", facts(metrics={"final": {"val/accuracy": 0.725}}))
    made_studies(root / "results")
    return root


@pytest.fixture(scope="module")
def report(made):
    folder = made / "report"
    curves = [(Run("hps_06_05x", "digits", "holdout", "0", CURVES), "<script>alert(1)</script>")]
    files = write_report(folder, made / "checkpoints", made / "results", curves)
    assert files == sorted(path.name for path in folder.iterdir())
    return folder


def test_everything_is_there_as_markdown_html_png_and_svg(report):
    names = {path.name for path in report.iterdir()}
    plots = {
        f"{name}.{suffix}"
        for name in (
            *("size-cifar10", "size-cifar100", "time", "curves-digits"),
            *("optimizers-made", "exploration-0.5x"),
        )
        for suffix in ("png", "svg")
    }
    assert names == {"report.md", "report.html", "tables.csv", *plots}
    text = (report / "report.md").read_text()
    assert "\n\nThe study is not finished: 1 trainings so far.\n\n" in text
    assert "\n\n![Accuracy of hps_06_05x with 3 optimizers under each schedule](optimizers-made.png)\n\n|" in text
    for file in re.findall(r"!\[.+?\]\((.+?)\)", text):
        assert (report / file).is_file()
    assert not (report.parent / "report.previous").exists()


def test_more_trainings_than_colours_are_drawn_in_pictures_of_their_own(made, tmp_path):
    curves = [(Run("hps_06_05x", "digits", "holdout", str(seed), CURVES), f"seed {seed}") for seed in range(8)]
    write_report(tmp_path / "report", made / "checkpoints", None, curves)
    text = (tmp_path / "report" / "report.md").read_text()
    assert re.findall(r"\((curves-.+?)\)", text) == ["curves-digits.png", "curves-digits-2.png"]
    first, second = (text.split("](curves-digits")[part] for part in (1, 2))
    assert ["seed 3 " in first, "seed 4 " in first, "seed 4 " in second] == [True, False, True]
    # One of fewer trainings takes its place.
    write_report(tmp_path / "report", made / "checkpoints", None, curves[:1])
    assert not (tmp_path / "report" / "curves-digits-2.png").exists()


def test_the_page_needs_no_other_file(report):
    page = (report / "report.html").read_text()
    sources = re.findall(r"""\b(?:src|srcset|data|poster)\s*=\s*["']([^"']{1,40})""", page)
    assert len(sources) == 6
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    for outside in ("<link", "<script", "<iframe", "<object", "@import", "url("):
        assert outside not in page
    # Links lead the reader to sources; what they name inside the page is there.
    for target in re.findall(r'href="#([^"]+)"', page):
        assert f'id="{target}"' in page


def test_what_comes_from_outside_is_text_and_no_markup(report):
    page = (report / "report.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "a&lt;b&gt;|run" in page


def rows_of(text, heading):
    section = text.split(f"### {heading}", 1)[1].split("\n#", 1)[0]
    return [line for line in section.splitlines() if line.startswith("| ")][2:]


def test_rows_have_our_run_or_say_that_there_is_none(report):
    text = (report / "report.md").read_text()
    for number, count in ((1, 9), (2, 12), (3, 9), (4, 5)):
        rows = rows_of(text, f"Table {number}:")
        assert len(rows) == count
        for row in rows:
            assert ("no run of ours" in row) != ("`hps_06_05x`" in row)
    (row,) = [row for row in rows_of(text, "Table 2:") if "`hps_06_05x`" in row]
    for figure in ("82.44", "0.37", "67,670", "3.89", "module", "80.00 %", "full, 3 epochs", "1.5 (Some CPU, 1 thread"):
        assert figure in row
    # Both seeds, with their mean and how far they are apart.
    assert "2 seeds: mean 81.00 % (80.00 to 82.00)" in row


def test_the_data_say_the_same(report):
    with open(report / "tables.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 35
    (row,) = [row for row in rows if row["table"] == "2" and row["zoo_name"] == "hps_06_05x"]
    assert (row["explained_by"], row["our_accuracies"], row["parameters"]) == ("module", "80.00 82.00", "67670")
    assert sum(row["our_accuracy"] != "" for row in rows) == 3


def test_errors_claims_runs_and_sources_are_told(report):
    text = (report / "report.md").read_text()
    table5 = text.split("## Table 5, layer by layer")[1].split("## The claims")[0]
    marked = re.findall(r"\*\*[\d, x]+ → [\d, x]+\*\*", table5)
    assert len(marked) == 8
    assert "13 figures in 6 of 34 rows" in text
    assert "| 15 times | holds in another sense |" in text
    assert "14.95 over Baseline SqueezeNet-v1.1" in text
    assert "training 60.00 % after epoch 2, validation 56.25 % after epoch 2" in text
    assert "`hps fit --seed_everything 0`" in text
    assert "https://github.com/chenyaofo/pytorch-cifar-models" in text
    assert "Maxout networks | 90.65" in text


def test_studies_are_told_and_where_there_is_none_that_is_said(report, made, tmp_path):
    text = (report / "report.md").read_text()
    assert "`hps_06_05x`, 6 epochs each" in text
    assert "| Adam | 62.00 |" in text
    assert "Best: SGD with rate 0.1 under cosine (65.00 %, mean of 2 seeds); of the other optimizers: Adam" in text
    assert "SGD with Nesterov with rate 0.3 under step (61.00 %, mean of 2 seeds), place 3 of 3." in text
    assert "| relu | in place | float32 | ours | 12.5 |" in text
    assert "drew 3 networks" in text
    assert "1 done, 1 over the limits, 1 stopped early" in text
    assert "| 0 | 40.00 | 200.0 | 1 1 1 1, optimizer.lr 0.3351 |" in re.sub(r"stages ", "", text)
    write_report(tmp_path / "report", made / "checkpoints", None, [])
    text = (tmp_path / "report" / "report.md").read_text()
    assert "No study of ours is recorded" in text
    assert "No exploration of ours is recorded" in text


def test_an_earlier_report_on_other_results_is_replaced_with_its_pictures(report, made, tmp_path):
    folder = tmp_path / "report"
    shutil.copytree(report, folder)
    assert list(folder.glob("optimizers-*.png"))
    write_report(folder, made / "checkpoints", None, [])
    assert not list(folder.glob("optimizers-*.png"))


def test_an_earlier_report_is_replaced_and_anything_else_refused(report, made, tmp_path):
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "report.md").write_text("of an earlier report")
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis\.tex, which is no part of a report"):
        write_report(folder, made / "checkpoints", None, [])
    assert {path.name for path in folder.iterdir()} == {"report.md", "thesis.tex"}
    # What fails leaves the earlier one.
    (folder / "thesis.tex").unlink()
    with pytest.raises(UserError, match="nosuch"):
        write_report(folder, made / "checkpoints", None, [(Run("a", "nosuch", "full", "", CURVES), "a")])
    assert (folder / "report.md").read_text() == "of an earlier report"
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_results_that_cannot_be_read_stop_it(made, tmp_path):
    write(tmp_path / "results" / "run" / "benchmark.json", {"dataset": "cifar10"})
    with pytest.raises(UserError, match=r"benchmark\.json is no result"):
        write_report(tmp_path / "report", made / "checkpoints", tmp_path / "results", [])
    assert not (tmp_path / "report").exists()
    assert json.loads((tmp_path / "results" / "run" / "benchmark.json").read_text()) == {"dataset": "cifar10"}
