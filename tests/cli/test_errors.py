import pytest
import torch

from tests.cli.conftest import TINY


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["fitt"], ["'fitt'", "Did you mean fit"]),
        *(
            ([*command.split(), "--bogus"], ["--bogus", f"hps {command.split()[0]} --help"])
            for command in (
                "export --ckpt_path best --output x",
                "replay bundle",
                "models",
                "plot runs/x",
                "report",
                "explore --config x.yaml",
            )
        ),
        (["fit"], ["--config hps.yaml"]),
        (["fit", "--config", "nowhere.yaml"], ["'nowhere.yaml'", "quickstart.yaml"]),
        (["fit", "--model", "hps_6_05x"], ["'hps_6_05x'", "hps_06_05x"]),
        (["fit", "--model", "hps", "--model.width", "0", "--data.dataset=digits"], ["width", "greater than 0"]),
        (["fit", "--model", "hps", "--model.stages", "[1,2]", "--data.dataset=digits"], ["stages", "[1, 2]"]),
        (["fit", "--model", "hps", "--model.activation", "gelu"], ["activation", "gelu"]),
        (["fit", "--model", "hps", "--data.dataset", "imagenet"], ["data.dataset", "imagenet", "cifar100"]),
        (["fit", "--model", "hps", "--data.protocol", "none"], ["data.protocol", "none", "holdout"]),
        (["fit", "--model", "hps", "--data.batch_size", "0", "--data.dataset=digits"], ["data.batch_size", "0"]),
        (["fit", "--model", "hps", "--data.batch_size", "9999", "--data.dataset=digits"], ["9999", "training images"]),
        (["fit", "--model", "hps", "--trainer.limit_train_batches=0", "--data.dataset=digits"], ["no batch to train"]),
        (["fit", "--model", "hps", "--trainer.max_epochs=0", "--data.dataset=digits"], ["trainer.max_epochs 0"]),
        (
            ["fit", "--model", "hps", "--trainer.overfit_batches=2", "--data.dataset=digits"],
            ["trainer.overfit_batches 2", "trainer.limit_train_batches"],
        ),
        (["fit", "--model", "hps", "--optimizer", "torch.optim.SparseAdam", "--data.dataset=digits"], ["SparseAdam"]),
        (["fit", "--model", "hps", "--optimizer", "torch.optim.LBFGS", "--data.dataset=digits"], ["LBFGS"]),
        (
            ["fit", "--model", "hps", "--optimizer", "pytorch_optimizer.SophiaH", "--data.dataset=digits"],
            ["SophiaH", "second derivatives"],
        ),
        (
            ["fit", "--model", "hps", "--optimizer", "pytorch_optimizer.ScheduleFreeAdamW", "--data.dataset=digits"],
            ["ScheduleFreeAdamW", "other weights than it trains"],
        ),
        (["fit", "--model", "hps", "--data.batch_size", "many"], ["data.batch_size", "many"]),
        (["fit", "--model", "hps", "--data.root", "/nowhere/at/all"], ["/nowhere/at/all", "Ways out"]),
        (["fit", "--model", "hps", "--data.augmentation.mixup", "-1", "--data.dataset=digits"], ["mixup", "-1"]),
        (["fit", "--model", "hps", "--optimizer", "Adm"], ["'Adm'", "Adam"]),
        (["fit", "--model", "hps", "--optimizer", "os.system"], ["os.system"]),
        (["fit", "--model", "hps", "--optimizer.lr", "fast"], ["lr", "fast"]),
        (["fit", "--model", "hps", "--lr_scheduler", "OneCycle"], ["'OneCycle'", "OneCycleLR"]),
        (["fit", "--model", "hps", "--trainer.no_such_thing", "1"], ["no_such_thing"]),
        (
            [
                *("fit", "--model", "hps", "--trainer.callbacks", "EarlyStopping"),
                *("--trainer.callbacks.monitor", "loss", "--data.dataset=digits"),
            ],
            ["EarlyStopping: monitor 'loss'", "train/loss"],
        ),
        (
            [
                *("fit", "--model", "hps", "--trainer.callbacks", "Distillation"),
                *("--trainer.callbacks.teacher", "nothing.ckpt", "--data.dataset=digits"),
            ],
            ["There is no checkpoint nothing.ckpt"],
        ),
        (["fit", "--model", "hps", "--ckpt_path", "last"], ["no run"]),
        (["fit", "--model", "hps", "--init_weights", "nothing.ckpt", "--data.dataset=digits"], ["nothing.ckpt"]),
        (
            ["fit", "--model", "hps", "--images", "photo.png", "--data.dataset=digits"],
            ["--images", "`hps fit`", "`hps predict`"],
        ),
        (
            ["predict", "--ckpt_path", "checkpoints/hps_06_05x-cifar10.ckpt", "--images", "photo.png"],
            ["published network of that name", "hps_06_05x-cifar10.ckpt"],
        ),
        (["test"], ["--ckpt_path"]),
        (["test", "--ckpt_path", "nothing.ckpt"], ["nothing.ckpt"]),
        (["predict", "--ckpt_path", "best"], ["no run"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_clear_error_with_status_2(hps, tmp_path, argv, parts):
    status, _, err = hps(*argv)
    assert status == 2
    assert err.startswith("hps: error: ")
    assert "Traceback" not in err
    for part in parts:
        assert part in err
    assert not list(tmp_path.iterdir()), "a mistake leaves nothing behind"


def test_a_single_image_without_statistics_is_one_clear_error(hps):
    # 1,438 images leave one.
    options = ["--model.width=0.1", "--model.resolution=0.5", "--data.dataset=digits", "--data.protocol=full"]
    status, _, err = hps("fit", "--model=mobilenet", *options, "--data.batch_size=479", "--trainer.max_epochs=1")
    assert status == 2
    assert "another data.batch_size" in err
    assert "Traceback" not in err


def damaged(path):
    path.write_bytes(b"PK\x03\x04 no zip after all")


def foreign(path):
    torch.save({"state_dict": {}, "epoch": 3}, path)


def text(path):
    path.write_text("hello")


class Payload:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("make", [damaged, foreign, text])
def test_a_file_that_is_no_checkpoint_of_ours_is_refused(hps, tmp_path, command, make):
    path = tmp_path / "x.ckpt"
    make(path)
    status, _, err = hps(command, "--ckpt_path", path)
    assert status == 2
    assert "x.ckpt" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_checkpoint_that_would_execute_code_is_refused_and_does_not(hps, tmp_path, command):
    path, trace = tmp_path / "evil.ckpt", tmp_path / "trace"
    torch.save({"state_dict": Payload(trace)}, path)
    status, _, err = hps(command, "--ckpt_path", path)
    assert status == 2
    assert "refused" in err
    assert not trace.exists()


def test_weights_alone_cannot_be_continued_nor_used_for_other_classes(hps, tmp_path):
    status, _, err = hps("fit", "--model=hps", *TINY, "--trainer.max_epochs=1")
    assert status == 0, err
    status, _, err = hps("fit", "--ckpt_path", next(tmp_path.rglob("weights.ckpt")))
    assert status == 2
    assert "--init_weights" in err
    for command in ("test", "validate"):
        status, _, err = hps(command, "--ckpt_path", next(tmp_path.rglob("weights.ckpt")), "--data.dataset=cifar100")
        assert status == 2
        assert "has 100 classes, but the checkpoint's network tells 10 apart" in err
