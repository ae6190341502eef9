"""Whatever stands in a config or on the command line: one clear error, or a run; never an exception of ours.

`pytest tests/test_hostile_inputs.py --hypothesis-profile soak` tries ten times as much, other cases each time.
"""

import json
import os
import re
import warnings

import optuna
import pytest
import torch
from hypothesis import given, settings
from jsonargparse._typehints import ActionTypeHint

from hps_lightning.cli import main
from hps_lightning.cli.arguments import expand
from hps_lightning.errors import UserError
from hps_lightning.explore.config import option_tokens, read_exploration
from hps_lightning.explore.space import Corner
from hps_lightning.report.curves import read_run
from hps_lightning.seed_group import GROUP_FILE, SeedGroup
from hps_lightning.yaml_files import read_yaml
from tests.hostile import CONFIGS, read, spoiled, spoiled_line, spoiled_text, written
from tests.prepared import Prepared, prepare

OURS = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
RECIPES = [name for name in OURS if "explore" not in name]
EXPLORATIONS = ["explore.yaml", "explore_digits.yaml"]

MOST_LINES = 3
# What only a programmer could make sense of.
INTERNAL = re.compile(
    r"Traceback|Union subtypes|Namespace\(|object has no attribute|NoneType|unhashable|not subscriptable|<class '"
    r"|unexpected keyword|positional argument|argument of type|recursion depth"
)


def cases(number):
    """The settings of a test of so many cases, or in another profile of as many more as that says."""
    return settings(max_examples=number * settings.default.max_examples // 100)


class Tried:
    """Calls what may refuse its input, and counts."""

    def __init__(self) -> None:
        self.total = 0
        self.refused = 0

    def __call__(self, function):
        """What ``function`` returns; None where it refused its input as it should."""
        self.total += 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return function()
        except UserError as error:
            self.refused += 1
            message = str(error)
            assert 0 < len(message) < 2000
            assert len(message.splitlines()) <= MOST_LINES, message
            assert not INTERNAL.search(message), message
            return None

    @property
    def accepted(self) -> int:
        return self.total - self.refused


@pytest.fixture
def tried():
    return Tried()


def enough(tried, tally):
    """Counts what was tried; some has to be refused and some accepted, or the test tests little."""
    assert tried.refused > tried.total // 20
    assert tried.accepted >= max(1, tried.total // 200)
    tally("bad inputs tried", tried.total)


@pytest.fixture(autouse=True)
def as_before():
    """What Lightning's Trainer sets for the whole process goes back to what it was."""
    environment = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(environment)
    torch.use_deterministic_algorithms(False)
    torch.autograd.set_detect_anomaly(False)
    torch.backends.cudnn.benchmark = False


@pytest.fixture
def quick_parsers(monkeypatch):
    """Makes the parser of a class once: else nine tenths of the time go into making them for each case anew."""
    make = ActionTypeHint.get_class_parser
    made = {}

    def get_class_parser(val_class, sub_add_kwargs=None, skip_args=None):
        details = [
            (name, sorted(map(str, value)) if isinstance(value, set) else value)
            for name, value in (sub_add_kwargs or {}).items()
        ]
        key = f"{val_class} {sorted(details)} {skip_args}"
        if key not in made:
            made[key] = make(val_class, sub_add_kwargs, skip_args)
        return made[key]

    monkeypatch.setattr(ActionTypeHint, "get_class_parser", staticmethod(get_class_parser))


def test_a_spoiled_text_is_values_or_one_error(tmp_path, tried, tally):
    path = tmp_path / "config.yaml"

    @cases(2000)
    @given(spoiled_text(*((CONFIGS / name).read_text(encoding="utf-8") for name in OURS)))
    def check(content):
        path.write_bytes(content)
        value = tried(lambda: read_yaml(path))
        json.dumps(value)

    check()
    enough(tried, tally)


def test_a_spoiled_config_is_arguments_or_one_error(tmp_path, tried, tally):
    path = tmp_path / "config.yaml"

    @cases(1000)
    @given(spoiled(*map(read, OURS)))
    def check(content):
        path.write_text(written(content), encoding="utf-8")
        tried(lambda: expand(["--config", str(path)]))

    check()
    enough(tried, tally)


def test_a_spoiled_config_trains_or_is_one_error(tmp_path, tried, tally, monkeypatch, capsys, quick_parsers):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.yaml"
    runs = []

    @cases(160)
    @given(spoiled(*map(read, RECIPES)))
    def check(content):
        path.write_text(written(content), encoding="utf-8")
        if tried(lambda: prepare(["--model=hps_06_05x", "--config", str(path)])) is not None:
            runs.append(path.read_text(encoding="utf-8"))
        capsys.readouterr()

    check()
    enough(tried, tally)
    assert runs
    # A sample of what seemed fit to train does, or says why not.
    statuses = []
    for text in runs[:: max(1, len(runs) // 3)][:3]:
        path.write_text(text, encoding="utf-8")
        argv = ["fit", "--model=hps_06_05x", f"--config={path}", "--data.dataset=digits", "--data.batch_size=16"]
        argv += ["--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", "--trainer.devices=1"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            statuses.append(main(argv))
        assert "Traceback" not in capsys.readouterr().err
    assert 0 in statuses
    assert set(statuses) <= {0, 2}


LINES = [
    ["--config=hps.yaml"],
    ["--config=quickstart.yaml", "--trainer.max_epochs=3", "--optimizer.lr=0.1"],
    ["--config=fast/hps_06_05x.yaml", "--data.protocol=full", "--model.width=0.25"],
    ["--model=mobilenet", "--optimizer=Adam", "--lr_scheduler=CosineAnnealingLR", "--data.augmentation.cutout=8"],
    ["--model=hps", "--config=optimizers/adamw.yaml", "--config=lr_schedulers/one_cycle.yaml", "--optimizer.lr=0.002"],
    ["--model=squeezenet_v1_1", "--trainer.callbacks+=EMAWeightAveraging", "--trainer.gradient_clip_val=1.0"],
]


def test_a_spoiled_command_line_trains_or_is_one_error(tmp_path, tried, tally, monkeypatch, capsys, quick_parsers):
    monkeypatch.chdir(tmp_path)
    actions = Prepared.made()["_subcommand_parsers"]["fit"]._actions
    options = sorted({option for action in actions for option in action.option_strings if option.startswith("--")})
    options += ["--model.width", "--model.stages", "--optimizer.lr", "--optimizer.momentum", "--lr_scheduler.gamma"]

    @cases(160)
    @given(spoiled_line(options, *LINES))
    def check(argv):
        tried(lambda: prepare(argv))
        capsys.readouterr()

    check()
    enough(tried, tally)


def test_a_spoiled_exploration_draws_trials_or_is_one_error(tmp_path, tried, tally):
    path = tmp_path / "exploration.yaml"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.RandomSampler(seed=0)

    def draw():
        exploration = read_exploration(str(path))
        for trial in (Corner(), optuna.create_study(sampler=sampler).ask()):
            json.dumps(option_tokens(exploration.space.suggest(trial)))
        return exploration

    @cases(700)
    @given(spoiled(*map(read, EXPLORATIONS)))
    def check(content):
        path.write_text(written(content), encoding="utf-8")
        tried(draw)

    check()
    enough(tried, tally)


def test_spoiled_results_of_seeds_are_read_or_one_error(tmp_path, tried, tally):
    group = SeedGroup.create(tmp_path, ["--model=hps"], [0, 1], "model: hps\n")
    group.figures = {0: {"val/accuracy": 0.5, "train/loss": None}, 1: {"val/accuracy": 0.75, "train/loss": 1.5}}
    group.save()
    path = group.directory / GROUP_FILE
    sound = json.loads(path.read_text(encoding="utf-8"))

    def use():
        found = SeedGroup.load(group.directory)
        _ = found.summary(), found.unfinished, [found.last_checkpoint(seed) for seed in found.seeds]
        found.save()
        return found

    @cases(700)
    @given(spoiled(sound))
    def check(content):
        path.write_text(json.dumps(content, default=str, skipkeys=True), encoding="utf-8")
        tried(use)

    check()
    enough(tried, tally)


def test_a_spoiled_table_of_curves_is_read_or_one_error(tmp_path, tried, tally):
    path = tmp_path / "curves.csv"
    rows = ["name,dataset,protocol,seed,epoch,train/accuracy,train/loss,val/accuracy,val/loss"]
    rows += [f"hps_06_1x,cifar10,holdout,0,{epoch},0.5,1.25,0.4,1.5" for epoch in (1, 2, 3)]

    @cases(700)
    @given(spoiled_text("\n".join(rows) + "\n"))
    def check(content):
        path.write_bytes(content)
        run = tried(lambda: read_run(path))
        assert run is None or run.epochs == sorted(set(run.epochs))

    check()
    enough(tried, tally)
