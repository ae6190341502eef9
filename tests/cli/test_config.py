from pathlib import Path

import pytest
import yaml

from hps_lightning.cli.arguments import CLASSIFIER_NAMES, OPTIMIZER_CONFIGS, SCHEDULE_CONFIGS
from hps_lightning.cli.hps_cli import TrainingPlan
from hps_lightning.cli.lightning import run_cli
from hps_lightning.optim import build_optimizer, make_schedule
from hps_lightning.zoo import ZOO

CONFIGS = Path(__file__).parents[2] / "configs"
PUBLISHED = Path(__file__).parents[2] / "checkpoints"


def printed(hps, *argv):
    status, out, err = hps("fit", *argv, "--print_config")
    assert status == 0, err
    return yaml.safe_load(out)


@pytest.fixture
def loaded(tmp_path):
    """A config that sets as many arguments as an optimizer and a schedule can leave behind."""
    path = tmp_path / "loaded.yaml"
    path.write_text(
        "optimizer:\n  class_path: torch.optim.RMSprop\n  init_args:\n"
        "    {lr: 7.0, alpha: 0.7, eps: 0.7, weight_decay: 0.7, momentum: 0.7, centered: true, maximize: true}\n"
        "lr_scheduler:\n  class_path: StepLR\n  init_args: {step_size: 7, gamma: 0.7}\n"
    )
    return path


@pytest.mark.parametrize("name", [*OPTIMIZER_CONFIGS, "sgd_nesterov"])
def test_swapped_optimizer_keeps_nothing_of_the_one_before(hps, loaded, name):
    import torch

    after = printed(hps, "--config", loaded, "--model=hps", "--optimizer", name)["optimizer"]
    file = CONFIGS / "optimizers" / f"{OPTIMIZER_CONFIGS.get(name, name)}.yaml"
    alone = yaml.safe_load(file.read_text())["optimizer"]

    def groups(spec):
        network = torch.nn.Linear(2, 2)
        return [{k: v for k, v in g.items() if k != "params"} for g in build_optimizer(network, spec).param_groups]

    def as_lists(value):
        return [{k: list(v) if isinstance(v, tuple) else v for k, v in group.items()} for group in value]

    assert as_lists(groups(after)) == as_lists(groups(alone))


@pytest.mark.parametrize("name", list(SCHEDULE_CONFIGS))
def test_swapped_schedule_keeps_nothing_of_the_one_before(hps, loaded, name):
    after = printed(hps, "--config", loaded, "--model=hps", "--lr_scheduler", name)["lr_scheduler"]
    alone = yaml.safe_load((CONFIGS / "lr_schedulers" / f"{SCHEDULE_CONFIGS[name]}.yaml").read_text())["lr_scheduler"]
    assert make_schedule(after) == make_schedule(alone)


def test_optimizer_files_compose_with_any_config(hps):
    config = printed(hps, "--config", "hps.yaml", "--config", "optimizers/adam.yaml", "--optimizer.lr", "0.02")
    assert config["optimizer"]["class_path"] == "torch.optim.Adam"
    assert config["optimizer"]["init_args"]["lr"] == 0.02
    assert config["trainer"]["max_epochs"] == 200


def test_optimizer_that_has_no_file_is_named_by_its_path(hps, loaded):
    config = printed(hps, "--config", loaded, "--model=hps", "--optimizer=torch.optim.NAdam", "--optimizer.lr=0.002")
    assert config["optimizer"]["class_path"] == "torch.optim.NAdam"
    assert config["optimizer"]["init_args"]["weight_decay"] == 0


def test_rate_alone_changes_the_papers_optimizer(hps):
    spec = printed(hps, "--model=hps_06_05x", "--optimizer.lr=0.05")["optimizer"]
    assert spec["class_path"] == "torch.optim.SGD"
    assert (spec["init_args"]["lr"], spec["init_args"]["nesterov"]) == (0.05, True)


def test_hps_yaml_is_the_papers_recipe(hps):
    config = printed(hps, "--config", "hps.yaml")
    assert config["model"]["class_path"].endswith("HPSClassifier")
    assert config["model"]["init_args"]["stages"] == ZOO["hps_21_1x_v3"].arguments["stages"]
    assert (config["data"]["dataset"], config["data"]["batch_size"], config["data"]["protocol"]) == (
        "cifar10",
        128,
        "holdout",
    )
    sgd = config["optimizer"]["init_args"]
    assert (sgd["lr"], sgd["momentum"], sgd["nesterov"], sgd["weight_decay"]) == (0.1, 0.9, True, 5e-4)
    assert config["lr_scheduler"]["init_args"] == {"milestones": [60, 120, 160], "gamma": 0.2}
    assert config["trainer"]["max_epochs"] == 200


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "fast").glob("*.yaml")))
def test_fast_recipe_trains_the_network_of_its_name(hps, name):
    config = printed(hps, "--config", f"fast/{name}.yaml")
    assert config["model"]["class_path"].endswith(f".{CLASSIFIER_NAMES[ZOO[name].family]}")
    assert {key: config["model"]["init_args"][key] for key in ZOO[name].arguments} == ZOO[name].arguments
    assert config["data"]["dataset"] in ZOO[name].datasets


@pytest.mark.parametrize(
    "name",
    [
        "hps_06_0575x-cifar100",
        "hps_08_05x-cifar10",
        "hps_09_05x-cifar100",
        "hps_14_1x-cifar100",
        "hps_21_1x_v3-cifar10",
        "squeezenet_v1_1-cifar10",
        "squeezenext_23_1x-cifar10",
    ],
)
def test_fast_recipe_made_the_published_network(hps, name):
    recipe = printed(hps, "--config", f"fast/{name.rsplit('-', 1)[0]}.yaml", "--data.protocol=full")
    published = yaml.safe_load((PUBLISHED / f"{name}.yaml").read_text())
    # Of these there was no choice when some of them were trained.
    published["data"]["augmentation"].setdefault("padding_mode", "constant")
    if "skip_unread" in recipe["model"]["init_args"]:
        published["model"]["init_args"].setdefault("skip_unread", False)
    for config in (recipe, published):
        config["model"]["init_args"].pop("inplace", None)  # where activations lie changes no result
    for part in ("seed_everything", "model", "data", "optimizer", "lr_scheduler"):
        assert recipe[part] == published[part], part
    assert recipe["trainer"]["max_epochs"] == published["trainer"]["max_epochs"]


def test_network_without_a_config_trains_by_the_papers_recipe(hps):
    config = printed(hps, "--model=mobilenet_05x", "--data.dataset=cifar100")
    assert config["model"]["init_args"]["width"] == 0.5
    assert config["trainer"]["max_epochs"] == 200


@pytest.mark.parametrize("config", [(), ("--config", "fast/hps_06_05x.yaml")], ids=["alone", "after a config"])
@pytest.mark.parametrize("name", ZOO)
def test_every_network_of_the_zoo_can_be_named(hps, name, config):
    model = printed(hps, *config, f"--model={name}")["model"]
    assert model["class_path"].endswith(f".{CLASSIFIER_NAMES[ZOO[name].family]}")
    assert {key: model["init_args"][key] for key in ZOO[name].arguments} == ZOO[name].arguments


def test_a_precision_plugin_is_not_contradicted(hps):
    plugin = "lightning.pytorch.plugins.MixedPrecision"
    options = ["--trainer.plugins", plugin, "--trainer.plugins.precision=bf16-mixed", "--trainer.plugins.device=cpu"]
    argv = ["--model=hps", "--data.dataset=digits", "--trainer.accelerator=cpu", *options]
    plan = run_cli("fit", argv, TrainingPlan)
    plan.before_instantiate_classes()
    assert plan.config.fit.trainer.precision is None


@pytest.mark.parametrize(("options", "environment", "devices"), [
    ([], {}, 1),
    (["--trainer.devices=2"], {}, "2"),
    (["--trainer.num_nodes=2"], {}, "auto"),
    ([], {"TORCHELASTIC_RUN_ID": "job", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, 2),
    # A script of a job with four tasks, and what srun starts in it.
    ([], {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "job"}, 1),
    ([], {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "job", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}, 2),
    ([], {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "bash", "SLURM_STEP_TASKS_PER_NODE": "1"}, 1),
])  # fmt: skip
def test_a_training_takes_one_device_unless_it_is_told_otherwise(monkeypatch, options, environment, devices):
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "SLURM_JOB_NAME", "SLURM_STEP_TASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    argv = ["--model=hps", "--data.dataset=digits", "--trainer.accelerator=cpu", *options]
    # As each command does before it builds anything.
    plan = run_cli("fit", argv, TrainingPlan)
    plan.before_instantiate_classes()
    assert plan.config.fit.trainer.devices == devices
