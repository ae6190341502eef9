import pytest

from hps_lightning.cli.lightning import TrainingPlan, run_cli
from hps_lightning.cli.restore import with_recipe
from hps_lightning.errors import UserError


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
    "argv", [["--config", "mine.yaml"], ["-c", "mine.yaml"], ["--ckpt_path=last"], ["--help"], ["--model.help", "HPS"]]
)
def test_what_names_a_config_a_checkpoint_or_asks_for_help_stays_as_it_is(argv):
    assert with_recipe(argv) == argv


@pytest.mark.parametrize("argv", [[], ["--optimizer", "adam"], ["--ckpt_path=null", "--trainer.max_epochs=3"]])
def test_without_a_network_there_is_nothing_to_train(argv):
    with pytest.raises(UserError, match="needs a network: --config hps"):
        with_recipe(argv)
