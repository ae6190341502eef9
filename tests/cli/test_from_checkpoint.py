import shutil

import pytest
import torch
import yaml

from hps_lightning.cli.from_checkpoint import load_initial_weights, reachable_root
from hps_lightning.errors import UserError
from hps_lightning.modules import RECORD_KEY, HPSClassifier, SqueezeNetClassifier
from tests.cli.conftest import TINY


def test_a_folder_of_images_that_nobody_may_look_at_is_not_there():
    # As another user's home, where looking is an error of its own.
    assert reachable_root({"data": {"root": "x" * 5000}}) is None
    assert reachable_root({"data": {"root": None}}) is reachable_root({}) is None
    assert reachable_root({"data": {"root": 1}}) is reachable_root({"data": [1]}) is None


def test_weights_of_another_family_start_nothing(tmp_path):
    module = HPSClassifier(num_classes=3, stages=[1, 1, 1, 1], width=0.1)
    torch.save({"state_dict": module.state_dict(), RECORD_KEY: module.record()}, tmp_path / "hps.ckpt")
    other = SqueezeNetClassifier(num_classes=3)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(UserError, match="no layer fits the network SqueezeNetClassifier"):
        load_initial_weights(other, str(tmp_path / "hps.ckpt"))
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


@pytest.mark.train
def test_a_training_goes_on_by_its_own_recipe_wherever_its_run_was_moved(hps, tmp_path):
    short = [*TINY, "--trainer.limit_train_batches=2", "--optimizer=Adam", "--optimizer.lr=0.003"]
    status, _, err = hps("fit", "--model=hps", *short, "--trainer.max_epochs=1")
    assert status == 0, err
    run = next(tmp_path.glob("runs/*/version_0"))
    run.rename(tmp_path / "of_last_week")
    shutil.copy(tmp_path / "of_last_week" / "checkpoints" / "last.ckpt", "alone.ckpt")
    status, out, err = hps("fit", "--ckpt_path=alone.ckpt")
    assert (status, out) == (2, "")
    assert "alone.ckpt lies outside its run" in err
    assert "--config RUN/config.yaml" in err
    beside = ["--ckpt_path=of_last_week/checkpoints/last.ckpt"]
    for options in (beside, ["--ckpt_path=alone.ckpt", "--config=of_last_week/config.yaml"]):
        status, out, err = hps("fit", *options, "--trainer.max_epochs=2")
        assert status == 0, err
        assert "Adam with rate 0.003" in out


@pytest.mark.train
def test_a_training_that_goes_on_keeps_its_optimizer_and_its_schedule(hps, tmp_path):
    # What Lightning restores would silently take the place of other rates, and does not fit another optimizer.
    begun = [*TINY, "--lr_scheduler=StepLR", "--optimizer=Adam", "--optimizer.betas=[0.8,0.9]"]
    status, _, err = hps("fit", "--model=hps", *begun, "--trainer.max_epochs=1")
    assert status == 0, err
    more = ["--ckpt_path=last", "--trainer.max_epochs=2"]
    for options, said in (
        (["--optimizer.lr=0.5"], "--optimizer.lr 0.5 in place of the checkpoint's 0.001"),
        (["--optimizer=SGD"], "--optimizer SGD in place of the checkpoint's Adam"),
        (["--lr_scheduler=cosine"], "--lr_scheduler CosineAnnealingLR in place of the checkpoint's StepLR"),
        (["--lr_scheduler=null"], "--lr_scheduler null in place of the checkpoint's StepLR"),
        (["--lr_scheduler.gamma=0.7"], "--lr_scheduler.gamma 0.7 in place of the checkpoint's 0.1"),
    ):
        status, _, err = hps("fit", *more, *options)
        assert status == 2
        assert said in err
        assert "use --init_weights instead of --ckpt_path" in err
    run = next(tmp_path.glob("runs/*/version_0"))
    again = [f"--config={run / 'config.yaml'}", "--lr_scheduler=StepLR", "--optimizer.betas=[0.8,0.9]"]
    status, _, err = hps("fit", *more, *again)
    assert status == 0, err


@pytest.mark.train
def test_a_refused_resume_leaves_the_config_that_the_training_goes_on_by(hps, tmp_path):
    begun = ["fit", "--model=hps", *TINY, "--lr_scheduler=OneCycleLR", "--trainer.max_epochs=2"]
    assert hps(*begun, "--trainer.max_steps=2")[0] == 0
    config = next(tmp_path.glob("runs/*/version_0/config.yaml"))
    before = config.read_text()
    status, _, err = hps("fit", "--ckpt_path=last", "--trainer.limit_train_batches=1")
    assert status == 2
    assert "leave data.batch_size, trainer.limit_train_batches" in err
    assert config.read_text() == before


@pytest.mark.train
def test_the_config_of_a_training_that_goes_on_says_what_is_new(hps, tmp_path):
    assert hps("fit", "--model=hps", *TINY, "--trainer.max_epochs=1")[0] == 0
    status, _, err = hps("fit", "--ckpt_path=last", "--trainer.max_epochs=2")
    assert status == 0, err
    config = yaml.safe_load(next(tmp_path.glob("runs/*/version_0/config.yaml")).read_text())
    assert (config["trainer"]["max_epochs"], config["ckpt_path"]) == (2, None)


def test_a_checkpoint_in_a_config_is_refused(hps, tmp_path):
    (tmp_path / "mine.yaml").write_text("ckpt_path: last\nmodel: {class_path: HPSClassifier}\n")
    status, out, err = hps("fit", "--config=mine.yaml", "--data.dataset=digits")
    assert (status, out) == (2, "")
    assert "ckpt_path: last stands in a config" in err
    assert "--ckpt_path last" in err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.train
@pytest.mark.parametrize("folder", ["~/trained", "$SCRATCH/trained"])
def test_runs_lie_where_a_config_says_and_in_the_users_home(hps, tmp_path, monkeypatch, folder):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "home"))
    (tmp_path / "mine.yaml").write_text(f"trainer: {{default_root_dir: {folder}}}\n")
    status, out, err = hps("fit", "--model=hps", *TINY, "--config=mine.yaml", "--trainer.max_epochs=1")
    assert status == 0, err
    weights = next(tmp_path.glob("home/trained/*/version_0/checkpoints/weights.ckpt"))
    assert f"hps test --ckpt_path {weights.with_name('best.ckpt').relative_to(tmp_path)}" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "mine.yaml"]
    for told in ("--config=mine.yaml", f"--trainer.default_root_dir={folder}"):
        status, _, err = hps("validate", "--ckpt_path=best", told, "--trainer.limit_val_batches=1")
        assert status == 0, err
