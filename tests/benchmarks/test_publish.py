import json
import shutil
from pathlib import Path

import publish
import pytest
import torch
import yaml

from hps_lightning.cli import main
from hps_lightning.errors import UserError
from hps_lightning.modules import RECORD_KEY

pytestmark = pytest.mark.train

OPTIONS = ["--data.dataset=digits", "--data.protocol=full", "--trainer.limit_train_batches=2", "--trainer.max_epochs=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two batches of digits."""
    folder = tmp_path_factory.mktemp("trained")
    assert main(["fit", "--model=hps_06_05x", *OPTIONS, f"--trainer.default_root_dir={folder}"]) == 0
    return next(folder.glob("*/version_0"))


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "runs" / "hps_06_05x-digits" / "version_0"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "FOLDER", tmp_path / "published")
    return tmp_path / "published"


def change(run, **said):
    path = run / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    content[RECORD_KEY].update(said)
    torch.save(content, path)


def test_weights_facts_and_configuration_are_published_under_the_zoos_name(run, folder):
    assert publish.publish([run], "hps fit ...") == "hps_06_05x-digits"
    assert {path.name for path in folder.iterdir()} == {
        f"hps_06_05x-digits.{kind}" for kind in ("ckpt", "json", "yaml")
    }
    facts = json.loads((folder / "hps_06_05x-digits.json").read_text())
    assert facts["command"] == "hps fit ..."
    assert facts["test"]["correct"] == round(facts["test"]["accuracy"] * facts["test"]["images"])
    assert [seed["correct"] for seed in facts["seeds"]] == [facts["test"]["correct"]]


def test_a_seed_with_another_teacher_is_another_training(run, folder, tmp_path):
    other = reseed(Path(shutil.copytree(run, tmp_path / "runs" / "hps_06_05x-digits" / "version_1")), 1)
    publish.publish([run, other], "hps fit ...")
    wide = {"class_path": "HPSClassifier", "init_args": {"stages": [1, 1, 1, 1], "width": 2.0}}
    change(other, distillation={"teacher": {"sha256": "0", "model": wide}})
    with pytest.raises(UserError, match="version_1 had another teacher than"):
        publish.publish([run, other], "hps fit ...")
    publish.publish([other], "hps fit ...")
    assert "| `hps_06_05x`, distilled from `hps_06_1x with width 2` | digits |" in publish.table()


def test_a_seed_counts_once(run, folder):
    other = Path(shutil.copytree(run, run.with_name("version_1")))
    with pytest.raises(UserError, match=r"has the seed 0, as another run has"):
        publish.publish([run, other], "hps fit ...")
    assert not folder.exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("no facts", "benchmark.json"),
        ("no name", "without a name of its own"),
        ("hold-out", "publish 'full' alone"),
        ("unfinished", "is at epoch"),
    ],
)
def test_what_cannot_be_published_replaces_nothing(run, folder, spoil, message):
    publish.publish([run], "hps fit ...")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    if spoil == "no facts":
        (run / "benchmark.json").unlink()
    elif spoil == "no name":
        model = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)[RECORD_KEY]["model"]
        change(run, model={**model, "init_args": {**model["init_args"], "width": 0.51}})
    else:
        change(run, **({"protocol": "holdout"} if spoil == "hold-out" else {"max_epochs": 9}))
    with pytest.raises(UserError, match=message):
        publish.publish([run], "hps fit again")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_result_that_is_not_published_may_have_any_network(run, tmp_path):
    model = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)[RECORD_KEY]["model"]
    change(run, model={**model, "init_args": {**model["init_args"], "label_smoothing": 0.3}})
    publish.publish([run], "hps fit ...", tmp_path / "kept")
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"weights.ckpt", "benchmark.json", "config.yaml"}


def reseed(run, seed, **changes):
    path = run / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["seed_everything"] = seed
    for part, change in changes.items():
        config[part].update(change)
    path.write_text(yaml.safe_dump(config))
    return run


def test_a_further_seed_is_counted_and_replaces_nothing(run, folder, tmp_path):
    publish.publish([run], "hps fit ...")
    weights = (folder / "hps_06_05x-digits.ckpt").read_bytes()
    further = reseed(Path(shutil.copytree(run, run.with_name("version_1"))), 7)
    assert publish.add([further]) == "hps_06_05x-digits"
    facts = json.loads((folder / "hps_06_05x-digits.json").read_text())
    assert [seed["seed"] for seed in facts["seeds"]] == [0, 7]
    assert facts["seeds"][0]["correct"] == facts["seeds"][1]["correct"] == facts["test"]["correct"]
    assert (folder / "hps_06_05x-digits.ckpt").read_bytes() == weights


@pytest.mark.parametrize(("seed", "changes", "message"), [
    (0, {}, "seed 0 of hps_06_05x-digits is counted already"),
    (7, {"trainer": {"max_epochs": 2}}, "in more than its seed"),
    (7, {"optimizer": {"class_path": "SGD"}}, "in more than its seed"),
])  # fmt: skip
def test_what_is_no_further_seed_is_refused(run, folder, seed, changes, message):
    publish.publish([run], "hps fit ...")
    before = (folder / "hps_06_05x-digits.json").read_bytes()
    with pytest.raises(UserError, match=message):
        publish.add([reseed(run, seed, **changes)])
    assert (folder / "hps_06_05x-digits.json").read_bytes() == before


def test_seeds_of_nothing_published_are_refused(run, folder):
    with pytest.raises(UserError, match="not published yet"):
        publish.add([run])


def test_the_published_table_is_that_of_the_facts():
    assert f"\n\n{publish.table()}\n\n" in (publish.FOLDER / "README.md").read_text(encoding="utf-8")
