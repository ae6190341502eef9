import warnings

import pytest

from hps_lightning.cli.mistakes import explain
from hps_lightning.errors import UserError
from tests.prepared import prepare


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--optimizer.lrr=0.1"], r"SGD has no argument 'lrr'\. Did you mean lr\? It has lr, momentum"),
        (["--model.widht=0.1"], r"HPSClassifier has no argument 'widht'\. Did you mean width\?"),
        (
            ["--data.augmentation.crop_paddding=2"],
            r"There is no option --data.augmentation.crop_paddding\. Did you mean --data.augmentation.crop_padding\?",
        ),
        # As an abbreviation it would be accepted.
        (["--trainer.max_epoch=2"], r"Did you mean --trainer.max_epochs\?"),
        (["--epochs=2"], r"Did you mean --trainer.max_epochs\?"),
        (["--lr=2"], r"Did you mean --optimizer.lr\?"),
        (["--batch_size=2"], r"Did you mean --data.batch_size\?"),
        (
            ["--optimizer=torch.optim.SDG"],
            r"no optimizer called 'torch.optim.SDG'\. Did you mean SGD\? Known: SGD, Adam",
        ),
        (["--lr_scheduler=torch.optim.lr_scheduler.StepLR"], r"Did you mean StepLR\? Known: MultiStepLR"),
        (["--lr_scheduler=OneCycleLR", "--lr_scheduler.pct_strt=0.1"], r"OneCycleLR has no argument 'pct_strt'"),
        (["--trainer.callbacks+=EMAWeightAverage"], r"no callback called .* Did you mean EMAWeightAveraging\? Known: "),
        (["--trainer.callbacks+=EarlyStopping"], r"^EarlyStopping needs a value for monitor\.$"),
        (
            ["--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=abc"],
            r"^trainer.callbacks.decay must be a number, got 'abc'\.$",
        ),
        (
            ["--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decya=0.9"],
            r"^EMAWeightAveraging has no argument 'decya'\. Did you mean decay\?",
        ),
        (
            ["--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=7"],
            r"^Invalid decay value 7.0 provided\.",
        ),
        (
            ["--trainer.callbacks.decay=7"],
            r"^trainer.callbacks.decay belongs to a class .* before it: --trainer.callbacks\+=NAME\.$",
        ),
        (["--trainer.callbacks+=os.system"], r"no callback called 'os.system'"),
        (["--trainer.max_epochs=ten"], r"^trainer.max_epochs must be a whole number, got 'ten'\.$"),
        (["--data.batch_size=1e3"], r"^data.batch_size must be a whole number, got '1000.0'\.$"),
        (["--data.dataset=cifar11"], r"^data.dataset must be one of cifar10, cifar100, digits, got 'cifar11'\.$"),
        (["--optimizer.lr=fast"], r"^optimizer.lr must be a number, got 'fast'\.$"),
        (["--optimizer.lr=.nan"], r"^SGD: lr must be a finite number, got nan\.$"),
        (["--optimizer.lr"], r"^--optimizer.lr needs a value\.$"),
        (["--data.root"], r"^--data.root needs a value\.$"),
        (["--data.augmentation=3"], r"^data.augmentation must hold keys with values, got '3'\.$"),
        (["--data.batch_size=null"], r"^data.batch_size must be a whole number, got null\.$"),
        (['--config={"data": {"batch_size": null}}'], r"^data.batch_size must have a value, got null\.$"),
        (["--model.num_classes=7"], r"^--model.num_classes has no value of its own: --data.dataset sets it\.$"),
        (["--seed_everything=-1"], r"^seed_everything must lie between 0 and 4294967295, got -1\.$"),
        (["--trainer.accelerator=gpu_"], r"invalid accelerator name"),
        (["--trainer.precision=transformer-engine"], r"transformer_engine"),
        (["--model.width=1e9"], r"width must be at most 32"),
        (["--model.stages=[1, 1, 1, 100000]"], r"a stage may have 100 blocks"),
        (["--data.num_workers=100000"], r"data.num_workers must be at most 512"),
        (["--benchmark.filename=../x.json"], r"benchmark.filename is the name of a file"),
        (["--dashboard.samples=-1"], r"^dashboard.samples must lie between 0 and 100, got -1\.$"),
        (["--dashboard.samples=many"], r"^dashboard.samples must be a whole number, got 'many'\.$"),
        (["stray"], r"There is no option stray"),
        (['--config={"data": {"a b": 1}}'], r"a key must be a text without spaces, got 'a b'"),
        (['--config={"data": {"root": 1, "root": 2}}'], r"the key 'root' stands there twice"),
        (['--config={"trainer": {"max_epoch": 1}}'], r"There is no option trainer.max_epoch\. Did you mean"),
        (['--config={"trainer": 3}'], r"trainer must hold keys with values, got '3'"),
        (
            ['--config={"optimizer": {"class_path": "Adam", "lr": 1}}'],
            r"what stands beside class_path belongs into init",
        ),
        (
            ['--config={"optimizer": {"class_pth": "Adam"}}'],
            r"SGD has no argument 'class_pth'\. Did you mean class_path\?",
        ),
        (["--data.root=&a [*a]"], r"stands within itself"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_that_names_it_and_the_way_out(tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    # Lightning warns of some of them first.
    warnings.simplefilter("ignore")
    with pytest.raises(UserError, match=message) as raised:
        prepare(["--model=hps", "--data.dataset=digits", *argv])
    assert len(str(raised.value).splitlines()) == 1


def test_what_is_not_understood_is_passed_on_in_one_line():
    assert explain("Something\n  else went wrong:\n" + "x " * 1000, {"a"}).startswith("Something else went wrong: x x")
    assert len(explain("x " * 1000, {"a"})) <= 400
