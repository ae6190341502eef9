"""The whole way of a user, on two batches of digits: fit, test, validate, predict, continue."""

import csv
import math
import os
import re
import shlex
import signal

import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.kill_soak import run_differences
from hps_lightning.modules import ImageClassifier
from tests.cli.conftest import TINY, UNSEEN

pytestmark = pytest.mark.train


def fit(hps, *argv, epochs=2):
    status, out, err = hps("fit", "--model=hps_06_05x", *TINY, f"--trainer.max_epochs={epochs}", *argv)
    assert status == 0, err
    return out


def number(text, pattern):
    return float(re.search(pattern, text).group(1))


def shown(folder):
    """The pictures in TensorBoard, and whether it has the network's graph."""
    tags = EventAccumulator(str(folder)).Reload().Tags()
    return set(tags["images"]), tags["graph"]


def test_fit_leaves_what_it_promises_and_prints_the_command_that_tests_it(hps, tmp_path):
    # With everything that is there by default.
    small = [option for option in TINY if option not in UNSEEN]
    status, out, err = hps("fit", "--model=hps_06_05x", *small, "--trainer.max_epochs=2")
    assert status == 0, err
    run = tmp_path / "runs" / "hps-digits" / "version_0"
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "checkpoints/weights.ckpt", "config.yaml"):
        assert (run / name).is_file(), name
    assert (run / "benchmark.json").is_file()
    assert (run / "bluebox" / "last" / "manifest.json").is_file()
    assert shown(run) == ({"val/confusion", "val/samples"}, True)
    command = re.search(r"hps (test --ckpt_path \S+)", out).group(1)
    status, out, err = hps(*command.split())
    assert status == 0, err
    assert "359" in out
    assert shown(run / "test") == ({"test/confusion", "test/samples"}, False)


def test_tensorboards_pictures_can_be_left_out(hps, tmp_path):
    fit(hps)
    (run,) = (tmp_path / "runs").glob("*/*")
    assert shown(run) == ({"val/confusion"}, False)
    status, _, err = hps("fit", "--ckpt_path=last", "--trainer.max_epochs=3", "--dashboard.samples=4")
    assert status == 0, err
    assert shown(run) == ({"val/confusion", "val/samples"}, False)


def test_a_run_from_before_the_dashboard_had_options_goes_on(hps, tmp_path):
    fit(hps, epochs=1)
    path = next(tmp_path.rglob("config.yaml"))
    config = yaml.safe_load(path.read_text())
    assert config.pop("dashboard") == {"samples": 0, "graph": False}
    path.write_text(yaml.safe_dump(config))
    status, _, err = hps("fit", "--ckpt_path=last", "--trainer.max_epochs=2")
    assert status == 0, err
    assert "val/samples" in shown(path.parent)[0]


def test_test_and_validate_need_no_config_and_give_back_what_training_reported(hps, tmp_path):
    fit(hps, "--data.protocol=paper", "--data.augmentation.flip=false")
    record = torch.load(next(tmp_path.rglob("last.ckpt")), weights_only=True)["hps_lightning"]
    for command in ("test", "validate"):
        status, out, err = hps(command, "--ckpt_path", "last")
        assert status == 0, err
        correct, total = map(int, re.search(r"([\d,]+) of ([\d,]+)", out.replace(",", "")).groups())
        assert total == 359
        assert correct / total == pytest.approx(record["metrics"]["val/accuracy"], abs=1e-6)


def test_protocol_full_keeps_the_last_alone(hps, tmp_path):
    fit(hps, "--data.protocol=full")
    names = {path.name for path in (tmp_path / "runs").rglob("*.ckpt")}
    assert names == {"last.ckpt", "weights.ckpt"}
    assert hps("test", "--ckpt_path", "last")[0] == 0
    status, _, err = hps("validate", "--ckpt_path", "last")
    assert status == 2
    assert "full" in err


def test_prediction_of_a_users_own_images(hps, tmp_path):
    fit(hps)
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (300, 200), "red").save(photos / "red.png")
    Image.new("L", (9, 40), 128).save(photos / "grey, tall.jpg")
    target = tmp_path / "out.csv"
    arguments = ["--ckpt_path", "best", "--images", photos, "--predictions.output", target, "--predictions.top_k", "2"]
    status, _, err = hps("predict", *arguments)
    assert status == 0, err
    rows = list(csv.DictReader(target.read_text().splitlines()))
    assert [row["file"] for row in rows] == [str(photos / "grey, tall.jpg"), str(photos / "red.png")]
    assert 0 <= float(rows[0]["rank2_probability"]) <= float(rows[0]["rank1_probability"]) <= 1
    status, out, err = hps("predict", "--ckpt_path", "best", "--images", photos / "red.png")
    assert status == 0, err
    assert "red.png" in out


def test_a_broken_image_given_by_name_is_an_error(hps, tmp_path):
    fit(hps, epochs=1)
    (tmp_path / "text.png").write_text("no image")
    status, _, err = hps("predict", "--ckpt_path", "best", "--images", "text.png")
    assert status == 2
    assert "text.png" in err


def state(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("schedule", ["multi_step", "cosine", "reduce_on_plateau", "exponential", None])
def test_continued_training_equals_an_uninterrupted_one(hps, tmp_path, monkeypatch, schedule):
    arguments = ["--model.dropout=0.3", *([f"--lr_scheduler={schedule}"] if schedule else [])]
    arguments.append("--trainer.precision=" + ("bf16-mixed" if schedule == "cosine" else "32-true"))
    if schedule == "multi_step":
        arguments.append("--lr_scheduler.milestones=[1,2,3]")
    if schedule == "reduce_on_plateau":
        arguments.append("--lr_scheduler.patience=0")
    if schedule == "exponential":
        # Lightning goes on in another way where it is given, even if it is never reached.
        arguments.append("--trainer.max_steps=1000")
    fit(hps, *arguments, "--trainer.default_root_dir=whole", epochs=4)
    whole = state(next((tmp_path / "whole").rglob("last.ckpt")))

    from hps_lightning.modules import ImageClassifier

    original = ImageClassifier.on_train_epoch_start

    def stop(self):
        if self.current_epoch == 2:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(ImageClassifier, "on_train_epoch_start", stop)
    hps("fit", "--model=hps_06_05x", *TINY, *arguments, "--trainer.max_epochs=4", "--trainer.default_root_dir=parts")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    parts = next((tmp_path / "parts").rglob("last.ckpt"))
    assert state(parts)["epoch"] == 1
    status, out, err = hps("fit", "--ckpt_path=last", "--trainer.default_root_dir=parts")
    assert status == 0, err
    assert "Continuing" in out
    after = state(parts)
    assert after["epoch"] == whole["epoch"] == 3
    assert after["lr_schedulers"] == whole["lr_schedulers"]
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, after["state_dict"][name]), name
    assert len(list((tmp_path / "parts").rglob("version_*"))) == 1, "it goes on in its own folder"


EMA = ["--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.9"]
SMALLER = "--trainer.callbacks+=hps_lightning.callbacks.ProgressiveResolution"


@pytest.mark.parametrize(
    ("number", "step", "left", "arguments"),
    [
        (
            signal.SIGTERM,
            2,
            (3, 3),
            ["--optimizer=muon", "--lr_scheduler=OneCycleLR", "--data.augmentation.mixup=0.2", *EMA, SMALLER],
        ),
        # Gradients of one batch are not left behind, so that the next one is trained too; a schedule of each step.
        (
            signal.SIGINT,
            1,
            (2, 4),
            [
                "--trainer.precision=bf16-mixed",
                "--trainer.accumulate_grad_batches=2",
                "--optimizer=adabound",
                "--lr_scheduler=cyclic",
                "--data.num_workers=1",
            ],
        ),
        # In an epoch's last step, which ends with its validation.
        (signal.SIGTERM, 9, (10, 0), ["--optimizer=adam", "--trainer.val_check_interval=2"]),
    ],
    ids=["SIGTERM", "SIGINT", "at an epoch's end"],
)
def test_a_signal_ends_a_training_where_it_goes_on_exactly(hps, tmp_path, monkeypatch, number, step, left, arguments):
    arguments = [*arguments, "--model.dropout=0.3", "--trainer.limit_train_batches=5", "--trainer.log_every_n_steps=2"]
    fit(hps, *arguments, "--trainer.default_root_dir=whole", epochs=3)

    from hps_lightning.modules import ImageClassifier

    original = ImageClassifier.training_step

    def training_step(self, batch, batch_idx):
        if self.global_step == step and batch_idx % self.trainer.accumulate_grad_batches == 0:
            os.kill(os.getpid(), number)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(ImageClassifier, "training_step", training_step)
    handlers = {each: signal.signal(each, signal.default_int_handler) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        arguments += ["--trainer.max_epochs=3", "--trainer.default_root_dir=parts"]
        status, out, err = hps("fit", "--model=hps_06_05x", *TINY, *arguments)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert status == 128 + number
    assert "Traceback" not in err
    assert f"interrupted by {number.name} in epoch" in out
    command = re.search(r"hps (fit --ckpt_path \S+)", out).group(1)
    checkpoint = state(next((tmp_path / "parts").rglob("last.ckpt")))
    assert (checkpoint["global_step"], checkpoint["ImageDataModule"]["batches"]) == left
    status, _, err = hps(*command.split())
    assert status == 0, err
    whole, parts = (next((tmp_path / name).rglob("version_0")) for name in ("whole", "parts"))
    assert run_differences(whole, parts) == []


@pytest.mark.parametrize("how", ["max_steps", "should_stop"])
def test_a_training_that_ends_inside_an_epoch_goes_on_with_its_rest(hps, tmp_path, monkeypatch, how):
    # A schedule of epochs, of which the one that is cut short must not count twice.
    arguments = ["--trainer.limit_train_batches=4", "--lr_scheduler=exponential", "--model.dropout=0.3"]
    # Without a validation, and with a checkpoint that is due, too.
    arguments += ["--data.protocol=full", "--last_checkpoint.every_n_train_steps=6"] if how == "should_stop" else []
    fit(hps, *arguments, "--trainer.default_root_dir=whole")
    arguments.append("--trainer.default_root_dir=parts")
    if how == "should_stop":
        # As max_time does.
        from hps_lightning.modules import ImageClassifier

        original = ImageClassifier.training_step

        def training_step(self, batch, batch_idx):
            self.trainer.should_stop |= self.global_step == 5
            return original(self, batch, batch_idx)

        monkeypatch.setattr(ImageClassifier, "training_step", training_step)
    else:
        arguments.append("--trainer.max_steps=6")
    fit(hps, *arguments)
    if how == "should_stop":
        monkeypatch.setattr(ImageClassifier, "training_step", original)
    parts = next((tmp_path / "parts").rglob("last.ckpt"))
    assert (state(parts)["global_step"], state(parts)["ImageDataModule"]["batches"]) == (6, 2)
    status, _, err = hps("fit", f"--ckpt_path={parts}", "--trainer.max_steps=1000")
    assert status == 0, err
    whole, after = state(next((tmp_path / "whole").rglob("last.ckpt"))), state(parts)
    assert after["global_step"] == 8
    assert after["lr_schedulers"] == whole["lr_schedulers"]
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, after["state_dict"][name]), name


def test_a_signal_in_the_last_step_does_not_take_the_end_away(hps, tmp_path, monkeypatch):
    from hps_lightning.modules import ImageClassifier

    original = ImageClassifier.training_step

    def training_step(self, batch, batch_idx):
        if self.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(ImageClassifier, "training_step", training_step)
    assert "Training finished" in fit(hps)
    assert list(tmp_path.rglob("weights.ckpt"))


def test_an_epoch_is_not_continued_with_other_batches(hps, tmp_path, monkeypatch):
    fit(hps, "--last_checkpoint.every_n_train_steps=1", "--last_checkpoint.every_n_epochs=0", epochs=2)
    path = next(tmp_path.rglob("last.ckpt"))
    content = state(path)
    # As it is after the first batch of an epoch.
    content["ImageDataModule"]["batches"] = 1
    torch.save(content, path)
    status, _, err = hps("fit", "--ckpt_path=last", "--data.batch_size=8", "--trainer.max_epochs=3")
    assert status == 2
    assert "data.batch_size at 16" in err


def test_schedule_over_the_whole_training_is_not_stretched(hps):
    fit(hps, "--lr_scheduler=OneCycleLR")
    status, _, err = hps("fit", "--ckpt_path=last", "--trainer.max_epochs=3")
    assert status == 2
    assert "OneCycleLR" in err
    assert "--init_weights" in err


def test_warm_start_takes_the_weights_that_fit(hps, tmp_path):
    fit(hps)
    source = next(tmp_path.rglob("weights.ckpt"))
    out = fit(hps, "--init_weights", source, "--model.stages=[1,2,1,1]", "--optimizer.lr=1e-12", epochs=1)
    assert re.search(r"(\d+) of (\d+) parameter tensors", out)
    given = state(source)["state_dict"]["network.stage1.0.squeeze1.conv.weight"]
    newest = max(tmp_path.rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)
    assert torch.allclose(state(newest)["state_dict"]["network.stage1.0.squeeze1.conv.weight"], given, atol=1e-8)
    status, _, err = hps("fit", "--ckpt_path=last", "--trainer.max_epochs=2")
    assert status == 0, err
    config = yaml.safe_load((newest.parents[1] / "config.yaml").read_text())
    assert config["init_weights"] == str(source), "its config still repeats it"
    status, _, err = hps("fit", "--ckpt_path=last", "--init_weights", source)
    assert status == 2
    assert "one of them" in err


def test_the_way_out_of_a_divergence_is_a_command_that_trains(hps, monkeypatch):
    step = ImageClassifier.training_step

    def diverge(self, batch, batch_idx):
        return step(self, batch, batch_idx) * (math.nan if self.global_step == 3 else 1)

    monkeypatch.setattr(ImageClassifier, "training_step", diverge)
    status, _, err = hps("fit", "--model=hps_06_05x", *TINY, "--trainer.max_epochs=2")
    assert status == 2
    assert "diverged" in err
    monkeypatch.setattr(ImageClassifier, "training_step", step)
    argv = shlex.split(re.search(r"hps fit --config .*", err).group())[1:]
    assert {"--config", "--init_weights", "--optimizer.lr"} < set(argv)
    status, out, err = hps(*argv)
    assert status == 0, err
    assert "with rate 0.01," in out


def test_network_cannot_be_changed_beside_a_checkpoint(hps):
    fit(hps, epochs=1)
    status, _, err = hps("test", "--ckpt_path=best", "--model.width=1")
    assert status == 2
    assert "--model.width" in err


def test_weights_can_be_tested_far_from_where_they_were_trained(hps, tmp_path, monkeypatch):
    fit(hps)
    weights = next(tmp_path.rglob("weights.ckpt"))
    content = state(weights)
    assert "optimizer_states" not in content
    assert content["hps_lightning"]["data"]["root"] is None
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    status, out, err = hps("test", "--ckpt_path", weights)
    assert status == 0, err
    assert re.search(r"in training +\d+\.\d\d % on the hold-out images: other images", out)


def test_saved_config_repeats_the_training(hps, tmp_path):
    fit(hps, "--trainer.precision=32-true")
    run = next(tmp_path.rglob("config.yaml")).parent
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["width"] == 0.2
    (tmp_path / "again.yaml").write_text((run / "config.yaml").read_text())
    status, _, err = hps("fit", "--config=again.yaml", "--trainer.default_root_dir=second")
    assert status == 0, err
    assert [path.name for path in (tmp_path / "second").iterdir()] == [run.parent.name]
    checkpoints = sorted(tmp_path.rglob("last.ckpt"))
    first, second = (state(path)["state_dict"] for path in checkpoints)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_config_is_saved_of_callbacks_whose_defaults_are_no_plain_values(hps, tmp_path):
    timer = ["--trainer.callbacks+=Timer", "--trainer.callbacks.duration=00:01:00:00"]
    fit(hps, "--trainer.limit_train_batches=1", *timer, epochs=1)
    config = yaml.safe_load(next(tmp_path.rglob("config.yaml")).read_text())
    assert config["trainer"]["callbacks"][0]["init_args"]["interval"] == "step"


def test_what_was_taught_is_tested_without_a_word_of_callbacks(hps, tmp_path):
    fit(hps)
    teacher = next(tmp_path.rglob("last.ckpt")).rename(tmp_path / "teacher.ckpt")
    status, _, err = hps(
        *("fit", "--model=hps_06_05x", *TINY, "--trainer.max_epochs=1", "--trainer.callbacks+=Distillation"),
        f"--trainer.callbacks.teacher={teacher}",
    )
    assert status == 0, err
    # Here a warning is an error.
    status, out, err = hps("test", "--ckpt_path=last")
    assert (status, err) == (0, "")
    assert "teacher" in out
