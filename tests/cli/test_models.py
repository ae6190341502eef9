import csv
import io
import json
import subprocess
import sys

from hps_lightning import zoo
from hps_lightning.cli import main


def run(capsys, *argv):
    assert main(["models", *argv]) == 0
    return capsys.readouterr().out


def test_table_lists_every_network_with_the_papers_figures(capsys):
    out = run(capsys)
    for name in zoo.ZOO:
        assert name in out
    row = next(line for line in out.splitlines() if "hps_06_05x" in line and "│" in line)
    for figure in ("1 1 1 1", "0.5", "67,670", "82.44", "0.37", "7"):
        assert figure in row


def test_csv_and_json_agree(capsys):
    rows = json.loads(run(capsys, "--format", "json", "--dataset", "cifar100"))
    table = list(csv.DictReader(io.StringIO(run(capsys, "--format", "csv", "--dataset", "cifar100"))))
    assert [row["name"] for row in rows] == [row["name"] for row in table]
    assert all(row["dataset"] == "cifar100" for row in rows)
    found = next(row for row in rows if row["name"] == "hps_14_1x")
    assert (found["parameters"], found["stages"], found["paper_size_mb"]) == (548460, [1, 2, 8, 1], 5.0)


def test_unknown_argument_ends_with_status_2(capsys):
    assert main(["models", "--dataset", "imagenet"]) == 2
    assert capsys.readouterr().err.startswith("hps: error: argument --dataset: invalid choice: 'imagenet'")


def test_table_does_not_wait_for_lightning():
    script = "import sys; from hps_lightning.cli import main; main(['models']); sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], stdout=subprocess.DEVNULL, check=False).returncode == 0
