"""A network of the user's own, as the README describes it: trained, tested, continued and exported."""

import json
import re
import subprocess
import sys

import pytest

from hps_lightning.checkpoint import load_classifier
from hps_lightning.errors import UserError
from tests.test_readme import write_files

MODEL = "--model=tiny_classifier.TinyClassifier"
TINY = ["--data.dataset=digits", "--data.batch_size=16", "--trainer.limit_train_batches=2", "--trainer.max_epochs=1"]
TINY += ["--trainer.limit_val_batches=1", "--trainer.accelerator=cpu", "--lr_scheduler=null"]


def forget(monkeypatch):
    for name in ("tiny_network", "tiny_classifier"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The README's files, importable and not yet imported; called, it changes one of them."""
    write_files(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    forget(monkeypatch)

    def change(name, old, new):
        path = tmp_path / name
        content = path.read_text(encoding="utf-8")
        assert old in content
        path.write_text(content.replace(old, new), encoding="utf-8")

    yield change
    forget(monkeypatch)


@pytest.mark.filterwarnings("ignore")
def test_it_goes_all_the_way_and_only_by_its_name(hps, own, tmp_path, monkeypatch):
    # The config's network has a width and stages, which are not this one's.
    status, out, err = hps("fit", "--config=fast/hps_06_05x.yaml", MODEL, "--model.channels=8", *TINY)
    assert status == 0, err
    (last,) = tmp_path.rglob("last.ckpt")
    (line,) = re.findall(r"test it +(.*)", out)
    assert line == (
        f"python -m hps_lightning test --ckpt_path {last.relative_to(tmp_path).with_name('best.ckpt')} "
        "--model tiny_classifier.TinyClassifier"
    )

    forget(monkeypatch)
    for command in ("fit", "validate", "test", "predict"):
        status, _, err = hps(command, "--ckpt_path", last)
        assert status == 2
        assert "a network 'tiny_classifier.TinyClassifier' that is unknown" in err
        assert "name it: --model MODULE.CLASS" in err
    with pytest.raises(UserError, match=r"a program imports it before\.$"):
        load_classifier(last)
    assert "tiny_classifier" not in sys.modules

    for words in ([MODEL], ["--config", last.parent.parent / "config.yaml"]):
        forget(monkeypatch)
        status, out, err = hps("test", "--ckpt_path", last, *words)
        assert status == 0, err
        assert "of 359 images" in out
    status, out, err = hps("fit", "--ckpt_path", last, "--trainer.max_epochs=2", MODEL)
    assert status == 0, err
    assert "Training finished: 2 of 2 epochs" in out
    assert load_classifier(last).network.convolution.out_channels == 8

    forget(monkeypatch)
    status, _, err = hps("export", "--ckpt_path=last", MODEL, "--output=bundle", "--formats", "pytorch")
    assert status == 0, err
    assert "does not hold" not in err
    done = subprocess.run([sys.executable, "selftest.py"], cwd=tmp_path / "bundle", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.train
@pytest.mark.filterwarnings("ignore")
def test_trainings_of_several_seeds_import_it_too(hps, own, tmp_path):
    status, out, err = hps("fit", MODEL, *TINY, "--seeds=1")
    assert status == 0, err
    folder = "runs/TinyClassifier-digits/seeds_0"
    assert f"  python -m hps_lightning test --ckpt_path {folder} --model tiny_classifier.TinyClassifier\n" in out
    assert (tmp_path / folder / "seed_0" / "checkpoints" / "last.ckpt").is_file()
    group = tmp_path / folder / "seeds.json"
    group.write_text(json.dumps({**json.loads(group.read_text()), "figures": {}}))
    status, _, err = hps("test", "--ckpt_path", folder, MODEL)
    assert status == 2
    assert f"Go on with them first: python -m hps_lightning fit {MODEL}" in err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "        lr_scheduler: dict | None = None,\n    ) -> None:\n",
            "    ) -> None:\n        lr_scheduler = None\n",
            "tiny_classifier.TinyClassifier takes no lr_scheduler, so that",
        ),
        (
            "        self.save_hyperparameters()\n",
            "",
            "does not keep channels, lr_scheduler, num_classes, optimizer, so that it could not be built anew",
        ),
        (
            "        self.save_hyperparameters()\n",
            "        self.save_hyperparameters()\n        self.hparams['network'] = self.network\n",
            "tiny_classifier.TinyClassifier has a TinyNetwork among its arguments",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_no_checkpoint_could_hold_is_refused_before_it_trains(hps, own, tmp_path, old, new, message):
    own("tiny_classifier.py", old, new)
    status, _, err = hps("fit", MODEL, *TINY)
    assert status == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.filterwarnings("ignore")
def test_a_file_that_cannot_be_imported_any_more_is_said(hps, own, tmp_path, monkeypatch):
    assert hps("fit", MODEL, *TINY)[0] == 0
    forget(monkeypatch)
    own("tiny_network.py", "from torch import nn", "from torch import nm")
    (last,) = tmp_path.rglob("last.ckpt")
    status, _, err = hps("test", "--ckpt_path", last, MODEL)
    assert status == 2
    assert "tiny_classifier.TinyClassifier cannot be imported: ImportError" in err
