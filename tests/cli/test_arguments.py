import json

import pytest
import yaml

from hps_lightning import zoo
from hps_lightning.cli import arguments
from hps_lightning.cli.arguments import expand, join_options, option_values, with_recipe
from hps_lightning.cli.hps_cli import TrainingPlan
from hps_lightning.cli.lightning import run_cli
from hps_lightning.errors import UserError
from hps_lightning.modules import CLASSIFIERS
from hps_lightning.optim import OPTIMIZERS, SCHEDULES


def test_options_split_and_join_to_the_same_meaning():
    tokens = ["--a=1", "--b", "2", "--c", "-0.5", "--flag", "--d", "x=y", "word"]
    pairs = list(option_values(tokens))
    assert pairs == [("--a", "1"), ("--b", "2"), ("--c", "-0.5"), ("--flag", None), ("--d", "x=y"), ("", "word")]
    assert list(option_values(join_options(pairs))) == pairs


def test_names_agree_with_what_they_stand_for():
    assert {name: cls.__name__ for name, cls in CLASSIFIERS.items()} == arguments.CLASSIFIER_NAMES
    assert set(CLASSIFIERS) == set(zoo.FAMILIES)
    assert set(arguments.OPTIMIZER_CONFIGS) == set(OPTIMIZERS)
    assert set(arguments.SCHEDULE_CONFIGS) == set(SCHEDULES)


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [1", "not valid YAML"), ("- 1\n- 2", "must hold keys"), (b"\xff\xfe\x00", "no text in UTF-8")],
)
def test_unusable_config_is_one_clear_error(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        expand(["--config", str(path)])


def test_arguments_of_the_network_hold_whatever_comes_first():
    tokens = expand(["--model.width", "0.75", "--model=hps_06_05x", "--trainer.max_epochs", "3"])
    assert tokens == [
        "--model=HPSClassifier",
        "--model.stages=[1, 1, 1, 1]",
        "--model.width=0.5",
        # The family's own, which a config before it may have changed.
        "--model.resolution=1.0",
        "--model.activation=relu",
        "--model.dropout=0.0",
        "--model.inplace=true",
        "--model.skip_unread=false",
        "--trainer.max_epochs=3",
        # Of two values for one option, the parser takes the last.
        "--model.width=0.75",
    ]


def test_unknown_names_suggest_near_ones():
    with pytest.raises(UserError, match="hps_06_05x"):
        expand(["--model", "hps_06_5x"])
    with pytest.raises(UserError, match=r"'Adm'.*Adam"):
        expand(["--optimizer", "Adm"])
    with pytest.raises(UserError, match="CosineAnnealingLR"):
        expand(["--lr_scheduler", "CosineAnealingLR"])


@pytest.mark.parametrize("name", ["Adam", "adam", "optimizers/adam.yaml"])
def test_optimizer_by_class_by_file_or_by_path_is_the_same(name):
    tokens = expand(["--optimizer", name])
    assert tokens[0] == "--optimizer=null"
    assert tokens[1].endswith("optimizers/adam.yaml")


def test_config_that_names_an_optimizer_replaces_the_one_before(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("optimizer:\n  class_path: Adam\n")
    assert expand(["--config", str(path)]) == ["--optimizer=null", f"--config={path}"]
    path.write_text("optimizer:\n  init_args:\n    lr: 0.5\n")
    assert expand(["--config", str(path)]) == [f"--config={path}"]


def test_schedule_can_be_switched_off():
    assert expand(["--lr_scheduler", "null"]) == ["--lr_scheduler=null"]


@pytest.mark.parametrize("value", ["null", "none", "None"])
def test_no_checkpoint_is_the_same_however_it_is_written(value):
    assert expand([f"--ckpt_path={value}", "--init_weights", value]) == ["--ckpt_path=null", "--init_weights=null"]


def test_images_take_several_paths():
    tokens = expand(["--ckpt_path", "x.ckpt", "--images", "a b.png", "c.png", "--predictions.top_k", "2"])
    assert dict(option_values(tokens))["--data.images"] == '["a b.png", "c.png"]'
    assert tokens[-1] == "--predictions.top_k=2"


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


def test_a_config_of_another_network_has_nothing_of_the_one_before(tmp_path):
    mine = tmp_path / "mine.yaml"
    for content, dropout in (("{class_path: SqueezeNetClassifier}", 0.5), ("SqueezeNetClassifier", 0.5)):
        mine.write_text(f"model: {content}\n")
        for second in (str(mine), f'{{"model": {json.dumps(yaml.safe_load(content))}}}'):
            argv = ["--config", "hps.yaml", "--config", second, "--data.dataset", "digits"]
            assert run_cli("fit", argv, TrainingPlan).config.fit.model.init_args.dropout == dropout
    mine.write_text("model: {class_path: SqueezeNextClassifier, init_args: {width: 0.5}}\n")
    argv = ["--config", "fast/hps_08_05x.yaml", "--config", str(mine), "--data.dataset", "digits"]
    config = run_cli("fit", argv, TrainingPlan).config.fit
    assert (config.model.init_args.skip_unread, config.model.init_args.width) == (False, 0.5)
    assert config.trainer.max_epochs > 1
    # The same network: what the second does not say is the first's.
    mine.write_text("model: {class_path: HPSClassifier, init_args: {dropout: 0.2}}\n")
    config = run_cli("fit", argv, TrainingPlan).config.fit
    assert (config.model.init_args.stages, config.model.init_args.dropout) == ([1, 2, 2, 1], 0.2)


def test_beside_a_checkpoint_configs_of_other_networks_say_nothing_of_one():
    tokens = expand(["--ckpt_path=x.ckpt", "--config=hps.yaml", "--config=fast/squeezenet_v1_1.yaml"])
    assert not [token for token in tokens if token.startswith("--model")]


def test_a_class_given_as_json_is_the_same_class(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("model: {class_path: SqueezeNetClassifier}\n")
    model = '{"class_path": "hps_lightning.modules.SqueezeNetClassifier", "init_args": {"dropout": 0.3}}'
    argv = ["--model", model, "--config", str(mine), "--data.dataset", "digits"]
    assert run_cli("fit", argv, TrainingPlan).config.fit.model.init_args.dropout == 0.3


def test_a_config_in_the_command_replaces_an_optimizer_whole():
    argv = ["--config", "hps.yaml", "--config", '{"optimizer": {"class_path": "Adam"}}', "--data.dataset", "digits"]
    optimizer = run_cli("fit", argv, TrainingPlan).config.fit.optimizer
    assert (optimizer.class_path, optimizer.init_args.lr) == ("torch.optim.Adam", 0.001)
    assert optimizer.init_args.weight_decay == 0


def test_a_network_after_a_config_is_trained_as_the_config_says(tmp_path):
    path = tmp_path / "mine.yaml"
    trained = "{label_smoothing: 0.2, decay_norm_and_bias: false, dropout: 0.3}"
    path.write_text(f"model: {{class_path: HPSClassifier, init_args: {trained}}}")
    argv = ["--config", str(path), "--model", "hps_06_05x", "--data.dataset", "digits"]
    model = run_cli("fit", argv, TrainingPlan).config.fit.model.init_args
    assert (model.label_smoothing, model.decay_norm_and_bias, model.dropout) == (0.2, False, 0.0)


@pytest.mark.parametrize(
    ("argv", "dataset"),
    [
        (["--model=hps_14_1x"], "cifar100"),
        (["--model", "hps_14_1x", "--data.dataset", "cifar10"], "cifar10"),
        (["--model=hps_06_1x"], "cifar10"),
    ],
)
def test_a_network_alone_is_trained_on_the_papers_data_set(argv, dataset):
    assert run_cli("fit", argv, TrainingPlan).config.fit.data.dataset == dataset


@pytest.mark.parametrize(
    "argv", [["--config", "mine.yaml"], ["-c", "mine.yaml"], ["--ckpt_path=last"], ["--help"], ["--model.help", "HPS"]]
)
def test_what_names_a_config_a_checkpoint_or_asks_for_help_stays_as_it_is(argv):
    assert with_recipe(argv) == argv


@pytest.mark.parametrize("argv", [[], ["--optimizer", "adam"], ["--ckpt_path=null", "--trainer.max_epochs=3"]])
def test_without_a_network_there_is_nothing_to_train(argv):
    with pytest.raises(UserError, match="needs a network: --config hps"):
        with_recipe(argv)
