"""Two seeds of a tiny network, interrupted in both, continued, tested; and what `--seeds` refuses."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from hps_lightning.cli import main, seeds
from hps_lightning.cli.seeds import parse_seeds
from hps_lightning.errors import UserError
from hps_lightning.modules import RECORD_KEY, HPSClassifier
from hps_lightning.seed_group import SeedGroup
from tests.cli.conftest import TINY

EPOCHS = 8
RECIPE = ["--model=hps_06_05x", *TINY, f"--trainer.max_epochs={EPOCHS}", "--trainer.precision=32-true"]
COMMAND = ["fit", *RECIPE, "--seeds=3,1"]
GROUP = Path("runs/hps-digits/seeds_0")


def wait_for(path, process):
    """Until ``path`` exists; fails where the process ends first."""
    while not path.exists():
        assert process.poll() is None, f"it ended with {process.returncode} before there was {path}"
        time.sleep(0.002)


def printing(command):
    """Runs `hps` in this process, its trainings in their own; returns the exit status and what it printed itself."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(command)
    return SimpleNamespace(status=status, out=out.getvalue(), err=err.getvalue())


def epoch(checkpoint):
    return torch.load(checkpoint, weights_only=True)["epoch"]


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """Ctrl+C in the first seed, a killed second one, an end; each step's output, and what lay on disk after it."""
    folder = tmp_path_factory.mktemp("seeds")
    before = Path.cwd()
    os.chdir(folder)
    # As this process has: with another number sums round differently, which so small a training magnifies.
    threads = pytest.MonkeyPatch()
    threads.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    first, second = (GROUP / f"seed_{seed}" / "checkpoints" / "last.ckpt" for seed in (3, 1))
    try:
        # In a session of its own, so that Ctrl+C reaches it and its training, and nobody else.
        parent = subprocess.Popen(
            [sys.executable, "-m", "hps_lightning", *COMMAND],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # A shell's background jobs ignore it, and so would their children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        wait_for(first, parent)
        os.killpg(parent.pid, signal.SIGINT)
        interrupted = SimpleNamespace(out=parent.communicate(timeout=120)[0], status=parent.returncode)
        interrupted.epoch = epoch(first)

        class Popen(subprocess.Popen):
            def __init__(self, command, **kwargs):
                super().__init__(command, **kwargs)
                if "--seed_everything=1" in command:
                    threading.Thread(target=self.kill_in_the_middle).start()

            def kill_in_the_middle(self):
                wait_for(second, self)
                self.kill()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(seeds, "subprocess", SimpleNamespace(Popen=Popen, TimeoutExpired=subprocess.TimeoutExpired))
            killed = printing(COMMAND)
        killed.epoch = epoch(second)
        killed.first = first.read_bytes()
        killed.group = json.loads((GROUP / "seeds.json").read_text())
        unfinished = printing(["test", f"--ckpt_path={GROUP}"])
        continued = printing(COMMAND)
        tested = printing(["test", "--ckpt_path", f"{GROUP}/"])
    finally:
        threads.undo()
        os.chdir(before)
    return SimpleNamespace(
        folder=folder,
        group=json.loads((folder / GROUP / "seeds.json").read_text()),
        interrupted=interrupted,
        killed=killed,
        unfinished=unfinished,
        continued=continued,
        tested=tested,
    )


@pytest.mark.train
def test_ctrl_c_ends_it_orderly_and_says_how_to_go_on(story):
    assert story.interrupted.status == 130
    assert story.interrupted.epoch < EPOCHS - 1, "it was interrupted in the middle"
    assert "Traceback" not in story.interrupted.out
    last = story.interrupted.out.rstrip().splitlines()[-1]
    assert last.startswith("Interrupted in seed 3")
    assert last.endswith("--seeds=3,1")
    assert "==== seed 3 (1 of 2): runs/hps-digits/seeds_0/seed_3 ====" in story.interrupted.out
    assert "==== seed 1" not in story.interrupted.out


@pytest.mark.train
def test_a_seed_that_fails_ends_it_and_the_others_are_kept(story):
    assert "seed 3 goes on from its last checkpoint; seed 1 begins" in story.killed.out
    assert story.killed.status == 128 + signal.SIGKILL
    assert "seed 1 failed with status 137" in story.killed.err
    assert story.killed.epoch < EPOCHS - 1, "it was killed in the middle"
    assert list(story.killed.group["figures"]) == ["3"]
    assert story.killed.group["summary"] is None


@pytest.mark.train
def test_the_same_command_goes_on_with_what_is_left(story):
    assert story.continued.status == 0, story.continued.err
    assert "seed 3 is finished; seed 1 goes on from its last checkpoint" in story.continued.out
    assert "==== seed 3" not in story.continued.out
    assert (story.folder / GROUP / "seed_3/checkpoints/last.ckpt").read_bytes() == story.killed.first
    assert [path.name for path in (story.folder / GROUP).parent.iterdir()] == ["seeds_0"]


@pytest.mark.train
def test_a_seed_that_was_killed_and_continued_equals_an_uninterrupted_training(story, hps):
    status, _, err = hps("fit", *RECIPE, "--seed_everything=1")
    assert status == 0, err
    whole = json.loads(next(Path("runs").rglob("benchmark.json")).read_text())["metrics"]["final"]
    figures = dict(story.group["figures"]["1"])
    assert figures.pop("time/epoch_seconds") > 0
    assert figures == pytest.approx(whole, rel=1e-4)


@pytest.mark.train
def test_each_run_is_whole_and_the_summary_is_of_what_they_measured(story):
    values = []
    for seed in (3, 1):
        run = story.folder / GROUP / f"seed_{seed}"
        for name in ("checkpoints/best.ckpt", "checkpoints/weights.ckpt", "bluebox/last/manifest.json"):
            assert (run / name).is_file(), name
        assert list(run.glob("events.out.tfevents.*"))
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["seed_everything"] == seed
        assert config["trainer"]["logger"]["init_args"]["version"] is None, "its config starts another run"
        assert config["ckpt_path"] is None
        values.append(json.loads((run / "benchmark.json").read_text())["metrics"]["final"]["val/loss"])
    assert story.group["seeds"] == [3, 1]
    assert story.group["arguments"] == COMMAND[1:]
    row = story.group["summary"]["val/loss"]
    assert row["values"] == values
    assert row["mean"] == pytest.approx(sum(values) / 2)
    # Of two values, half their distance times the root of two.
    assert row["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert f"{row['mean']:.4f}" in story.continued.out
    assert f"{row['std']:.4f}" in story.continued.out


@pytest.mark.train
def test_the_test_is_of_all_seeds_last_epochs(story, hps):
    assert story.unfinished.status == 2
    assert "not finished are the seeds 1" in story.unfinished.err
    assert "hps fit --model" in story.unfinished.err
    assert story.tested.status == 0, story.tested.err
    figures, summary = story.group["test"]["figures"], story.group["test"]["summary"]
    assert summary["test/accuracy"]["values"] == [figures[seed]["test/accuracy"] for seed in ("3", "1")]
    assert f"{100 * summary['test/accuracy']['mean']:.2f} %" in story.tested.out
    status, out, err = hps("test", "--ckpt_path", story.folder / GROUP / "seed_1/checkpoints/last.ckpt")
    assert status == 0, err
    assert f"{100 * figures['1']['test/accuracy']:.2f} %" in out
    kept = (story.folder / GROUP / "seeds.json").read_bytes()
    for part in ("fast_dev_run=true", "limit_test_batches=1", "limit_test_batches=0.5"):
        status, out, err = hps(
            "test", "--ckpt_path", story.folder / GROUP, "--data.eval_batch_size=64", f"--trainer.{part}"
        )
        assert (status, "Of a part of the images, and so not kept in" in out) == (0, True), err
        assert (story.folder / GROUP / "seeds.json").read_bytes() == kept


@pytest.mark.train
def test_one_seed_can_be_continued_by_itself(story, monkeypatch, capsys):
    monkeypatch.chdir(story.folder)
    checkpoint = GROUP / "seed_1" / "checkpoints" / "last.ckpt"
    assert main(["fit", f"--ckpt_path={checkpoint}", f"--trainer.max_epochs={EPOCHS + 1}"]) == 0
    assert epoch(checkpoint) == EPOCHS
    assert [path.name for path in GROUP.parent.iterdir()] == ["seeds_0"], "in its own folder"


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_processes_that_were_started_together_are_refused(hps, tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, "4")
    status, _, err = hps("fit", *RECIPE, "--seeds=2")
    assert status == 2
    assert "4 processes were started together" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.train
def test_a_mistake_that_only_the_training_finds_leaves_nothing_behind(hps, tmp_path):
    status, out, err = hps("fit", *RECIPE, "--data.dataset=cifar10", "--data.root=/nowhere/at/all", "--seeds=2")
    assert status == 2
    assert "seed 0 failed with status 2" in err
    assert "==== seed 1" not in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1", [0]), ("3", [0, 1, 2]), ("0,5,7", [0, 5, 7]), ("[7, 0]", [7, 0]), ("[4]", [4]), ("4294967295,0", None)],
)
def test_seeds_by_number_or_one_by_one(text, expected):
    assert parse_seeds(text) == (expected or [2**32 - 1, 0])


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("0", "at least 1"),
        ("-3", "at least 1"),
        ("1,-2", "-2"),
        ("[-1]", "-1"),
        ("0,1,0", "0 is there twice"),
        ("4294967296,0", "4294967296"),
        *((text, "no whole numbers") for text in ("", "many", "1.5", "1,a", "1,", "[]", "[1", "true", "0 1")),
        (None, "needs a value"),
    ],
)
def test_what_names_no_seeds_is_refused(text, part):
    with pytest.raises(UserError, match=part) as refused:
        parse_seeds(text)
    assert "--seeds" in str(refused.value)


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--seeds", "0"], ["--seeds 0", "--seeds 3"]),
        (["--seeds"], ["--seeds 3"]),
        (["--seeds", "0", "5"], ["commas"]),
        (["--seeds=2", "--seed_everything=1"], ["--seed_everything"]),
        (["--seeds=2", "--ckpt_path", "last"], ["--ckpt_path", "same command"]),
        (["--seeds=2", "--print_config"], ["--print_config"]),
        (["--seeds=2", "--trainer.fast_dev_run=true"], ["fast_dev_run"]),
        (["--seeds=2", "--trainer.logger=false"], ["TensorBoard"]),
        (["--seeds=2", "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=x"], ["TensorBoard"]),
        (["--seeds=2", "--export.directory=x"], ["--export.directory"]),
        (["--seeds=2", "--config", '{"ckpt_path": "x"}'], ["ckpt_path"]),
        (["--seeds=2", "--config", '{"seeds": 2}'], ["seeds"]),
        (["--seeds=2", "--data.batch_size=many"], ["batch_size", "many"]),
        (["--seeds=2", "--config", "nowhere.yaml"], ["'nowhere.yaml'"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_clear_error_before_any_training(hps, tmp_path, monkeypatch, argv, parts):
    monkeypatch.setattr(seeds, "_run", None)
    status, _, err = hps("fit", *RECIPE, *argv)
    assert status == 2
    assert err.startswith("hps: error: ")
    assert "Traceback" not in err
    for part in parts:
        assert part in err
    assert not list(tmp_path.iterdir()), "a mistake leaves nothing behind"


@pytest.mark.parametrize("argv", [["--help"], ["--help", "--seeds", "3"]], ids=" ".join)
def test_help_tells_of_it(hps, argv):
    status, out, _ = hps("fit", *argv)
    assert status == 0
    assert "--seeds 0,5,7" in " ".join(out.split())


def test_a_training_that_had_no_epoch_left_to_measure_has_its_checkpoints_metrics(tmp_path):
    # As one that was killed between its last checkpoint and its end.
    group = SeedGroup.create(tmp_path, [], [7], "benchmark: {filename: benchmark.json}")
    module = HPSClassifier(num_classes=3, stages=[1, 1, 1, 1], width=0.1)
    checkpoint = group.last_checkpoint(7)
    checkpoint.parent.mkdir(parents=True)
    record = {**module.record(), "metrics": {"val/accuracy": 0.5, "val/loss": float("nan")}}
    torch.save({"epoch": 3, "global_step": 40, "state_dict": module.state_dict(), RECORD_KEY: record}, checkpoint)
    assert seeds._final_figures(group, 7) is None
    report = {"metrics": {"final": {}}, "time": {"epoch_seconds": 1.5}}
    (group.run_directory(7) / "benchmark.json").write_text(json.dumps(report))
    # JSON knows no NaN.
    assert seeds._final_figures(group, 7) == {"val/accuracy": 0.5, "val/loss": None, "time/epoch_seconds": 1.5}
