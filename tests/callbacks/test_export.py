import json
import math
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from hps_lightning.bluebox import board_weights, export_weights, load_manifest
from hps_lightning.callbacks import export
from hps_lightning.callbacks.export import Export
from hps_lightning.networks import HighPerformanceSqueezeNext

from .tiny import CLASSES, LIGHTNING_WARNINGS, RESUME_WARNING, TinyData, tiny, tiny_trainer

pytestmark = [*LIGHTNING_WARNINGS, pytest.mark.train]


class Watch(Callback):
    """Keeps the weights after each validation, and the manifest of ``best/``, if any, at the end of each epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.weights, self.best = [], []

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.weights.append(board_weights(pl_module.network.state_dict()))

    def on_train_epoch_end(self, trainer, pl_module):
        exported = (self.folder / "manifest.json").exists()
        self.best.append(load_manifest(self.folder)["epoch"] if exported else None)


def bluebox(folder: Path) -> Path:
    return folder / "run" / "version_0" / "bluebox"


def exported(folder: Path) -> dict[str, torch.Tensor]:
    load_manifest(folder)
    return torch.load(folder / "weights.pt", weights_only=True)


def assert_same(weights, others):
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        assert torch.equal(value, others[name]), name


def test_best_is_written_only_where_the_accuracy_improves(tmp_path):
    watch = Watch(bluebox(tmp_path) / "best")
    trainer = tiny_trainer(tmp_path, Export(), watch, max_epochs=5)
    trainer.fit(tiny([0.3, 0.2, 0.6, 0.6, 0.5]), datamodule=TinyData())
    assert watch.best == [0, 0, 2, 2, 2]
    assert_same(exported(bluebox(tmp_path) / "best"), watch.weights[2])
    assert_same(exported(bluebox(tmp_path) / "last"), watch.weights[4])
    assert sorted(path.name for path in bluebox(tmp_path).iterdir()) == ["best", "last"]


def test_manifest(tmp_path):
    module = tiny([0.3, 0.6, 0.5])
    tiny_trainer(tmp_path, Export()).fit(module, datamodule=TinyData())
    best = load_manifest(bluebox(tmp_path) / "best")
    assert best["epoch"] == 1
    assert best["accuracy"] == {
        "metric": "val/accuracy",
        "value": pytest.approx(0.6),
        "protocol": "holdout",
        "measured_on": "training images that were held out",
    }
    assert best["classes"] == list(CLASSES)
    assert best["dataset"] == "made"
    assert best["network"]["class"] == "HighPerformanceSqueezeNext"
    last = load_manifest(bluebox(tmp_path) / "last")
    assert (last["epoch"], last["accuracy"]["value"]) == (2, pytest.approx(0.5))
    network = HighPerformanceSqueezeNext(**last["network"]["arguments"]).eval()
    network.load_state_dict(exported(bluebox(tmp_path) / "last"))
    images = torch.randn(2, 3, 32, 32)
    # Two memory layouts of the same weights add up in another order.
    torch.testing.assert_close(network(images), module.network.eval()(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("stop", "epoch"), [({"max_steps": 4}, 1), ({"max_epochs": 2}, 1)])
def test_the_last_epoch_is_named_however_the_training_stops(tmp_path, stop, epoch):
    tiny_trainer(tmp_path, Export(), **{"max_epochs": 3, **stop}).fit(tiny(), datamodule=TinyData())
    assert load_manifest(bluebox(tmp_path) / "last")["epoch"] == epoch


def test_without_validation_there_is_only_the_last(tmp_path):
    tiny_trainer(tmp_path, Export()).fit(tiny(), datamodule=TinyData(protocol="full"))
    assert [path.name for path in bluebox(tmp_path).iterdir()] == ["last"]
    assert load_manifest(bluebox(tmp_path) / "last")["accuracy"] is None


def test_an_accuracy_of_other_weights_is_not_claimed(tmp_path):
    trainer = tiny_trainer(tmp_path, Export(), max_epochs=3, check_val_every_n_epoch=2)
    trainer.fit(tiny([0, 0.5, 0]), datamodule=TinyData())
    assert load_manifest(bluebox(tmp_path) / "best")["accuracy"]["value"] == 0.5
    assert load_manifest(bluebox(tmp_path) / "last")["accuracy"] is None


@pytest.mark.parametrize("first", [Export, EMAWeightAveraging])
def test_averaged_weights_are_exported_as_they_were_validated(tmp_path, first):
    class Validated(Callback):
        def on_validation_batch_end(self, trainer, pl_module, *_):
            if trainer.current_epoch == 1:
                self.weights = board_weights(pl_module.network.state_dict())

    validated, watch, averaging = Validated(), Watch(bluebox(tmp_path) / "best"), EMAWeightAveraging(decay=0.5)
    callbacks = [Export(), averaging] if first is Export else [averaging, Export()]
    trainer = tiny_trainer(tmp_path, *callbacks, validated, watch)
    trainer.fit(tiny([0.3, 0.6, 0.5]), datamodule=TinyData())
    best = exported(bluebox(tmp_path) / "best")
    assert_same(best, validated.weights)
    assert not torch.equal(best["classifier.weight"], watch.weights[1]["classifier.weight"])
    assert load_manifest(bluebox(tmp_path) / "last")["accuracy"]["value"] == pytest.approx(0.5)


def test_the_sanity_check_exports_nothing(tmp_path):
    seen = []

    class Look(Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append(bluebox(tmp_path).exists())

    trainer = tiny_trainer(tmp_path, Export(), Look(), max_epochs=1, num_sanity_val_steps=2)
    trainer.fit(tiny([0.5]), datamodule=TinyData())
    assert seen == [False]


@RESUME_WARNING
@pytest.mark.parametrize("save_on_train_epoch_end", [False, True])
def test_the_best_score_survives_a_resume(tmp_path, save_on_train_epoch_end):
    checkpoint = ModelCheckpoint(
        dirpath=tmp_path / "checkpoints",
        filename="{epoch}",
        save_top_k=-1,
        save_on_train_epoch_end=save_on_train_epoch_end,
    )
    first = tiny_trainer(tmp_path, Export(), checkpoint, max_epochs=2, enable_checkpointing=True)
    first.fit(tiny([0.5, 0.6]), datamodule=TinyData())
    watch = Watch(bluebox(tmp_path) / "best")
    second = tiny_trainer(tmp_path, Export(), watch, max_epochs=5)
    second.fit(
        tiny([0, 0, 0.4, 0.7, 0.6]),
        datamodule=TinyData(),
        ckpt_path=str(tmp_path / "checkpoints" / "epoch=1.ckpt"),
        weights_only=True,
    )
    assert watch.best[-3:] == [1, 3, 3]


@RESUME_WARNING
@pytest.mark.parametrize("directory", [None, "~/board"])
def test_resuming_a_finished_training_leaves_its_exports(tmp_path, monkeypatch, directory):
    monkeypatch.setenv("HOME", str(tmp_path))
    manifest = (bluebox(tmp_path) if directory is None else tmp_path / "board") / "last" / "manifest.json"
    checkpoint = ModelCheckpoint(dirpath=tmp_path / "checkpoints", save_last=True)
    first = tiny_trainer(tmp_path, Export(directory), checkpoint, max_epochs=1, enable_checkpointing=True)
    first.fit(tiny([0.5]), datamodule=TinyData())
    before = manifest.read_text()
    second = tiny_trainer(tmp_path, Export(directory), max_epochs=1)
    second.fit(
        tiny([0.5]), datamodule=TinyData(), ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"), weights_only=True
    )
    assert manifest.read_text() == before
    assert json.loads(before)["accuracy"]["value"] == 0.5


def test_a_directory_of_ones_own(tmp_path):
    tiny_trainer(tmp_path, Export(str(tmp_path / "board")), max_epochs=1).fit(tiny(), datamodule=TinyData())
    assert sorted(path.name for path in (tmp_path / "board").iterdir()) == ["best", "last"]
    assert not bluebox(tmp_path).exists()


@pytest.mark.filterwarnings("ignore:.*was not found in the filesystem.*")
def test_a_fast_dev_run_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_trainer(tmp_path, Export(), fast_dev_run=True).fit(tiny(), datamodule=TinyData())
    assert list(tmp_path.rglob("weights.pt")) == []


def test_validating_alone_exports_nothing(tmp_path):
    tiny_trainer(tmp_path, Export()).validate(tiny(), datamodule=TinyData(), verbose=False)
    assert not bluebox(tmp_path).exists()


def test_what_cannot_be_written_costs_two_warnings_and_no_training(tmp_path):
    bluebox(tmp_path).parent.mkdir(parents=True)
    bluebox(tmp_path).write_text("a file where the directory should be")
    trainer = tiny_trainer(tmp_path, Export())
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message=".*export to")
        trainer.fit(tiny([0.3, 0.5, 0.6]), datamodule=TinyData())
    texts = [str(warning.message) for warning in caught if "export to" in str(warning.message)]
    best, last = str(bluebox(tmp_path) / "best"), str(bluebox(tmp_path) / "last")
    assert len(texts) == 3
    assert "goes on" in texts[0]
    assert "has ended" in texts[1]
    assert "has ended" in texts[2]
    assert best in texts[0]
    assert best in texts[1]
    assert last in texts[2]
    assert all("Not a directory" in text for text in texts)
    assert trainer.current_epoch == 3


@pytest.mark.filterwarnings("ignore:.*its export to .*best")
@pytest.mark.parametrize("directory", ["~nosuchuser/board", "loop/board", "x" * 300])
def test_a_directory_that_can_be_none_costs_no_training(tmp_path, monkeypatch, directory):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    trainer = tiny_trainer(tmp_path, Export(directory), max_epochs=1)
    with pytest.warns(UserWarning, match=r"cannot be written: .* has ended without its export to .*last"):
        trainer.fit(tiny([0.3]), datamodule=TinyData())
    assert trainer.current_epoch == 1


def test_a_best_that_could_not_be_written_is_written_later(tmp_path, monkeypatch):
    def fails_once(weights, directory, manifest, network, failed=[]):  # noqa: B006 (remembers the failure)
        if not failed:
            failed.append(True)
            raise export.UserError(f"{directory} cannot be written: disk full")
        return export_weights(weights, directory, manifest, network)

    monkeypatch.setattr(export, "export_weights", fails_once)
    watch = Watch(bluebox(tmp_path) / "best")
    with pytest.warns(UserWarning, match="disk full"):
        tiny_trainer(tmp_path, Export(), watch).fit(tiny([0.9, 0.3, 0.5]), datamodule=TinyData())
    assert watch.best == [None, 0, 0]
    assert_same(exported(bluebox(tmp_path) / "best"), watch.weights[0])


def test_a_diverged_training_leaves_the_good_export(tmp_path):
    class Diverge(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                pl_module.network.classifier.weight.data.fill_(math.nan)

    watch = Watch(bluebox(tmp_path) / "best")
    trainer = tiny_trainer(tmp_path, Export(), Diverge(), watch)
    with pytest.warns(UserWarning, match=r"NaN .*has ended without its export to .*last"):
        trainer.fit(tiny([0.3, 0.6, 0.0]), datamodule=TinyData())
    assert_same(exported(bluebox(tmp_path) / "best"), watch.weights[1])
    assert not (bluebox(tmp_path) / "last").exists()


@pytest.mark.filterwarnings("ignore:.*its export to .*best")
def test_images_that_no_bundle_takes_cost_a_warning(tmp_path, monkeypatch):
    given = TinyData.record
    grey = {"image_size": [1, 28, 28], "mean": [0.1], "std": [0.4]}
    monkeypatch.setattr(TinyData, "record", lambda self: {**given(self), **grey})
    trainer = tiny_trainer(tmp_path, Export(bundle=True), max_epochs=1)
    with pytest.warns(UserWarning, match=r"RGB images .* has ended without its export to .*last"):
        trainer.fit(tiny([0.5]), datamodule=TinyData())
    assert not bluebox(tmp_path).exists()


def test_data_that_says_nothing_of_itself_costs_a_warning(tmp_path):
    data = TinyData()
    trainer = tiny_trainer(tmp_path, Export(), max_epochs=1)
    with pytest.warns(UserWarning, match="nothing tells dataset, classes"):
        trainer.fit(tiny([0.5]), data.train_dataloader(), data.val_dataloader())
    assert not bluebox(tmp_path).exists()


class Draw(Callback):
    """Lets the weights depend on the random numbers that come after an export."""

    def on_train_epoch_start(self, trainer, pl_module):
        pl_module.network.classifier.bias.data += torch.rand(3)


@pytest.mark.parametrize("bundle", [False, True])
def test_exporting_does_not_change_the_training(tmp_path, bundle):
    trained = []
    for callbacks in ([Export(bundle=bundle)], []):
        module = tiny([0.3, 0.5, 0.6])
        tiny_trainer(tmp_path, *callbacks, Draw()).fit(module, datamodule=TinyData())
        trained.append({**module.network.state_dict(), "next": torch.rand(3)})
    assert_same(*trained)


def test_a_bundle_runs_by_itself(tmp_path):
    module = tiny([0.3, 0.6])
    tiny_trainer(tmp_path, Export(bundle=True), max_epochs=2).fit(module, datamodule=TinyData())
    for name in ("best", "last"):
        folder = bluebox(tmp_path) / name
        tested = subprocess.run([sys.executable, folder / "selftest.py"], capture_output=True, text=True, timeout=120)
        assert tested.returncode == 0, tested.stderr
        assert tested.stdout.endswith("selftest: passed\n")
        assert load_manifest(folder)["accuracy"]["value"] == pytest.approx(0.6)
