import shutil

import pytest

from hps_lightning.cli.lightning import TrainingPlan, run_cli
from hps_lightning.cli.restore import reachable_root, with_recipe
from hps_lightning.errors import UserError
from tests.cli.conftest import TINY


@pytest.mark.parametrize(
    "more",
    [[], ["--optimizer", "adam"], ["--lr_scheduler=cosine"], ["--ckpt_path", "null"]],
    ids=" ".join,
)
def test_a_network_without_a_config_is_trained_by_the_papers_recipe(more):
    # An optimizer's name stands for a config as well, which is no recipe.
    config = run_cli("fit", ["--model", "hps_06_05x", "--data.dataset", "digits", *more], TrainingPlan).config.fit
    assert config.trainer.max_epochs == 200
    assert config.model.init_args.width == 0.5
    named = {"--optimizer": "torch.optim.Adam"}.get(more[0] if more else "", "torch.optim.SGD")
    assert config.optimizer.class_path == named


@pytest.mark.parametrize(
    ("options", "stages", "width", "dropout"),
    [
        # The recipe's network has stages 2, 4, 12, 1, width 1.0 and no dropout.
        (["--model=squeezenext"], [6, 6, 8, 1], 1.0, 0.0),
        (["--model=SqueezeNextClassifier"], [6, 6, 8, 1], 1.0, 0.0),
        (["--model=squeezenext", "--model.stages=[1,1,2,1]"], [1, 1, 2, 1], 1.0, 0.0),
        (["--model=shallow_squeezenext"], [1, 1, 1, 1], 0.5, 0.0),
        (["--model=squeezenet_v1_1"], None, None, 0.5),
        (["--config=fast/hps_06_05x.yaml", "--model=squeezenet_v1_1", "--model.dropout=0.1"], None, None, 0.1),
        (["--config=fast/squeezenet_v1_1.yaml", "--model=hps_14_1x"], [1, 2, 8, 1], 1.0, 0.0),
        (["--config=fast/squeezenet_v1_1.yaml"], None, None, 0.1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and isinstance(value[0], str) else "",
)
def test_a_network_after_a_config_has_nothing_of_the_configs_own_network(options, stages, width, dropout):
    model = run_cli("fit", [*options, "--data.dataset", "digits"], TrainingPlan).config.fit.model.init_args
    assert (model.get("stages"), model.get("width"), model.dropout) == (stages, width, dropout)


def test_a_network_after_a_config_is_trained_as_the_config_says(tmp_path):
    path = tmp_path / "mine.yaml"
    trained = "{label_smoothing: 0.2, decay_norm_and_bias: false, dropout: 0.3}"
    path.write_text(f"model: {{class_path: HPSClassifier, init_args: {trained}}}")
    argv = ["--config", str(path), "--model", "hps_06_05x", "--data.dataset", "digits"]
    model = run_cli("fit", argv, TrainingPlan).config.fit.model.init_args
    assert (model.label_smoothing, model.decay_norm_and_bias, model.dropout) == (0.2, False, 0.0)


@pytest.mark.parametrize(
    "argv", [["--config", "mine.yaml"], ["-c", "mine.yaml"], ["--ckpt_path=last"], ["--help"], ["--model.help", "HPS"]]
)
def test_what_names_a_config_a_checkpoint_or_asks_for_help_stays_as_it_is(argv):
    assert with_recipe(argv) == argv


@pytest.mark.parametrize("argv", [[], ["--optimizer", "adam"], ["--ckpt_path=null", "--trainer.max_epochs=3"]])
def test_without_a_network_there_is_nothing_to_train(argv):
    with pytest.raises(UserError, match="needs a network: --config hps"):
        with_recipe(argv)


def test_a_folder_of_images_that_nobody_may_look_at_is_not_there():
    # As another user's home, where looking is an error of its own.
    assert reachable_root({"data": {"root": "x" * 5000}}) is None
    assert reachable_root({"data": {"root": None}}) is reachable_root({}) is None
    assert reachable_root({"data": {"root": 1}}) is reachable_root({"data": [1]}) is None


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
