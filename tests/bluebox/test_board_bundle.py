"""A bundle, its self-test and its block run on the board's Python 3.7 and PyTorch 1.1.0."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from hps_lightning.bluebox.standin import STANDIN_FOLDER
from hps_lightning.bluebox.weights import legacy_file

from .board_environment import run
from .made import replace_file
from .payloads import PAYLOADS

pytestmark = pytest.mark.board

# Python 3.5's syntax, like all that it runs.
DRIVER = """
import json
import os
import sys

import numpy as np

standin_folder, bundle, frames, out = sys.argv[1:]
sys.path.insert(0, standin_folder)
from rtmaps import standin

frames = np.load(frames)
answers = {}
for style in standin.STYLES:
    for enumeration in standin.ENUMERATIONS:
        runtime = standin.Runtime(standin.load_block(os.path.join(bundle, "rtmaps_block.py")), style, enumeration)
        runtime.set_property("threads", 1)
        for _ in range(2):
            runtime.start()
            found = []
            for index, name in enumerate(sorted(frames.files)):
                written = runtime.step(1000 * index, frames[name][:, :, ::-1], "BGR")
                found.append({key: [stamp, np.array(value).tolist()] for key, (stamp, value) in written.items()})
                assert runtime.step(0, data="broken") == {}
            runtime.stop()
        answers[style + " " + enumeration] = found
with open(out, "w") as file:
    json.dump({"answers": answers, "reports": standin.reports(), "versions": sys.version}, file)
"""


@pytest.fixture
def on_the_board(bundle, tmp_path):
    """A copy of a bundle whose path has a space in it."""
    shutil.move(bundle, tmp_path / "the board")
    return tmp_path / "the board"


def drive(python, bundle, tmp_path, frames):
    (tmp_path / "driver.py").write_text(DRIVER)
    np.savez(tmp_path / "frames.npz", **frames)
    out = tmp_path / "answers.json"
    result = run(
        python, tmp_path / "driver.py", STANDIN_FOLDER, bundle, tmp_path / "frames.npz", out, cwd="/", timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return json.loads(out.read_text())


def test_the_self_test_passes(board_python, on_the_board):
    result = run(board_python, on_the_board / "selftest.py", cwd="/", timeout=300)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("Python 3.7")
    assert "PyTorch 1.1.0" in result.stdout
    assert result.stdout.endswith("selftest: passed\n")


def test_the_self_test_finds_a_changed_weight(board_python, on_the_board):
    weights = torch.load(on_the_board / "weights.pt", weights_only=True)
    weights["stage3.0.squeeze1.conv.weight"][2, 1] += 0.5
    replace_file(on_the_board, "weights.pt", legacy_file(weights))
    result = run(board_python, on_the_board / "selftest.py", cwd="/", timeout=300)
    assert result.returncode == 1
    assert result.stderr.startswith("selftest: FAILED: the logits are ")


def test_image_files_are_classified(board_python, on_the_board, tmp_path, bundles, frames):
    picture = np.random.RandomState(3).randint(0, 256, (40, 50, 3)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "photo.ppm")
    result = run(board_python, on_the_board / "classify.py", "photo.ppm", "nowhere.ppm", cwd=tmp_path, timeout=300)
    assert result.returncode == 2
    assert result.stderr.startswith("classify: error: nowhere.ppm cannot be read: ")
    loaded = bundles.Bundle(str(on_the_board))
    answer = loaded.probabilities(frames.resize(picture, 32, 32)[None])[0]
    path, named = result.stdout.strip().split("\t")
    name, probability = named.split()
    assert (path, name) == ("photo.ppm", loaded.classes[answer.argmax()])
    assert abs(float(probability) - answer.max()) < 1e-3


def test_the_block_answers_as_it_does_here(board_python, on_the_board, tmp_path):
    random = np.random.RandomState(0)
    sizes = [(32, 32), (32, 32), (75, 100), (1, 1), (480, 640)]
    pictures = {f"{index}": random.randint(0, 256, (*size, 3)).astype(np.uint8) for index, size in enumerate(sizes)}
    there = drive(board_python, on_the_board, tmp_path, pictures)
    here = drive(sys.executable, on_the_board, tmp_path, pictures)
    assert there["versions"].startswith("3.7")
    assert not here["versions"].startswith("3.7")
    assert len(there["answers"]) == 9
    for version, found in there["answers"].items():
        for frame, expected in zip(found, here["answers"][version], strict=True):
            assert frame["label"] == expected["label"]
            assert frame["class_index"] == expected["class_index"]
            assert frame["probabilities"][0] == expected["probabilities"][0]
            np.testing.assert_allclose(frame["probabilities"][1], expected["probabilities"][1], rtol=0, atol=1e-4)
    errors = [text for level, text in there["reports"] if level == "error"]
    assert set(errors) == {"hps: image left out: the frame is no image: str"}
    assert there["reports"] == here["reports"]


REFUSAL = """
import os
import sys

import torch

sys.path.insert(0, sys.argv[1])
from rtmaps import standin

for bundle in sys.argv[2:]:
    runtime = standin.Runtime(standin.load_block(os.path.join(bundle, "rtmaps_block.py")))
    runtime.start()
    runtime.stop()
    (error,) = standin.reports("error")
    print(error)
assert not os.path.exists("trace"), "something was executed"
torch.load(os.path.join(sys.argv[2], "weights.pt"))
"""


def test_weights_that_would_execute_something_there_are_refused(board_python, bundle, tmp_path, tally):
    kinds = ["among the weights", *(kind for kind in PAYLOADS if kind != "among the weights")]
    folders = []
    for kind in kinds:
        folders.append(shutil.copytree(bundle, tmp_path / kind))
        replace_file(folders[-1], "weights.pt", PAYLOADS[kind](tmp_path / "trace"))
    (tmp_path / "refusal.py").write_text(REFUSAL)
    result = run(board_python, tmp_path / "refusal.py", STANDIN_FOLDER, *folders, cwd=tmp_path, timeout=300)
    reports = result.stdout.splitlines()
    assert len(reports) == len(kinds)
    assert all("weights.pt holds no weights that can be read: " in report for report in reports)
    # PyTorch 1.1 itself executes the first of them.
    assert (tmp_path / "trace").exists()
    tally("malicious files refused", len(kinds))
