"""The README's commands and code, run in its order; trainings are cut down to two batches of digits."""

import itertools
import multiprocessing
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from hps_lightning import zoo
from hps_lightning.cli import main
from hps_lightning.data.batches import normalise
from tests.forked_hps import run_hps

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = ["--data.dataset=digits", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def files():
    """The files that a user is told to write, by name: blocks of Python whose first line is one's name."""
    return dict(re.findall(r"```python\n# (\w+\.py)(.*?)```", README, flags=re.DOTALL))


def write_files(folder):
    for name, content in files().items():
        (folder / name).write_text(f"#{content}", encoding="utf-8")


def commands():
    lines = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith(("hps ", "python -m "))]


def shown_trainings():
    """The arguments of each `hps fit` that is shown but takes too long, or more machines, to be run here."""
    text = "\n".join(blocks("console"))
    lines = re.sub(r"\\\n(>\s*)?", " ", text).splitlines()
    return [shlex.split(line.split("hps fit", 1)[1], comments=True) for line in lines if "hps fit" in line]


@pytest.mark.parametrize("argv", shown_trainings(), ids=" ".join)
def test_every_training_that_it_shows_has_a_config(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["fit", *argv, "--print_config"])
    assert ended.value.code == 0, capsys.readouterr().err


@pytest.mark.train
def test_every_command_runs_in_the_readmes_order(tmp_path, monkeypatch):
    Image.new("RGB", (64, 48), "blue").save(tmp_path / "photo.png")
    shutil.copytree(ROOT / "checkpoints", tmp_path / "checkpoints")
    write_files(tmp_path)
    ran = commands()
    assert {"fit", "test", "validate", "predict", "export", "explore"} <= {command[1] for command in ran}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    log = tmp_path / "output.log"
    # Each a process of its own, as a user's are; the first `hps` by the script that is installed.
    installed = False
    for program, *argv in ran:
        if "fit" in argv and "--ckpt_path" not in argv:
            argv += SMALL
        if argv[0] == "explore" and "--show" not in argv and "--best" not in argv:
            argv += ["--trials=2", "--", *SMALL]
        if program == "hps" and installed:
            status = run_hps(argv, tmp_path, log)
        else:
            installed |= program == "hps"
            command = [str(Path(sys.executable).with_name(program)), *argv]
            with log.open("wb") as output:
                done = subprocess.run(command, cwd=tmp_path, stdout=output, stderr=subprocess.STDOUT, timeout=300)
            status = done.returncode
        assert status == 0, (argv, log.read_text())
    assert installed


def test_a_forked_command_is_a_process_of_its_own(tmp_path, monkeypatch):
    log = tmp_path / "output.log"
    monkeypatch.setenv("HPS_DATA_DIR", "nowhere")
    status = run_hps(["fit", "--model=hps_06_05x", "--data.dataset=cifar10"], tmp_path, log)
    assert (status, log.read_text().startswith("hps: error: "), "nowhere" in log.read_text()) == (2, True, True)
    monkeypatch.setenv("HPS_DEBUG", "1")
    status = run_hps(["test"], tmp_path, log)
    assert (status, "Traceback" in log.read_text()) == (1, True)
    with pytest.raises(TimeoutError, match=r"fit --config quickstart\.yaml took longer than 1 s"):
        run_hps(["fit", "--config", "quickstart.yaml"], tmp_path, log, timeout=1)
    assert multiprocessing.active_children() == []


@pytest.mark.train
def test_the_python_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["fit", "--model=hps_06_05x", *SMALL]) == 0, capsys.readouterr().err
    shutil.copy(next(tmp_path.rglob("weights.ckpt")), "weights.ckpt")
    assert main(["export", "--ckpt_path=last", "--output=bundle"]) == 0
    on_board, with_onnx, from_python, with_own_images = [
        block for block in blocks("python") if not re.match(r"# \w+\.py", block)
    ]
    board_names, onnx_names, python_names = {}, {}, {}
    exec(on_board, board_names)
    exec(with_onnx, onnx_names)
    exec(from_python, python_names)
    for split, name, index in itertools.product(("train", "test"), ("cat", "dog"), range(40)):
        folder = tmp_path / "photos" / split / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), {"cat": "white", "dog": "black"}[name]).save(folder / f"{index}.png")
    own_names = {}
    exec(with_own_images, own_names)
    assert own_names["trainer"].current_epoch == 10
    tested = own_names["data"].test_set
    assert torch.equal(tested.labels, torch.arange(80) // 40)
    assert torch.equal(tested.images[:, 0, 0, 0] == 0, tested.labels == 1)
    assert onnx_names["logits"].shape == (1, 10)
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    bundle, module = board_names["bundle"], python_names["module"]
    logits = module(normalise(image, bundle.manifest["input"]["mean"], bundle.manifest["input"]["std"]))
    assert torch.allclose(bundle.logits(image.permute(0, 2, 3, 1).numpy()), logits, atol=1e-4)


def test_the_table_of_networks_is_true():
    from hps_lightning.complexity import count_macs, count_parameters, module_bytes

    rows = re.findall(r"^\| `(\w+)` \| (CIFAR-\d+) \| (.+) \|$", README, flags=re.MULTILINE)
    assert len(rows) >= 5
    for name, title, rest in rows:
        stages, width, parameters, mmacs, size, accuracy, paper_size = (cell.strip() for cell in rest.split("|"))
        variant = zoo.find_variant(name)
        network = variant.build(int(title.removeprefix("CIFAR-")))
        published = variant.published(title.lower().replace("-", ""))
        assert stages == " ".join(map(str, variant.arguments.get("stages", "-")))
        assert width == f"{variant.arguments['width']:g}" if "width" in variant.arguments else width == "-"
        assert parameters == f"{count_parameters(network):,}"
        assert mmacs == f"{count_macs(network) / 1e6:.2f}"
        # The size holds the source of the classes, which a comment changes by some bytes.
        assert float(size) == pytest.approx(module_bytes(network) / 1e6, abs=0.011)
        assert (float(accuracy.rstrip(" %")), float(paper_size)) == (published.accuracy, published.size_mb)


def test_the_number_of_variants_is_true():
    assert f"{len(zoo.ZOO)} named variants" in README


def test_every_file_that_it_shows_exists():
    for path in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", ["README.md", "SECURITY.md"])
def test_the_tests_that_it_names_exist(page):
    names = set(re.findall(r"`(?:tests/\S*)?(test_\w+)(?:\.py)?`", (ROOT / page).read_text(encoding="utf-8")))
    files = list((ROOT / "tests").rglob("test_*.py"))
    functions = {name for file in files for name in re.findall(r"def (test_\w+)", file.read_text(encoding="utf-8"))}
    assert names
    assert names <= functions | {file.stem for file in files}
