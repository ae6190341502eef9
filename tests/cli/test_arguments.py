import pytest

from hps_lightning import zoo
from hps_lightning.cli import arguments
from hps_lightning.cli.arguments import expand, find_config, join_options, option_values
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


def test_config_is_found_here_then_in_configs_then_among_the_installed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    installed = find_config("hps.yaml")
    assert installed.parent.name == "configs"
    assert installed.is_absolute()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "hps.yaml").write_text("model: x")
    assert find_config("hps.yaml").read_text() == "model: x"
    (tmp_path / "hps.yaml").write_text("model: y")
    assert find_config("hps").read_text() == "model: y"


def test_unknown_config_names_what_there_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"'hsp\.yaml'.*Did you mean hps\.yaml.*quickstart\.yaml"):
        find_config("hsp.yaml")


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
