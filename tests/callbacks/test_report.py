import math
import shlex
import signal
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import TensorDataset

from hps_lightning.callbacks.report import Report, _display, _seconds

from .helpers import LIGHTNING_WARNINGS, TinyData, quiet_trainer, tiny_classifier

pytestmark = LIGHTNING_WARNINGS


def rows(text):
    """The printed lines by what stands at their beginning."""
    lines = [line.strip() for line in text.splitlines() if line.startswith("  ")]
    return {name.strip(): value.strip() for name, _, value in (line.partition("  ") for line in lines)}


def best_and_last(folder, **arguments):
    return ModelCheckpoint(
        dirpath=folder, filename="best", monitor="val/accuracy", mode="max", save_last=True, **arguments
    )


class Interruption(Callback):
    """Presses Ctrl+C in an epoch, counted from 1."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_end(self, trainer, *args):
        if trainer.current_epoch + 1 == self.epoch:
            raise KeyboardInterrupt


@pytest.fixture
def interrupted():
    """Runs a fit that ends with Ctrl+C, whose signal Lightning leaves switched off."""
    handler = signal.getsignal(signal.SIGINT)

    def fit(trainer, model, data):
        with pytest.raises(SystemExit):
            trainer.fit(model, data)

    yield fit
    signal.signal(signal.SIGINT, handler)


class TestFit:
    def test_says_what_was_reached_and_what_to_type(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        callbacks = [Report(), best_and_last("my runs")]
        trainer = quiet_trainer(Path("logs"), callbacks=callbacks, enable_checkpointing=True)
        trainer.fit(tiny_classifier(), TinyData())
        text = capsys.readouterr().out
        assert "Training finished: 2 of 2 epochs, " in text
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        found = rows(text)
        assert found["training"] == (
            f"accuracy {100 * metrics['train/accuracy']:.2f} %, loss {metrics['train/loss']:.4f}"
        )
        assert found["last validation"] == (
            f"accuracy {100 * metrics['val/accuracy']:.2f} %, loss {metrics['val/loss']:.4f}"
        )
        best = float(callbacks[1].best_model_score)
        assert found["best validation"].startswith(f"accuracy {100 * best:.2f} % in epoch ")
        assert found["best checkpoint"] == "my runs/best.ckpt"
        assert found["last checkpoint"] == "my runs/last.ckpt"
        assert found["TensorBoard"] == "tensorboard --logdir logs/runs"
        assert shlex.split(found["test it"]) == ["hps", "test", "--ckpt_path", "my runs/best.ckpt"]
        assert Path("my runs/best.ckpt").exists()

    @pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
    def test_without_validation_the_last_is_tested(self, tmp_path, capsys):
        callbacks = [Report(), ModelCheckpoint(dirpath=tmp_path, save_last=True)]
        trainer = quiet_trainer(tmp_path, callbacks=callbacks, enable_checkpointing=True, logger=False)
        trainer.fit(tiny_classifier(), TinyData(protocol="full"))
        found = rows(capsys.readouterr().out)
        assert {"best validation", "last validation", "best checkpoint", "TensorBoard"}.isdisjoint(found)
        assert found["test it"] == f"hps test --ckpt_path {tmp_path}/last.ckpt"

    def test_says_what_later_callbacks_wrote(self, tmp_path, capsys):
        class Weights(Callback):
            weights_path = ""

            def on_fit_end(self, trainer, pl_module):
                self.weights_path = str(tmp_path / "weights.ckpt")

        trainer = quiet_trainer(tmp_path, callbacks=[Report(), Weights()], logger=False)
        trainer.fit(tiny_classifier(), TinyData())
        found = rows(capsys.readouterr().out)
        assert found["weights"] == f"{tmp_path}/weights.ckpt"
        assert "test it" not in found

    def test_long_paths_stay_in_one_piece(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "40")
        folder = tmp_path / ("long" * 30)
        trainer = quiet_trainer(tmp_path, callbacks=[Report(), best_and_last(folder)], enable_checkpointing=True)
        trainer.fit(tiny_classifier(), TinyData())
        assert f"hps test --ckpt_path {folder}/best.ckpt\n" in capsys.readouterr().out

    # It is the folder of the training that is resumed.
    @pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
    def test_resuming_keeps_the_best(self, tmp_path, capsys):
        folder = tmp_path / "kept"
        first = quiet_trainer(
            tmp_path, callbacks=[Report(), best_and_last(folder)], enable_checkpointing=True, max_epochs=1
        )
        first.fit(tiny_classifier(), TinyData())
        content = torch.load(folder / "last.ckpt", weights_only=True)
        # Saved with the validation that came just before.
        accuracy = float(first.callback_metrics["val/accuracy"])
        assert content["callbacks"]["Report"]["best"]["accuracy"] == pytest.approx(accuracy)
        content["callbacks"]["Report"]["best"] = {"accuracy": 2.0, "loss": 0.0, "epoch": 1}
        torch.save(content, tmp_path / "changed.ckpt")
        capsys.readouterr()
        second = quiet_trainer(tmp_path, callbacks=[Report(), best_and_last(folder)], enable_checkpointing=True)
        second.fit(tiny_classifier(), TinyData(), ckpt_path=tmp_path / "changed.ckpt")
        assert rows(capsys.readouterr().out)["best validation"] == "accuracy 200.00 % in epoch 1"


class TestInterruption:
    def test_says_how_to_resume(self, tmp_path, monkeypatch, capsys, interrupted):
        monkeypatch.chdir(tmp_path)
        callbacks = [Report(), best_and_last("kept"), Interruption(epoch=2)]
        trainer = quiet_trainer(tmp_path, callbacks=callbacks, enable_checkpointing=True, max_epochs=5)
        interrupted(trainer, tiny_classifier(), TinyData())
        text = capsys.readouterr().out
        assert "Training interrupted in epoch 2 of 5, " in text
        found = rows(text)
        assert found["best validation"].endswith("in epoch 1")
        assert found["resume it"] == "hps fit --ckpt_path kept/last.ckpt"
        assert "test it" not in found

    def test_knows_the_checkpoint_of_the_interruption(self, tmp_path, capsys, interrupted):
        callbacks = [Report(), best_and_last(tmp_path / "kept", save_on_exception=True), Interruption(epoch=1)]
        trainer = quiet_trainer(tmp_path, callbacks=callbacks, enable_checkpointing=True)
        interrupted(trainer, tiny_classifier(), TinyData())
        assert rows(capsys.readouterr().out)["resume it"] == f"hps fit --ckpt_path {tmp_path}/kept/last.ckpt"

    def test_before_anything_was_saved(self, tmp_path, capsys, interrupted):
        callbacks = [Report(), best_and_last(tmp_path / "kept"), Interruption(epoch=1)]
        trainer = quiet_trainer(tmp_path, callbacks=callbacks, enable_checkpointing=True)
        interrupted(trainer, tiny_classifier(), TinyData())
        assert rows(capsys.readouterr().out)["resume it"] == "nothing was saved yet; start it again"

    def test_other_exceptions_say_enough(self, tmp_path, capsys):
        class Failure(Callback):
            def on_train_batch_end(self, *args):
                raise RuntimeError("broken")

        with pytest.raises(RuntimeError, match="broken"):
            quiet_trainer(tmp_path, callbacks=[Report(), Failure()]).fit(tiny_classifier(), TinyData())
        assert capsys.readouterr().out == ""


RIGHT = 5
"""How many of the 12 images of TinyData are made to be recognised."""


def known_data(model, protocol):
    """Data with such labels that the model is right RIGHT times."""
    data = TinyData(protocol=protocol)
    for name in ("val_set", "test_set"):
        images, _ = getattr(data, name).tensors
        with torch.no_grad():
            labels = model.eval()(images).argmax(1)
        labels[RIGHT:] = (labels[RIGHT:] + 1) % 10
        setattr(data, name, TensorDataset(images, labels))
    return data


class TestEvaluation:
    def evaluate(self, folder, capsys, how="test", record=None, protocol="holdout", **arguments):
        model = tiny_classifier()
        model.checkpoint_record = record
        data = known_data(model, protocol)
        trainer = quiet_trainer(folder, callbacks=[Report()], logger=False, **arguments)
        capsys.readouterr()
        getattr(trainer, how)(model, data, verbose=False)
        text = capsys.readouterr().out
        assert text.strip().startswith({"test": "Test\n", "validate": "Validation\n"}[how])
        return rows(text)

    @pytest.mark.parametrize("how", ["test", "validate"])
    def test_counts_exactly(self, tmp_path, capsys, how):
        found = self.evaluate(tmp_path, capsys, how)
        assert found["accuracy"] == "41.67 % (5 of 12 images)"
        assert found["protocol"] == "holdout"
        assert found["data"] == f"Tiny-10, {'test' if how == 'test' else 'hold-out'} images"
        assert math.isfinite(float(found["loss"]))
        assert float(found["top-5"].rstrip(" %")) >= 41.67
        assert "in training" not in found

    def test_a_second_test_starts_over(self, tmp_path, capsys):
        model, data = tiny_classifier(), TinyData()
        trainer = quiet_trainer(tmp_path, callbacks=[Report()], logger=False)
        trainer.test(model, data, verbose=False)
        first = capsys.readouterr().out
        trainer.test(model, data, verbose=False)
        assert capsys.readouterr().out == first

    def test_names_the_checkpoint(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        model, data = tiny_classifier(), TinyData()
        trainer = quiet_trainer(tmp_path, logger=False)
        trainer.strategy.connect(model)
        trainer.save_checkpoint("some.ckpt")
        trainer = quiet_trainer(tmp_path, callbacks=[Report()], logger=False)
        trainer.test(model, data, ckpt_path="some.ckpt", verbose=False)
        assert rows(capsys.readouterr().out)["checkpoint"] == "some.ckpt"

    def record(self, correct, protocol, **settings):
        # As a checkpoint keeps it: a float32, read as a float.
        accuracy = float(torch.tensor(correct / 12))
        return {
            "metrics": {"val/accuracy": accuracy},
            "protocol": protocol,
            "dataset": "tiny",
            "data": {"val_fraction": 0.1, "split_seed": 0, **settings},
        }

    def test_agrees_with_the_training(self, tmp_path, capsys):
        record = self.record(RIGHT, "paper")
        found = self.evaluate(tmp_path, capsys, record=record, protocol="paper")
        assert found["in training"] == "41.67 % on the test images: agrees"

    def test_does_not_agree_with_the_training(self, tmp_path, capsys):
        record = self.record(RIGHT + 1, "paper")
        found = self.evaluate(tmp_path, capsys, record=record, protocol="paper")
        assert found["in training"].endswith("does not agree, 6 right then and 5 now")

    def test_hold_out_images_are_no_test_images(self, tmp_path, capsys):
        found = self.evaluate(tmp_path, capsys, record=self.record(6, "holdout"))
        assert found["in training"] == ("50.00 % on the hold-out images: other images, so that the two need not agree")

    @pytest.mark.parametrize(
        ("change", "same"),
        [
            ({}, True),
            ({"split_seed": 1}, False),
            ({"val_fraction": 0.2}, False),
            ({"protocol": "paper"}, False),
            ({"dataset": "other"}, False),
            ({"data": None}, False),
            ({"limit_val_batches": 1}, False),
            ({"limit_val_batches": 0.5}, False),
            ({"limit_val_batches": 1.0}, True),
        ],
        ids=str,
    )
    def test_compares_validations_of_the_same_images_alone(self, tmp_path, capsys, change, same):
        settings = {key: change[key] for key in ("split_seed", "val_fraction") if key in change}
        record = self.record(RIGHT, "holdout", **settings)
        record |= {key: change[key] for key in ("protocol", "dataset", "data") if key in change}
        limits = {key: change[key] for key in change if key.startswith("limit")}
        found = self.evaluate(tmp_path, capsys, "validate", record, **limits)
        assert found["in training"].endswith("agrees" if same else "need not agree")

    @pytest.mark.parametrize("record", [{}, {"metrics": {}}, {"metrics": None}])
    def test_a_record_without_metrics_is_no_matter(self, tmp_path, capsys, record):
        found = self.evaluate(tmp_path, capsys, record=record)
        assert "in training" not in found

    def test_names_the_teacher(self, tmp_path, capsys):
        found = self.evaluate(tmp_path, capsys, record={"distillation": {"teacher": {"name": "hps_14_1x"}}})
        assert found["teacher"] == "hps_14_1x"

    @pytest.mark.parametrize("said", [None, [], "hps", {"teacher": 3}, {"teacher": {}}])
    def test_whatever_a_checkpoint_says_of_a_teacher_is_no_matter(self, tmp_path, capsys, said):
        assert "teacher" not in self.evaluate(tmp_path, capsys, record={"distillation": said})

    def test_validation_within_a_training_is_not_printed(self, tmp_path, capsys):
        quiet_trainer(tmp_path, callbacks=[Report()]).fit(tiny_classifier(), TinyData())
        assert "Validation" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("duration", "text"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1 min 0 s"), (3599.7, "1 h 0 min"), (9000, "2 h 30 min")],
)
def test_durations(duration, text):
    assert _seconds(duration) == text


def test_paths_are_relative_inside_the_working_directory_alone(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert _display(str(tmp_path / "here" / "a" / "b.ckpt")) == str(Path("a/b.ckpt"))
    assert _display("a/b.ckpt") == str(Path("a/b.ckpt"))
    assert _display(str(tmp_path / "b.ckpt")) == str(tmp_path / "b.ckpt")
    assert _display("s3://bucket/b.ckpt") == "s3://bucket/b.ckpt"
