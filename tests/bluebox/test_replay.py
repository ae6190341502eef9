import itertools
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import hps_lightning
from hps_lightning import pretrained
from hps_lightning.bluebox import export_bundle, replay
from hps_lightning.bluebox.frame_sources import DatasetFrames, FileFrames, WebcamFrames
from hps_lightning.bluebox.replay import Outcome, play
from hps_lightning.checkpoint import load_classifier, read_checkpoint
from hps_lightning.cli import main
from hps_lightning.data.locate import find_dataset
from hps_lightning.data.readers import load_images
from hps_lightning.errors import UserError
from hps_lightning.modules import RECORD_KEY, HPSClassifier

from .made import make_bundle, replace_file, trained
from .payloads import PAYLOADS

CLASSES = ["bird", "cat", "dog"]


class Clock:
    """Time that passes only where something is said to take it."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def pass_by(self, seconds):
        self.now += seconds


class SlowBlock:
    """Answers "cat" after some seconds for each frame, in turn; None for a frame that it refuses."""

    def __init__(self, clock, *seconds):
        self.clock, self.seconds, self.stamps, self.images = clock, seconds, [], []

    def step(self, stamp, image, channel_seq):
        seconds = self.seconds[len(self.stamps) % len(self.seconds)]
        self.stamps.append(stamp)
        self.images.append((image, channel_seq))
        self.clock.pass_by(seconds or 0)
        return {} if seconds is None else {"class_index": (stamp, 1)}


class Frames(list):
    """Frames that take long to read."""

    def __init__(self, clock, seconds, labels):
        super().__init__(labels)
        self.clock, self.seconds = clock, seconds

    def __getitem__(self, index):
        self.clock.pass_by(self.seconds)
        label = super().__getitem__(index)
        return (None if label == "unreadable" else np.full((2, 2, 3), [1, 2, 3], np.uint8)), label


def played(*seconds, labels=("cat",) * 10, fps=10, reading=0.0, **options):
    clock = Clock()
    block = SlowBlock(clock, *seconds)
    frames = Frames(clock, reading, labels)
    return play(block, frames, CLASSES, fps, clock=clock, sleep=clock.pass_by, **options), block


def test_a_block_in_time_gets_every_frame():
    outcome, block = played(0.05)
    assert (outcome.sent, outcome.classified, outcome.dropped, outcome.left_out) == (10, 10, 0, 0)
    assert block.stamps == [100_000 * index for index in range(10)]
    assert outcome.latencies == pytest.approx([50] * 10)
    assert outcome.seconds == pytest.approx(0.95)


@pytest.mark.parametrize(
    ("seconds", "answered"),
    [(0.1, range(10)), (0.11, range(0, 10, 2)), (0.25, range(0, 10, 3)), (0.3, range(0, 10, 3)), (5.0, [0])],
)
def test_frames_that_come_while_the_block_is_busy_are_lost(seconds, answered):
    outcome, block = played(seconds)
    assert block.stamps == [100_000 * index for index in answered]
    assert outcome.classified == len(answered)
    assert outcome.dropped == 10 - len(answered)
    assert outcome.sent == 10


def test_one_slow_frame_costs_those_that_come_meanwhile():
    outcome, block = played(0.01, 0.35, 0.01, 0.01, 0.01, 0.01, 0.01)
    assert block.stamps == [100_000 * index for index in (0, 1, 5, 6, 7, 8, 9)]
    assert outcome.dropped == 3


def test_reading_files_costs_no_frames():
    outcome, _ = played(0.05, reading=7.0)
    assert (outcome.classified, outcome.dropped) == (10, 0)
    assert outcome.seconds == pytest.approx(0.95)


def test_without_a_rate_nothing_is_lost():
    outcome, block = played(0.25, fps=0, reading=3.0)
    assert (outcome.sent, outcome.classified, outcome.dropped) == (10, 10, 0)
    assert block.stamps == [250_000 * index for index in range(10)]
    assert outcome.seconds == pytest.approx(2.5)


def test_the_frames_begin_again_up_to_the_limit():
    outcome, block = played(0.05, labels=("cat", "dog", "cat"), limit=8)
    assert (outcome.sent, outcome.classified, outcome.labelled, outcome.correct) == (8, 8, 8, 5)
    assert len(block.stamps) == 8
    assert played(0.05, limit=2)[0].sent == 2
    assert played(0.25, limit=2)[0].dropped == 1


def test_accuracy_counts_the_classified_frames_whose_class_is_known():
    outcome, _ = played(0.15, labels=["cat", "dog", None, "dog", "cat", "cat", "bird", "cat", "cat", "cat"])
    # Every other frame: cat, unknown, cat, bird, cat.
    assert (outcome.labelled, outcome.correct) == (4, 3)


def test_frames_that_cannot_be_used_are_counted_apart():
    outcome, block = played(0.05, None, labels=["cat", "cat", "unreadable", "cat", "cat"])
    assert (outcome.sent, outcome.classified, outcome.left_out, outcome.dropped) == (5, 2, 3, 0)
    assert outcome.labelled == 2
    assert len(block.stamps) == 4


def test_ctrl_c_keeps_what_was_measured():
    class Interrupted(SlowBlock):
        def step(self, *arguments, **options):
            if len(self.stamps) == 3:
                raise KeyboardInterrupt
            return super().step(*arguments, **options)

    clock = Clock()
    frames = Frames(clock, 0, ["cat"])
    outcome = play(Interrupted(clock, 0.05), frames, CLASSES, 10, float("inf"), clock=clock, sleep=clock.pass_by)
    assert outcome.classified == 3


@pytest.mark.parametrize(
    ("order", "pixel"),
    [("rgb", [1, 2, 3]), ("bgr", [3, 2, 1]), ("rgba", [1, 2, 3, 255]), ("bgra", [3, 2, 1, 255]), ("gray", 2)],
)
def test_frames_come_in_the_cameras_order(order, pixel):
    _, block = played(0.01, channel_order=order)
    image, channel_seq = block.images[0]
    assert channel_seq == order.upper()
    assert image[0, 0].tolist() == pixel
    assert image.flags.c_contiguous
    assert image.dtype == np.uint8


def test_the_made_camera_turns():
    frames = WebcamFrames(64, 48, 20)
    pictures = [frames[index][0] for index in range(len(frames))]
    assert {picture.shape for picture in pictures} == {(48, 64, 3)}
    assert all(not np.array_equal(*pair) for pair in itertools.pairwise(pictures))
    assert np.array_equal(WebcamFrames(64, 48, 20)[7][0], pictures[7])
    assert len(list(frames)) == 20


@pytest.fixture
def photos(tmp_path):
    """Images in folders that are named as classes, one of which is no class."""
    for index, folder in enumerate(("bird", "cat", "cat", "dog", "holiday")):
        (tmp_path / "photos" / folder).mkdir(parents=True, exist_ok=True)
        array = np.random.RandomState(index).randint(0, 256, (20 + index, 30, 3)).astype(np.uint8)
        Image.fromarray(array).save(tmp_path / "photos" / folder / f"{index}.png")
    return tmp_path / "photos"


def test_a_folders_name_is_the_class(photos, capsys):
    (photos / "dog" / "text.png").write_text("no picture")
    frames = FileFrames([photos], CLASSES)
    found = [(None if picture is None else picture.shape, label) for picture, label in frames]
    assert found == [
        ((20, 30, 3), "bird"),
        ((21, 30, 3), "cat"),
        ((22, 30, 3), "cat"),
        ((23, 30, 3), "dog"),
        (None, "dog"),
        ((24, 30, 3), None),
    ]
    assert "text.png is not an image" in capsys.readouterr().err
    named = FileFrames([photos / "dog" / "text.png"], CLASSES)
    with pytest.raises(UserError, match=r"text\.png is not an image"):
        named[0]


@pytest.mark.parametrize("separator", [",", " ", "\t", ", "])
def test_a_file_of_labels(photos, separator):
    labels = photos / "labels.txt"
    # As spreadsheets begin what they save as UTF-8.
    labels.write_text(f"\ufeffholiday/4.png{separator}dog\n\n{photos}/bird/0.png{separator}cat\n", encoding="utf-8")
    frames = FileFrames([photos], CLASSES, labels)
    assert [label for _, label in frames] == ["cat", None, None, None, "dog"]


def test_a_link_is_of_the_class_of_the_folder_that_it_lies_in(photos):
    (photos / "dog" / "link.png").symlink_to(photos / "cat" / "1.png")
    frames = FileFrames([photos / "dog" / "link.png"], CLASSES)
    assert frames[0][1] == "dog"


def test_labels_that_cannot_be_used(photos):
    labels = photos / "labels.txt"
    with pytest.raises(UserError, match=r"labels\.txt cannot be read"):
        FileFrames([photos], CLASSES, labels)
    labels.write_text("bird/0.png bird\ncat/1.png tiger\n")
    with pytest.raises(UserError, match=r"labels\.txt, line 2: 'tiger' is none of the bundle's classes, bird, cat"):
        FileFrames([photos], CLASSES, labels)
    labels.write_text("elsewhere.png bird\n")
    with pytest.raises(UserError, match="names none of the images"):
        FileFrames([photos], CLASSES, labels)


def test_a_data_set_of_other_classes():
    with pytest.raises(UserError, match="tells other classes apart than those of digits: bird, cat, dog"):
        DatasetFrames("digits", CLASSES)


def run(capsys, *arguments):
    status = main(["replay", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize("kind", ["among the weights", "zip", "names from the stack"])
def test_weights_that_would_execute_something_are_refused(bundle, tmp_path, capsys, tally, kind):
    replace_file(bundle, "weights.pt", PAYLOADS[kind](tmp_path / "trace"))
    status, _, err = run(capsys, bundle, "--webcam", "--frames", 1)
    assert status == 2
    assert "weights.pt holds no weights that can be read" in err
    assert not (tmp_path / "trace").exists()
    tally("malicious files refused")


def test_images_through_the_bundles_block(bundle, photos, capsys, decided, bundles, frames):
    (photos / "cat" / "empty.png").touch()
    status, out, err = run(capsys, bundle, photos, "--fps", 0, "--set", "top_k=2", "--threads", 1)
    assert status == 0
    assert err.splitlines() == [
        f"hps: warning: left out: {photos / 'cat' / 'empty.png'} is not an image that Pillow can read."
    ]
    loaded = bundles.Bundle(str(bundle))
    correct = 0
    for index, name in enumerate(("bird", "cat", "cat", "dog")):
        picture = np.array(Image.open(photos / name / f"{index}.png"))
        answer = loaded.probabilities(frames.resize(picture, 32, 32)[None])[0].argmax()
        correct += CLASSES[answer] == name
    lines = out.splitlines()
    assert lines[0].startswith("HighPerformanceSqueezeNext on image files, as fast as the block is; PyTorch ")
    figures = {line[:14].strip(): line[15:] for line in lines[1:]}
    assert figures["frames sent"] == "6"
    assert figures["classified"] == "5"
    assert figures["dropped"].startswith("0 ")
    assert figures["left out"].startswith("1 ")
    assert re.fullmatch(r"p50 [\d.]+   p95 [\d.]+   p99 [\d.]+   max [\d.]+", figures["latency in ms"])
    assert figures["throughput"].endswith(" frames a second")
    assert figures["accuracy"] == f"{correct} of 4 correct   ({25 * correct:.2f} %)"


def test_what_the_block_refuses_is_told(bundle, photos, capsys):
    status, out, err = run(capsys, bundle, photos / "dog", "--fps", 0, "--set", "resize=off")
    assert status == 0
    assert "hps: warning: the block reports (error): image left out: the frame is 23 x 30" in err
    assert "hps: warning: the block reports (warning): images left out: 1" in err
    assert "  classified   0\n" in out
    assert "latency" not in out
    assert "accuracy" not in out


@pytest.mark.parametrize("order", replay.CHANNEL_ORDERS)
def test_a_made_camera(bundle, capsys, order):
    options = ("--webcam", "--size", "64x48", "--frames", 12, "--fps", 1000, "--channel-order", order)
    status, out, err = run(capsys, bundle, *options)
    assert (status, err) == (0, "")
    figures = dict(re.findall(r"^ *(frames sent|classified|dropped|left out) +(\d+)", out, re.MULTILINE))
    assert figures["frames sent"] == "12"
    assert figures["left out"] == "0"
    assert int(figures["classified"]) + int(figures["dropped"]) == 12
    assert "a made camera of 64x48, 1000 frames a second" in out


def test_images_begin_again(bundle, photos, capsys):
    _, out, _ = run(capsys, bundle, photos / "cat", "--loop", "--frames", 7, "--fps", 0)
    assert "  classified   7\n" in out
    _, out, _ = run(capsys, bundle, photos / "cat", "--frames", 7, "--fps", 0)
    assert "  classified   2\n" in out


def test_a_data_sets_test_images(tmp_path, capsys):
    torch.manual_seed(2)
    classifier = HPSClassifier(num_classes=10, stages=[1, 1, 1, 1], width=0.25)
    trained(classifier.network)
    folder = make_bundle(classifier, tmp_path / "bundle", classes=[str(digit) for digit in range(10)])
    status, out, err = run(capsys, folder, "--dataset", "digits", "--fps", 0, "--set", "resize=off")
    assert (status, err) == (0, "")
    split = load_images("digits", "test")
    block = replay.start(folder)
    images = [image.permute(1, 2, 0).numpy() for image in split.images]
    answers = [block.step(0, image, channel_seq="RGB")["class_index"][1] for image in images]
    correct = int((np.array(answers) == split.labels.numpy()).sum())
    assert correct > 0
    assert f"{correct} of {len(answers)} correct" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "the following arguments are required: bundle"),
        (["{bundle}"], "Give either images or folders of images, or --dataset NAME, or --webcam."),
        (["{bundle}", "{photos}", "--webcam"], "Give either images"),
        (["{bundle}", "--webcam", "--labels", "x"], "--labels goes with image files alone."),
        (["{bundle}/nowhere", "{photos}"], "nowhere is no bundle: it holds no rtmaps_block.py"),
        (["{photos}", "{photos}"], "is no bundle"),
        (["{bundle}", "{photos}/nowhere"], "There is no image or folder"),
        (["{bundle}", "{bundle}"], "No images in"),
        (["{bundle}", "{bundle}/README.md"], "README.md is not an image that Pillow can read."),
        (["{bundle}", "--dataset", "imagenet"], "imagenet"),
        (["{bundle}", "--dataset", "digits"], "tells other classes apart than those of digits"),
        (["{bundle}", "{photos}", "--fps", "-1"], "--fps must be 0, or from 1e-06 to 1e+06, got -1.0."),
        (["{bundle}", "{photos}", "--fps", "nan"], "--fps must be 0, or from 1e-06 to 1e+06, got nan."),
        (["{bundle}", "{photos}", "--fps", "inf"], "--fps must be 0, or from 1e-06 to 1e+06, got inf."),
        (["{bundle}", "{photos}", "--fps", "1e-300"], "--fps must be 0, or from 1e-06 to 1e+06, got 1e-300."),
        (["{bundle}", "x" * 300], "File name too long"),
        (["x" * 300, "{photos}"], "File name too long"),
        (["{bundle}", "{photos}", "--fps", "fast"], "argument --fps: invalid float value: 'fast'"),
        (["{bundle}", "{photos}", "--frames", "0"], "--frames must be 1 or more, got 0."),
        (["{bundle}", "{photos}", "--channel-order", "cmyk"], "argument --channel-order: invalid choice: 'cmyk'"),
        (["{bundle}", "{photos}", "--unheard"], "unrecognized arguments: --unheard"),
        (["{bundle}", "{photos}", "--set", "bundle=x"], "--set bundle=x: the bundle to replay is the first argument"),
        (["{bundle}", "{photos}", "--set", "top_k"], "--set takes NAME=VALUE, got 'top_k'."),
        (
            ["{bundle}", "{photos}", "--set", "unheard=1"],
            "The block refuses unheard=1: there is no property 'unheard'.",
        ),
        (["{bundle}", "{photos}", "--set", "resize=zoom"], "The block refuses resize=zoom: "),
        (["{bundle}", "{photos}", "--set", "top_k=two"], "The property top_k of the block cannot be 'two'."),
        (["{bundle}", "{photos}", "--set", "top_k=0"], "The block does not start: property top_k must be from 1"),
        (["{bundle}", "{photos}", "--threads", "-1"], "The block does not start: property threads must be from 0"),
        (["{bundle}", "--webcam", "--size", "640"], "--size must be columns x rows"),
        (["{bundle}", "--webcam", "--size", "0x5"], "--size must be columns x rows"),
        (["{bundle}", "--webcam", "--size", "9000x9000"], "--size must be columns x rows"),
    ],
)
def test_mistakes_end_with_one_line_and_status_2(bundle, photos, capsys, arguments, expected):
    threads = torch.get_num_threads()
    filled = [argument.format(bundle=bundle, photos=photos) for argument in arguments]
    status, _, err = run(capsys, *filled)
    assert status == 2
    assert err.startswith("hps: error: ")
    assert err.count("\n") == 1
    assert expected in err
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("name", ["weights.pt", "rtmaps_block.py", "bundle.py", "manifest.json", "golden.npz"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_bundle_is_refused(bundle, capsys, name, damage):
    if damage == "missing":
        (bundle / name).unlink()
    else:
        os.truncate(bundle / name, 100)
    status, out, err = run(capsys, bundle, "--webcam")
    assert (status, out) == (2, "")
    assert name in err
    assert err.count("\n") == 1


def test_a_fault_of_ours_can_be_looked_into(bundle, monkeypatch):
    monkeypatch.setenv("HPS_DEBUG", "1")
    with pytest.raises(UserError):
        main(["replay", str(bundle)])


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["replay", "--help"])
    assert stopped.value.code == 0
    assert "--dataset" in capsys.readouterr().out


def test_the_command_runs_from_anywhere(bundle, photos, tmp_path):
    os.rename(bundle, tmp_path / "copied elsewhere")
    command = [sys.executable, "-m", "hps_lightning", "replay", "copied elsewhere", "photos", "--fps", "0"]
    paths = os.pathsep.join(filter(None, (os.getcwd(), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": paths}
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert re.search(r"^accuracy +\d of 4 correct", result.stdout, re.MULTILINE)


def test_a_table_without_frames():
    assert "frames sent    0" in replay.table(Outcome())


@pytest.mark.cifar
@pytest.mark.train
@pytest.mark.parametrize("name", pretrained.published_names())
def test_the_block_is_as_accurate_as_the_published_network_to_the_image(name, tmp_path, capsys):
    """One network on all test images, the others on the first 1,000: the block is the same code for each."""
    checkpoint = pretrained.published_folder() / f"{name}.ckpt"
    record = read_checkpoint(checkpoint)[RECORD_KEY]
    try:
        find_dataset(record["dataset"], download=False)
    except UserError as error:
        pytest.skip(f"needs the real {record['dataset']}: {error}")
    network = load_classifier(checkpoint).network
    export_bundle(network, network.state_dict(), tmp_path / "bundle", record)
    test = load_images(record["dataset"], "test")
    whole = name == "hps_06_05x-cifar10"
    count = len(test.labels) if whole else 1000
    options = ("--dataset", record["dataset"], "--fps", 0, "--set", "resize=off", "--frames", count)
    status, out, err = run(capsys, tmp_path / "bundle", *options)
    assert (status, err) == (0, "")
    correct, labelled = map(int, re.search(r"^accuracy +(\d+) of (\d+) correct", out, re.MULTILINE).groups())
    net = hps_lightning.load(*name.rsplit("-", 1))
    predicted = torch.cat([net.probabilities(images).argmax(1) for images in test.images[:count].split(250)])
    assert labelled == count
    assert correct == int((predicted == test.labels[:count]).sum())
    if whole:
        # Another processor may round the odd pair of nearly equal logits the other way.
        assert abs(correct - net.facts["test"]["correct"]) <= 2
