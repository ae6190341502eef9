"""Checkpoints, and what lies beside them, of somebody who means harm: what of it ran would leave a trace."""

import contextlib
import io
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

from hps_lightning import pretrained
from hps_lightning.checkpoint import load_classifier, read_checkpoint, save_weights
from hps_lightning.checkpoint_io import SafeCheckpointIO
from hps_lightning.cli.from_checkpoint import load_initial_weights
from hps_lightning.cli.run_config import own_words, read_run_config
from hps_lightning.errors import UserError
from hps_lightning.explore.best import write_config
from hps_lightning.explore.front import Row
from hps_lightning.modules import RECORD_KEY, HPSClassifier
from tests.bluebox.payloads import PAYLOADS, Trace

REFUSED = "malicious files refused"
ARGUMENTS = {"num_classes": 10, "stages": [1, 1, 1, 1], "width": 0.1}
DATA = {"dataset": "digits", "root": None, "protocol": "holdout"}


@pytest.fixture(scope="module")
def sound():
    """What a checkpoint holds that a training can go on from, as far as that is looked at before the training."""
    torch.manual_seed(0)
    module = HPSClassifier(**ARGUMENTS)
    record = {**module.record(), "data": DATA, "dataset": "digits", "classes": list("0123456789"), "max_epochs": 2}
    content = {"epoch": 0, "global_step": 2, "state_dict": module.state_dict(), "optimizer_states": [{}]}
    return {**content, RECORD_KEY: record}


@pytest.fixture
def trace(tmp_path):
    return tmp_path / "trace"


@pytest.fixture
def stranger(tmp_path, trace, monkeypatch):
    """A module that leaves a trace when it is imported; a class of it does so when it is made."""
    (tmp_path / "elsewhere").mkdir()
    code = f"open({str(trace)!r}, 'w').close()\nclass Class:\n    def __init__(self, *a, **k): pass\n"
    (tmp_path / "elsewhere" / "stranger.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    yield "stranger.Class"
    sys.modules.pop("stranger", None)


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def rewritten(content, compression=zipfile.ZIP_STORED, change=lambda archive: None):
    """The same archive, written by another program."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(content))) as source, zipfile.ZipFile(buffer, "w", compression) as archive:
        for member in source.infolist():
            archive.writestr(member.filename, source.read(member))
        change(archive)
    return buffer.getvalue()


def claims_100_gigabytes(archive):
    archive.infolist()[-1].file_size = 100 * 2**30


def a_large_buffer():
    """`bytearray(2**40)`, which PyTorch's weights-only mode would make."""
    return b"\x80\x02cbuiltins\nbytearray\n\x8a\x06" + (2**40).to_bytes(6, "little") + b"\x85R."


def copies_of_a_large_text():
    """A text of a million letters and 100 calls that give it anew; PyTorch's weights-only mode makes them all."""
    text = b"x" * 10**6
    listed = b"X" + len(text).to_bytes(4, "little") + text + b"q\x00a" + b"X\x06\x00\x00\x00utf-32q\x01a"
    first = b"c_codecs\nencode\nq\x02h\x00h\x01\x86Ra"
    return b"\x80\x02]" + listed + first + b"h\x02h\x00h\x01\x86Ra" * 99 + b"."


def with_pickle(pickled, name="data.pkl"):
    def change(archive):
        archive.writestr(f"archive/{name}", pickled)
        archive.writestr("archive/version", "3\n")

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        change(archive)
    return buffer.getvalue()


FILES = {
    **{name: lambda sound, trace, make=make: make(trace) for name, make in PAYLOADS.items()},
    "beside the weights": lambda sound, trace: saved({**sound, "callbacks": Trace(trace)}),
    "among the optimizer's state": lambda sound, trace: saved({**sound, "optimizer_states": [{"state": Trace(trace)}]}),
    "in the record": lambda sound, trace: saved({**sound, RECORD_KEY: {**sound[RECORD_KEY], "version": Trace(trace)}}),
    "instead of a weight": lambda sound, trace: saved({**sound, "state_dict": {"network.stem": Trace(trace)}}),
    "compressed": lambda sound, trace: rewritten({**sound, "callbacks": Trace(trace)}, zipfile.ZIP_DEFLATED),
}
# Those that execute nothing, and would take the memory.
LARGE = {
    "sound but compressed": lambda sound: rewritten(sound, zipfile.ZIP_DEFLATED),
    "claims 100 GB": lambda sound: rewritten(sound, change=claims_100_gigabytes),
    "a large buffer": lambda sound: with_pickle(a_large_buffer()),
    "a large buffer in capitals": lambda sound: with_pickle(a_large_buffer(), "data.PKL"),
    "copies of a large text": lambda sound: with_pickle(copies_of_a_large_text()),
}
READERS = {
    "read_checkpoint": read_checkpoint,
    "load_classifier": load_classifier,
    "save_weights": lambda path: save_weights(path, path.with_name("slim.ckpt")),
    "fit --init_weights": lambda path: load_initial_weights(HPSClassifier(**ARGUMENTS), str(path)),
    "Lightning's resume": lambda path: SafeCheckpointIO().load_checkpoint(path, weights_only=False),
}


def refusals(hps, path, monkeypatch):
    """The message of each command and function that is given the checkpoint."""
    messages = {}
    for command in ("fit", "validate", "test", "predict", "export"):
        further = {"predict": ["--images", "x.png"], "export": ["--output", "bundle"]}.get(command, [])
        status, _, messages[command] = hps(command, "--ckpt_path", path, *further)
        assert status == 2, command
        assert "Traceback" not in messages[command]
        # A sound one would be, too.
        assert "lies outside its run" not in messages[command]
    for name, read in READERS.items():
        with pytest.raises(UserError) as refused:
            read(path)
        messages[name] = str(refused.value)
    published = path.with_name("hps_x-cifar10.ckpt")
    published.write_bytes(path.read_bytes())
    monkeypatch.setattr(pretrained, "published_folder", lambda: path.parent)
    with pytest.raises(UserError):
        pretrained.load("hps_x")
    published.unlink()
    return [message for message in messages.values() if path.name in message]


@pytest.mark.parametrize("kind", FILES)
def test_no_command_executes_what_a_checkpoint_holds(hps, tmp_path, sound, trace, monkeypatch, tally, kind):
    path = tmp_path / "sent.ckpt"
    path.write_bytes(FILES[kind](sound, trace))
    messages = refusals(hps, path, monkeypatch)
    assert len(messages) == 10
    assert not trace.exists()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["sent.ckpt"]
    # The last of the eleven is `hps_lightning.load`.
    tally(REFUSED, len(messages) + 1)


@pytest.mark.filterwarnings("ignore")
# Of the other two, tests/bluebox/test_bundle.py and whatever opens the archive show the harm.
@pytest.mark.parametrize("kind", [kind for kind in FILES if kind not in ("framed", "legacy and zip")])
def test_pytorch_would_execute_them_without_its_weights_only_mode(tmp_path, sound, trace, kind):
    path = tmp_path / "sent.ckpt"
    path.write_bytes(FILES[kind](sound, trace))
    # What comes after the harm is no concern here.
    with contextlib.suppress(Exception):
        torch.load(path, weights_only=False)
    assert trace.exists()


@pytest.mark.filterwarnings("ignore:unclosed file")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_a_library_declares_safe_is_not_so_here(tmp_path, sound, trace, tally):
    path = tmp_path / "sent.ckpt"
    path.write_bytes(saved({**sound, "callbacks": Trace(trace)}))
    with torch.serialization.safe_globals([(open, "io.open"), (open, "_io.open")]):
        with pytest.raises(UserError, match=r"refused: it names '_?io\.open'"):
            read_checkpoint(path)
        assert not trace.exists()
        torch.load(path, weights_only=True)
    assert trace.exists(), "PyTorch refuses it too, so that the test shows nothing"
    tally(REFUSED)


@pytest.mark.parametrize("kind", LARGE)
def test_a_small_file_that_would_take_the_memory_is_refused(tmp_path, sound, tally, kind):
    path = tmp_path / "sent.ckpt"
    path.write_bytes(LARGE[kind](sound))
    with pytest.raises(UserError, match=r"sent\.ckpt is (refused|damaged)"):
        read_checkpoint(path)
    tally(REFUSED)


def test_weights_that_are_more_than_the_file_are_refused(tmp_path, sound, tally):
    path = tmp_path / "sent.ckpt"
    wide = {**ARGUMENTS, "width": 8.0}
    with torch.device("meta"):
        state = HPSClassifier(**wide).state_dict()
    one = {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in state.items()}
    record = {**sound[RECORD_KEY], "model": {"class_path": "HPSClassifier", "init_args": wide}}
    torch.save({**sound, "state_dict": one, RECORD_KEY: record}, path)
    assert path.stat().st_size < 10**5 < sum(value.nbytes for value in one.values())
    with pytest.raises(UserError, match=r"sent\.ckpt is refused: its weights would take"):
        load_classifier(path)
    tally(REFUSED)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_sound_weights_of_any_precision_are_not_refused(tmp_path, sound, dtype):
    path = tmp_path / "sound.ckpt"
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in sound["state_dict"].items()}
    torch.save({"state_dict": state, RECORD_KEY: sound[RECORD_KEY]}, path)
    assert load_classifier(path).num_classes == 10


CRAFTED = {
    "a call of nothing": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "a key that cannot be one": b"\x80\x02}]K\x01s.",
    "nothing on the stack": b"\x80\x02a.",
    "a number that is called": b"\x80\x02K\x01)R.",
    "a mark that is missing": b"\x80\x02K\x01e.",
    "a memo that is missing": b"\x80\x02h\x07.",
    "values of another kind": b"\x80\x02X\x01\x00\x00\x00x\x85Q.",
}


@pytest.mark.parametrize("kind", CRAFTED)
def test_a_pickle_that_breaks_the_reader_is_one_error(tmp_path, tally, kind):
    path = tmp_path / "sent.ckpt"
    path.write_bytes(with_pickle(CRAFTED[kind]))
    with pytest.raises(UserError, match=r"sent\.ckpt is (refused|damaged)"):
        read_checkpoint(path)
    tally(REFUSED)


def test_pytorch_would_copy_the_text(tmp_path):
    path = tmp_path / "sent.ckpt"
    path.write_bytes(with_pickle(copies_of_a_large_text()))
    assert sum(map(len, torch.load(path, weights_only=True))) > 4 * 10**8


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


def endless():
    value = []
    value.append(value)
    return value


RECORDS = {
    "another class": {"model": {"class_path": "stranger.Class", "init_args": {}}},
    "a function": {"model": {"class_path": "os.system", "init_args": {"command": "true"}}},
    "a process": {"model": {"class_path": "subprocess.Popen", "init_args": {"args": ["true"]}}},
    "one of ours that is no network": {"model": {"class_path": "hps_lightning.cli.main", "init_args": {}}},
    "no class": {"model": {"class_path": ["HPSClassifier"], "init_args": ARGUMENTS}},
    "no model": {"model": "HPSClassifier"},
    "no arguments": {"model": {"class_path": "HPSClassifier", "init_args": 7}},
    "an unknown argument": {"model": {"class_path": "HPSClassifier", "init_args": {**ARGUMENTS, "command": "true"}}},
    "arguments of another type": {
        "model": {"class_path": "HPSClassifier", "init_args": {**ARGUMENTS, "width": "wide"}}
    },
    "a network of 10^9 blocks": {
        "model": {"class_path": "HPSClassifier", "init_args": {**ARGUMENTS, "stages": [10**9] * 4}}
    },
    "a network of terabytes": {"model": {"class_path": "HPSClassifier", "init_args": {**ARGUMENTS, "width": 1e5}}},
    "10^12 classes": {"model": {"class_path": "HPSClassifier", "init_args": {**ARGUMENTS, "num_classes": 10**12}}},
    **{
        f"{key} {path}": {
            "model": {"class_path": "HPSClassifier", "init_args": {**ARGUMENTS, key: {"class_path": path}}}
        }
        for key in ("optimizer", "lr_scheduler")
        for path in ("stranger.Class", "os.system", "builtins.eval", "torch.hub.load", "torch.optim.sgd.torch")
    },
    "deep": {"metrics": deep(100)},
    "endless": {"metrics": endless()},
    "long": {"metrics": [0] * 100_000},
}


@pytest.mark.parametrize("kind", RECORDS)
def test_no_command_takes_what_a_record_names(hps, tmp_path, sound, trace, stranger, tally, kind):
    path = tmp_path / "sent.ckpt"
    torch.save({**sound, RECORD_KEY: {**sound[RECORD_KEY], **RECORDS[kind]}}, path)
    for command in ("fit", "validate", "test", "predict", "export"):
        status, _, message = hps(command, "--ckpt_path", path, *(["--output", "x"] if command == "export" else []))
        assert status == 2, command
        assert "Traceback" not in message
        assert "lies outside its run" not in message
    with pytest.raises(UserError):
        load_classifier(path)
    assert not trace.exists()
    tally(REFUSED, 6)


@pytest.mark.parametrize("data", [{"augmentation": {"class_path": "stranger.Class"}}, {"augmentation": "a/file.yaml"}])
def test_no_command_takes_the_classes_that_a_record_names_for_its_data(
    hps, tmp_path, sound, trace, stranger, tally, data
):
    path = tmp_path / "sent.ckpt"
    torch.save({**sound, RECORD_KEY: {**sound[RECORD_KEY], "data": {**DATA, **data}}}, path)
    for command in ("fit", "validate", "test", "predict"):
        status, _, message = hps(command, "--ckpt_path", path)
        assert status == 2
        assert "sent.ckpt is refused: `data.augmentation` names" in message
    assert not trace.exists()
    tally(REFUSED, 4)


LOGGER = "lightning.pytorch.loggers.TensorBoardLogger"
MODEL_CHECKPOINT = "lightning.pytorch.callbacks.ModelCheckpoint"
SWA = "lightning.pytorch.callbacks.StochasticWeightAveraging"
CONFIGS = {
    "a class": {"trainer": {"callbacks": [{"class_path": "stranger.Class"}]}},
    "its name alone": {"trainer": {"callbacks": ["stranger.Class"]}},
    "one instead of a list": {"trainer": {"callbacks": "stranger.Class"}},
    "added": {"trainer": {"callbacks+": "stranger.Class"}},
    "a list in a text": {"trainer": {"callbacks": "['stranger.Class']"}},
    "a mapping in a text": {"trainer": {"logger": "{class_path: stranger.Class}"}},
    "a dotted key": {"trainer.callbacks": ["stranger.Class"]},
    "a dotted key inside": {"trainer": {"logger.class_path": "stranger.Class"}},
    **{name: {"trainer": {name: "stranger.Class"}} for name in ("logger", "strategy", "accelerator", "plugins")},
    "profiler": {"trainer": {"profiler": {"class_path": "stranger.Class"}}},
    "a function for one of Lightning's": {
        "trainer": {"callbacks": [{"class_path": SWA, "init_args": {"swa_lrs": 0.1, "avg_fn": "stranger.Class"}}]}
    },
    "one of Lightning's that calls anything": {
        "trainer": {
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.LambdaCallback",
                    "init_args": {"on_fit_start": "stranger.Class"},
                }
            ]
        }
    },
    "a class within one": {
        "trainer": {"logger": {"class_path": LOGGER, "init_args": {"save_dir": {"class_path": "stranger.Class"}}}}
    },
    "among further arguments": {
        "trainer": {"logger": {"class_path": LOGGER, "init_args": {}, "dict_kwargs": {"x": "stranger.Class"}}}
    },
    "optimizer": {"optimizer": {"class_path": "stranger.Class"}},
    "optimizer's name": {"optimizer": "stranger.Class"},
    "optimizer's argument": {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": "stranger.Class"}}},
    "lr_scheduler": {"lr_scheduler": {"class_path": "stranger.Class"}},
    "model": {"model": {"class_path": "stranger.Class"}},
    "a program of ours": {"trainer": {"callbacks": ["hps_lightning.__main__.main"]}},
    "another config": {"config": "other.yaml"},
    "another config for a part": {"trainer": "other.yaml"},
    "a file to overwrite": {"benchmark": {"filename": "/tmp/.profile"}},
    "a file above": {"benchmark": {"filename": "../../../.profile"}},
    "a folder to delete in": {
        "trainer": {"callbacks": [{"class_path": MODEL_CHECKPOINT, "init_args": {"dirpath": "/tmp"}}]}
    },
    "a tag": "trainer: !!python/object/apply:stranger.Class []\n",
    "no mapping": "- stranger.Class\n",
}


@pytest.fixture
def run(tmp_path, sound):
    """A run's folder with a sound checkpoint, to put a config beside."""
    folder = tmp_path / "runs" / "sent" / "version_0"
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(sound, folder / "checkpoints" / "last.ckpt")
    return folder


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_training_takes_no_classes_from_the_config_beside_its_checkpoint(hps, run, trace, stranger, tally, kind):
    content = CONFIGS[kind]
    (run / "config.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    (run / "other.yaml").write_text("callbacks: [stranger.Class]\n")
    status, _, message = hps("fit", "--ckpt_path", run / "checkpoints" / "last.ckpt")
    assert status == 2
    assert "config.yaml" in message
    if isinstance(content, dict):
        config = Path("runs", "sent", "version_0", "config.yaml")
        assert "is refused: `" in message
        assert f"If you trust it, say so: --config {config}" in message
    assert not trace.exists()
    tally(REFUSED)


def test_a_file_in_the_working_directory_is_no_argument(hps, tmp_path, trace, stranger, tally):
    for name in ("auto", "1", "gpu", "cpu", "32-true"):
        (tmp_path / name).write_text("class_path: stranger.Class\n")
    status, out, err = hps("fit", "--model=hps", "--data.dataset=digits", "--print_config")
    assert status == 0, err
    assert "strategy: auto" in out
    assert not trace.exists()
    tally(REFUSED)


def test_a_study_of_a_stranger_gives_no_config_that_names_classes(tmp_path, trace, stranger, tally):
    row = Row(0, "done", {}, {"model.width": 0.5}, 1, "", "")
    for base in (
        ["--model=hps", "--trainer.callbacks+=stranger.Class"],
        ["--model=hps", '--config={"trainer": {"callbacks": ["stranger.Class"]}}'],
        ["--model=hps", "--config=sent.yaml"],
    ):
        with pytest.raises(UserError, match="The study sent is refused"):
            write_config(tmp_path / "best.yaml", row, "sent", {"base": base})
        tally(REFUSED)
    assert not trace.exists()
    assert not (tmp_path / "best.yaml").exists()


OWN = """
from lightning.pytorch import Callback

class Mine(Callback):
    def on_fit_start(self, trainer, pl_module):
        print("Mine is here.")
"""


@pytest.mark.filterwarnings("ignore")
def test_what_the_user_names_himself_is_his_own_word(hps, tmp_path, monkeypatch):
    (tmp_path / "own_callbacks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    tiny = ["--model=hps", "--model.width=0.1", "--data.dataset=digits", "--data.batch_size=16"]
    tiny += ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.accelerator=cpu"]
    tiny += ["--lr_scheduler=null", "--trainer.max_epochs=1", "--trainer.callbacks+=own_callbacks.Mine"]
    status, out, err = hps("fit", *tiny)
    assert status == 0, err
    assert "Mine is here." in out
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    config = checkpoint.parent.parent / "config.yaml"
    again = ["fit", "--ckpt_path", checkpoint, "--trainer.max_epochs=2"]
    status, _, err = hps(*again)
    assert status == 2
    assert "`trainer.callbacks` names the class 'own_callbacks.Mine'" in err
    # Typed, or in the config that is given.
    for words in (["--trainer.callbacks+=own_callbacks.Mine"], [f"--config={config}"]):
        assert read_run_config(config, own_words(words))
    status, out, err = hps(*again, "--config", config)
    assert status == 0, err
    assert "Mine is here." in out


def test_weights_only_is_no_choice(hps, run):
    status, _, message = hps("test", "--ckpt_path", run / "checkpoints" / "last.ckpt", "--weights_only=false")
    assert status == 2
    assert "--weights_only false: checkpoints are read without executing what they hold" in message
