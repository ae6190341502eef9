from hps_lightning.report.measured import published
from hps_lightning.report.wording import accuracy, cell, named, seeds, short, table
from tests.report.test_measured import facts, write


def test_nothing_in_a_cell_is_markup():
    assert cell("a|b*c_d`<e>") == r"a\|b\*c\_d\`&lt;e&gt;"
    assert cell("two\nlines") == "two lines"


def test_table_is_markdown():
    assert table(("x", "y"), [("1", "2")]) == "| x | y |\n| --- | --- |\n| 1 | 2 |"


def test_a_run_tells_its_accuracy_and_its_seeds(tmp_path):
    write(tmp_path / "hps_06_05x-cifar10.json", facts())
    (run,) = published(tmp_path)
    assert named(run) == "`hps_06_05x` on CIFAR-10"
    assert accuracy(run) == "80.00 %"
    assert seeds(run) == "2 seeds: mean 81.00 % (80.00 to 82.00)"


def test_a_run_with_a_teacher_says_so(tmp_path):
    write(tmp_path / "hps_06_05x-cifar10.json", facts(distillation={"teacher": {"name": "hps_14_1x"}}))
    write(tmp_path / "hps_06_1x-cifar10.json", facts(distillation=None))
    taught, alone = published(tmp_path)
    assert named(taught) == "`hps_06_05x` (distilled from `hps_14_1x`) on CIFAR-10"
    assert taught.how == "full, distilled from hps_14_1x"
    assert named(alone) == "`hps_06_1x` on CIFAR-10"
    assert alone.how == "full"


def test_short_names():
    assert short("High Performance SqueezeNext-06-0.5x") == "HPS-06-0.5x"
    assert short("Baseline SqueezeNet-v1.1") == "SqueezeNet-v1.1"
