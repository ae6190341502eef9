"""The block runs under the stand-in for RTMaps, out of a bundle of its own."""

import gc
import os
import shutil
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from hps_lightning.modules import HPSClassifier

from .made import change_manifest, make_bundle, replace_file
from .payloads import PAYLOADS

OUTPUTS = {"class_index", "label", "top", "probabilities", "latency_ms"}


def noise(rows, columns, channels=3, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (rows, columns, channels)).astype(np.uint8)


@pytest.fixture
def diagram(bundle, standin):
    """Makes a runtime with a bundle's block; properties by their names."""

    def make(folder=bundle, *, style="dynamic", enumeration="index", empty=None, **properties):
        block = standin.load_block(str(folder / "rtmaps_block.py"))
        runtime = standin.Runtime(block, style, enumeration, empty)
        for name, value in properties.items():
            runtime.set_property(name, value)
        return runtime

    return make


@pytest.fixture
def started(diagram, standin):
    """As ``diagram``, after a Birth without errors."""

    def make(*arguments, **options):
        runtime = diagram(*arguments, **options)
        runtime.start()
        assert [level for level, _ in standin.reports()].count("error") == 0
        return runtime

    return make


@pytest.fixture
def answer(bundles, frames, exported):
    """What the network says of an RGB picture."""
    loaded = bundles.Bundle(str(exported))
    return lambda rgb: loaded.probabilities(frames.fit(rgb, 32)[None])[0]


@pytest.mark.parametrize("style", ["dynamic", "dynamic only", "init"])
@pytest.mark.parametrize("enumeration", ["index", "label", "description"])
def test_it_runs_in_every_version_of_the_runtime(diagram, standin, answer, style, enumeration):
    runtime = diagram(style=style, enumeration=enumeration, channel_order="BGR", resize="stretch", top_k=2)
    standin.reports()
    runtime.start()
    assert [level for level, _ in standin.reports()] == ["info"]
    rgb = noise(40, 60)
    written = runtime.step(1234567, rgb[:, :, ::-1], channel_seq="")
    assert set(written) == OUTPUTS
    assert {stamp for stamp, _ in written.values()} == {1234567}
    values = {name: value for name, (_, value) in written.items()}
    expected = answer(rgb)
    np.testing.assert_allclose(values["probabilities"], expected, atol=1e-6)
    assert values["class_index"] == expected.argmax()
    assert values["label"] == ["bird", "cat", "dog"][expected.argmax()]
    order = np.argsort(-expected)
    assert values["top"] == " ".join(f"{['bird', 'cat', 'dog'][index]}={expected[index]:.4f}" for index in order[:2])
    assert values["latency_ms"] > 0
    runtime.stop()
    assert standin.reports() == []


def test_answers_differ_from_image_to_image(started):
    runtime = started()
    found = {runtime.step(0, noise(32, 32, seed=seed))["class_index"][1] for seed in range(30)}
    assert len(found) > 1


def test_ports_can_be_declared_where_neither_torch_nor_numpy_nor_the_bundle_is(standin, bundle, monkeypatch, tmp_path):
    (tmp_path / "alone").mkdir()
    shutil.copy(bundle / "rtmaps_block.py", tmp_path / "alone")
    block = standin.load_block(str(tmp_path / "alone" / "rtmaps_block.py"))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        patch.setitem(sys.modules, "numpy", None)
        runtime = standin.Runtime(block)
    assert set(runtime.component.outputs) == OUTPUTS
    runtime.start()
    (error,) = standin.reports("error")
    assert f"{tmp_path / 'alone' / 'frames.py'} cannot be read" in error


def test_a_machine_without_torch_is_told_so(diagram, standin, monkeypatch):
    runtime = diagram()
    monkeypatch.setitem(sys.modules, "torch", None)
    runtime.start()
    (error,) = standin.reports("error")
    assert "torch" in error
    assert runtime.step(0, noise(32, 32)) == {}


def test_labels_of_the_properties_are_those_of_the_frames(diagram, frames):
    properties = diagram().component.properties
    assert properties["channel_order"].default.split("|")[2:] == ["auto", *frames.CHANNEL_ORDERS]
    assert properties["resize"].default.split("|")[2:] == list(frames.FITS)


@pytest.mark.parametrize("size", [(32, 32), (31, 33), (480, 640), (1, 1), (1, 500), (200, 3)], ids=str)
def test_frames_of_any_size(started, size):
    runtime = started()
    assert set(runtime.step(0, noise(*size))) == OUTPUTS


def test_a_frame_of_48_million_pixels(started, answer):
    runtime = started()
    ramp = np.linspace(0, 255, 8000).astype(np.uint8)[np.newaxis, :, np.newaxis]
    frame = np.broadcast_to(ramp, (6000, 8000, 3))
    element = image(frame, "BGR")
    written = runtime.step(0, data=element)
    np.testing.assert_allclose(written["probabilities"][1], answer(frame), atol=1e-6)


def image(data, channel_seq="BGR"):
    from rtmaps.types import IplImage

    return IplImage(data, "COLR", channel_seq)


RGB = noise(32, 32, seed=8)
ALPHA = noise(32, 32, 1)
SAME = {
    "RGB": RGB,
    "BGR": RGB[:, :, ::-1].copy(),
    "RGBA": np.concatenate([RGB, ALPHA], 2),
    "BGRA": np.concatenate([RGB[:, :, ::-1], ALPHA], 2),
}


@pytest.mark.parametrize("order", SAME)
@pytest.mark.parametrize("layout", ["in one piece", "every other", "Fortran's"])
def test_every_channel_order_gives_the_same_answer(started, answer, order, layout):
    frame = SAME[order]
    if layout == "every other":
        frame = np.repeat(np.repeat(frame, 2, 0), 2, 1)[::2, ::2]
    elif layout == "Fortran's":
        frame = np.asfortranarray(frame)
    for given in (order, order.lower().encode(), order + "\0"):
        written = started().step(0, data=image(frame, given))
        np.testing.assert_allclose(written["probabilities"][1], answer(RGB), atol=1e-6)
    written = started(channel_order=order).step(0, data=image(frame, "GRAY"))
    np.testing.assert_allclose(written["probabilities"][1], answer(RGB), atol=1e-6)
    # Some inputs are plain arrays, which state nothing.
    written = started(channel_order=order).step(0, data=frame)
    np.testing.assert_allclose(written["probabilities"][1], answer(RGB), atol=1e-6)


@pytest.mark.parametrize("shape", [(32, 32), (32, 32, 1)])
@pytest.mark.parametrize("named", ["GRAY", "", None])
def test_grey_frames(started, answer, shape, named):
    grey = noise(32, 32, 1)
    written = started().step(0, data=image(grey.reshape(shape), named))
    np.testing.assert_allclose(written["probabilities"][1], answer(np.repeat(grey, 3, 2)), atol=1e-6)


@pytest.mark.parametrize("named", ["NV12", b"i420\0", "YV12", "BayerRG8", "RGGB", "yuv420p", "YUV_420", "P010"])
def test_colours_in_one_channel_are_no_grey(started, standin, named):
    assert started().step(0, data=image(noise(48, 32, 1), named)) == {}
    (report,) = standin.reports("error")
    assert "planar YUV and Bayer are not taken" in report


@pytest.mark.parametrize(("named", "order", "channels"), [("YUY2", "YUYV", 2), ("UYVY", "UYVY", 2), ("YUV", "YUV", 3)])
def test_colours_that_lie_in_one_channel_are_no_grey_either(started, standin, named, order, channels):
    assert started().step(0, data=image(noise(32, 64, 1), named)) == {}
    (report,) = standin.reports("error")
    assert f"a {order} frame has {channels} channels, this one 1" in report


@pytest.mark.parametrize(("order", "channels"), [("YUV", 3), ("YUYV", 2), ("UYVY", 2)])
def test_yuv_frames(started, frames, answer, order, channels):
    frame = noise(32, 32, channels)
    written = started().step(0, data=image(frame, order))
    np.testing.assert_allclose(written["probabilities"][1], answer(frames.to_rgb(frame, order)), atol=1e-6)


BROKEN = {
    "nothing": (None, "image left out: there is none at the input"),
    "no picture": (image, "the frame is no image: NoneType"),
    "text": ("frame", "the frame is no image: str"),
    "floats": (np.zeros((4, 4, 3), np.float32), "float32 values instead of uint8"),
    "empty": (np.zeros((0, 4, 3), np.uint8), "the frame is empty: 0 x 4 x 3"),
    "five channels": (np.zeros((4, 4, 5), np.uint8), "this one is 4 x 4 x 5"),
    "a row": (np.zeros(4, np.uint8), "this one is 4"),
    "of no order": (np.zeros((4, 4, 3), np.uint8), "the order of its channels is None; set the property channel_order"),
}


class Hostile:
    """Fails however it is asked."""

    def __getattr__(self, name):
        raise RuntimeError(f"no {name}\nhere")


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_frame_is_reported_once_and_left_out(started, standin, kind):
    runtime = started()
    data, expected = BROKEN[kind]
    if data is image:
        data = image(None)
    for _ in range(3):
        assert runtime.step(5, data=data) == {}
        assert set(runtime.step(6, noise(32, 32))) == OUTPUTS
    (report,) = standin.reports()
    assert report[0] == "error"
    assert expected in report[1]
    runtime.stop()
    assert standin.reports() == [("warning", "hps: images left out: 3")]


@pytest.mark.parametrize("empty", [LookupError("nothing"), RuntimeError("nothing"), KeyError()])
def test_an_input_that_raises_is_an_empty_one(started, standin, empty):
    runtime = started(empty=empty)
    assert runtime.step() == {}
    assert standin.reports("error") == ["hps: image left out: there is none at the input"]
    assert set(runtime.step(0, noise(32, 32))) == OUTPUTS


def test_an_error_of_several_lines_is_reported_in_one(started, standin):
    runtime = started()
    assert runtime.step(0, data=Hostile()) == {}
    assert standin.reports("error") == ["hps: image left out: no image_data here"]


def test_a_camera_that_never_makes_the_same_mistake_twice_does_not_fill_the_log(started, standin):
    runtime = started(resize="off")
    for size in range(33, 133):
        assert runtime.step(0, noise(1, size)) == {}
    reports = standin.reports()
    assert len(reports) == 21
    assert reports[-1] == ("warning", "hps: images that are left out for other reasons are no longer reported")
    runtime.stop()
    runtime.start()
    standin.reports()
    runtime.step(0, noise(1, 40))
    assert len(standin.reports("error")) == 1, "each run reports anew"


def test_a_log_that_fails_stops_nothing(started, monkeypatch):
    import rtmaps.core

    def fail(text):
        raise OSError("the disk is full")

    for name in ("report_info", "report_warning", "report_error"):
        monkeypatch.setattr(rtmaps.core, name, fail)
    runtime = started()
    assert runtime.step() == {}
    assert set(runtime.step(0, noise(32, 32))) == OUTPUTS
    runtime.stop()


@pytest.mark.parametrize("how", ["stretch", "crop", "off"])
def test_the_property_resize(started, standin, answer, how):
    runtime = started(resize=how)
    rgb = noise(50, 90)
    written = runtime.step(0, rgb, channel_seq="RGB")
    if how == "off":
        assert written == {}
        assert "50 x 90 instead of 32 x 32, and resizing is off" in standin.reports("error")[0]
    else:
        seen = rgb if how == "stretch" else rgb[:, 20:70]
        np.testing.assert_allclose(written["probabilities"][1], answer(seen), atol=1e-6)


def test_below_the_threshold_the_class_is_unknown(started, answer):
    rgb = noise(32, 32)
    best = float(answer(rgb).max())
    for threshold, sure in ((best - 0.01, True), (min(1.0, best + 1e-5), False)):
        written = started(threshold=threshold).step(0, rgb, channel_seq="RGB")
        assert (written["class_index"][1] == answer(rgb).argmax()) == sure
        assert (written["label"][1] == "unknown") != sure
        assert len(written["probabilities"][1]) == 3
        assert written["top"][1] != ""


def test_more_best_classes_than_there_are(started):
    top = started(top_k=1000).step(0, noise(32, 32))["top"][1]
    assert len(top.split()) == 3


def test_texts_fit_their_outputs_whatever_the_classes_are_called(started, tmp_path, standin):
    names = [*(f"{index:03}" + "x" * 117 for index in range(3)), "v\u00f6gel", "y" * 400]
    classifier = HPSClassifier(num_classes=5, stages=[1, 1, 1, 1], width=0.1)
    for best in range(5):
        with torch.no_grad():
            classifier.network.classifier.bias.copy_(100 * torch.eye(5)[best] + torch.tensor([3.0, 2, 1, 0, -9]))
        folder = make_bundle(classifier, tmp_path / "named", classes=names)
        written = started(folder, top_k=5).step(0, noise(32, 32))
        assert written["class_index"][1] == best
        assert written["label"][1] == names[best].replace("\u00f6", "?")[:255]
        assert all("=" in entry for entry in written["top"][1].split())
    assert standin.reports("error") == []


def test_as_many_classes_as_the_output_holds(diagram, standin, tmp_path):
    for count in (1000, 1001):
        classifier = HPSClassifier(num_classes=count, stages=[1, 1, 1, 1], width=0.1)
        folder = make_bundle(classifier, tmp_path / "many", classes=[f"c{index}" for index in range(count)])
        runtime = diagram(folder)
        runtime.start()
        written = runtime.step(0, noise(32, 32))
        if count == 1000:
            assert len(written["probabilities"][1]) == 1000
        else:
            assert written == {}
            assert standin.reports("error") == ["hps: more than 1000 classes do not fit the output"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", 0),
        ("top_k", 1.5),
        ("top_k", "many"),
        ("top_k", None),
        ("threads", -1),
        ("threads", 257),
        ("threshold", 1.1),
        ("threshold", float("nan")),
        ("threshold", float("inf")),
        ("channel_order", "CMYK"),
        ("channel_order", 99),
        ("channel_order", -1),
        ("resize", None),
        ("resize", "3|x|stretch|crop|off"),
        ("bundle", "/nowhere"),
        ("bundle", 3),
    ],
)
def test_a_property_that_cannot_be_is_reported(diagram, standin, name, value):
    runtime = diagram()
    runtime.component.properties[name].data = value
    runtime.start()
    (report,) = standin.reports()
    assert report[0] == "error"
    assert f"property {name}" in report[1]
    assert runtime.step(0, noise(32, 32)) == {}
    assert standin.reports() == []
    runtime.stop()


def test_a_property_that_is_missing_is_reported(diagram, standin):
    runtime = diagram()
    del runtime.component.properties["top_k"]
    runtime.start()
    (error,) = standin.reports("error")
    assert "property top_k cannot be read" in error


def test_properties_may_come_as_text_or_bytes(started, bundle):
    runtime = started(top_k="2", threshold="0.25", threads=b"0", bundle=str(bundle).encode())
    runtime.component.properties["resize"].data = b"Crop"
    assert len(runtime.step(0, noise(32, 32))["top"][1].split()) == 2


@pytest.mark.parametrize("name", ["", "manifest.json"])
def test_the_property_bundle_names_another_one(started, tmp_path, standin, name, monkeypatch):
    other = make_bundle(
        HPSClassifier(num_classes=2, stages=[1, 1, 1, 1], width=0.1), tmp_path / "other", classes=["yes", "no"]
    )
    for value in (str(other / name), os.path.join("..", "other", name)):
        # Wherever the runtime was started.
        monkeypatch.chdir("/")
        written = started(bundle=value).step(0, noise(32, 32))
        assert written["label"][1] in ("yes", "no")


def test_the_block_alone_runs_a_bundle_elsewhere(started, bundle, tmp_path):
    (tmp_path / "diagrams").mkdir()
    shutil.copy(bundle / "rtmaps_block.py", tmp_path / "diagrams")
    runtime = started(tmp_path / "diagrams", bundle=str(bundle))
    assert set(runtime.step(0, noise(32, 32))) == OUTPUTS


def test_a_runtime_that_executes_the_files_text(bundle, standin):
    namespace = {"__name__": "block"}
    exec((bundle / "rtmaps_block.py").read_text(), namespace)
    runtime = standin.Runtime(namespace["rtmaps_python"])
    runtime.start()
    (error,) = standin.reports("error")
    assert "property bundle must name the bundle's folder" in error
    runtime.stop()
    runtime.set_property("bundle", str(bundle))
    runtime.start()
    assert set(runtime.step(0, noise(32, 32))) == OUTPUTS


def newer_format(bundle):
    change_manifest(bundle, lambda manifest: manifest.update(format=2))


def other_network(bundle):
    other = HPSClassifier(num_classes=3, stages=[1, 1, 1, 1], width=0.5)
    exported = make_bundle(other, bundle.parent / "other")
    replace_file(bundle, "weights.pt", (exported / "weights.pt").read_bytes())


def truncated(bundle):
    os.truncate(bundle / "weights.pt", 1000)


def truncated_code(bundle):
    os.truncate(bundle / "bundle.py", 2500)


def tampered(bundle):
    content = bytearray((bundle / "weights.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "weights.pt").write_bytes(content)


def no_manifest(bundle):
    (bundle / "manifest.json").unlink()


def no_weights(bundle):
    (bundle / "weights.pt").unlink()


def no_code(bundle):
    (bundle / "frames.py").unlink()


def hostile(bundle):
    replace_file(bundle, "weights.pt", PAYLOADS["among the weights"](bundle.parent / "trace"))


DAMAGES = {
    newer_format: "has format 2, this bundle's code reads 1",
    other_network: "holds the weights of another network",
    truncated: "weights.pt has 1000 bytes instead of",
    truncated_code: "bundle.py is damaged: ",
    tampered: "weights.pt is not the exported one: its SHA-256 differs",
    no_manifest: "manifest.json cannot be read: No such file",
    no_weights: "weights.pt cannot be read: No such file",
    no_code: "frames.py cannot be read: No such file",
    hostile: "weights.pt holds no weights that can be read: it names",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_bundle_is_refused_with_one_report_and_the_block_lives_on(diagram, standin, bundle, damage):
    runtime = diagram()
    sound = {path.name: path.read_bytes() for path in bundle.iterdir() if path.is_file()}
    damage(bundle)
    threads = torch.get_num_threads()
    runtime.set_property("threads", threads + 1)
    for _ in range(2):
        runtime.start()
        (report,) = standin.reports()
        assert report[0] == "error"
        assert DAMAGES[damage] in report[1]
        assert "\n" not in report[1]
        for _ in range(3):
            assert runtime.step(0, noise(32, 32)) == {}
        runtime.stop()
        assert standin.reports() == []
        assert torch.get_num_threads() == threads
    assert not (bundle.parent / "trace").exists()
    for name, content in sound.items():
        (bundle / name).write_bytes(content)
    shutil.rmtree(bundle / "__pycache__", ignore_errors=True)
    runtime.start()
    assert set(runtime.step(0, noise(32, 32))) == OUTPUTS
    runtime.stop()


def test_a_bundle_that_is_replaced_is_read_anew_at_the_next_start(started, bundle, tmp_path):
    runtime = started()
    runtime.step(0, noise(32, 32))
    runtime.stop()
    other = HPSClassifier(num_classes=2, stages=[1, 1, 1, 1], width=0.1)
    make_bundle(other, bundle, classes=["yes", "no"])
    runtime.start()
    assert runtime.step(0, noise(32, 32))["label"][1] in ("yes", "no")


def test_birth_to_death_may_repeat(started, standin):
    runtime = started()
    expected = runtime.step(1, noise(32, 32))["probabilities"][1]
    runtime.step(2, data="broken")
    for _ in range(3):
        runtime.stop()
        runtime.start()
        assert np.array_equal(runtime.step(1, noise(32, 32))["probabilities"][1], expected)
    # As after a crash of the diagram: Birth without a Death before.
    runtime.component.Birth()
    assert np.array_equal(runtime.step(1, noise(32, 32))["probabilities"][1], expected)
    runtime.stop()
    runtime.component.Death()


def test_the_number_of_threads_ends_with_the_run(started):
    before = torch.get_num_threads()
    runtime = started(threads=before + 2)
    assert torch.get_num_threads() == before + 2
    runtime.component.Birth()
    runtime.step(0, noise(32, 32))
    runtime.stop()
    assert torch.get_num_threads() == before
    started(threads=0)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("first", [0, 1])
def test_the_number_of_threads_ends_with_the_last_of_several_blocks(started, bundle, tmp_path, first):
    before = torch.get_num_threads()
    # Of two files, as in a diagram that compares two bundles.
    shutil.copytree(bundle, tmp_path / "other")
    runtimes = [started(threads=before + 1), started(tmp_path / "other", threads=before + 2)]
    assert torch.get_num_threads() == before + 2
    runtimes.pop(first).stop()
    # As the one says that still runs.
    assert torch.get_num_threads() == (before + 2 if first == 0 else before + 1)
    runtimes.pop().stop()
    assert torch.get_num_threads() == before


def test_two_blocks_in_one_diagram(started, tmp_path, answer):
    other = HPSClassifier(num_classes=2, stages=[1, 1, 1, 1], width=0.1)
    folder = make_bundle(other, tmp_path / "other", classes=["yes", "no"])
    first, second = started(), started(folder)
    rgb = noise(32, 32)
    for _ in range(2):
        assert len(second.step(0, rgb)["probabilities"][1]) == 2
        np.testing.assert_allclose(first.step(0, rgb, "RGB")["probabilities"][1], answer(rgb), atol=1e-6)


def test_the_working_directory_is_anyones(started, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert set(started().step(0, noise(32, 32))) == OUTPUTS


def test_a_camera_frame_is_seen_as_pillow_reduces_it(started, answer):
    rgb = noise(90, 120)
    reduced = np.array(Image.fromarray(rgb).resize((32, 32), Image.Resampling.BILINEAR))
    written = started().step(0, rgb[:, :, ::-1])
    np.testing.assert_allclose(written["probabilities"][1], answer(reduced), atol=0.05)


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.train
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="resident memory is read from /proc")
def test_memory_stays_flat_over_thousands_of_frames(started, standin):
    runtime = started()
    good = [noise(32, 32), noise(48, 64), noise(32, 32, 4)]

    def run(count):
        for index in range(count):
            frame = good[index % 3]
            runtime.step(index, frame, "BGRA" if frame.shape[2] == 4 else "BGR")
            if index % 50 == 0:
                # A mistake now and then, never the same, and a new start.
                runtime.step(index, data=np.zeros(index + 1, np.uint8))
            if index % 1000 == 999:
                runtime.stop()
                runtime.start()
                standin.reports()
        gc.collect()

    # benchmarks/block_soak.py has 100,000.
    run(2000)
    before = resident()
    run(4000)
    middle = resident()
    run(2000)
    after = resident()
    # Only the last part, for it costs time.
    tracemalloc.start()
    try:
        run(200)
        first, _ = tracemalloc.get_traced_memory()
        run(800)
        last, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert middle - before < 4e6
    assert after - middle < 4e6
    assert last - first < 50_000


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="threads, files and memory are read from /proc")
def test_starts_leave_no_threads_files_or_memory_behind(started):
    """The same 1,000 times, and 100,000 frames: `benchmarks/block_soak.py`."""
    runtime = started()

    def run(count):
        for _ in range(count):
            runtime.stop()
            runtime.start()
            runtime.step(0, noise(40, 40))
        gc.collect()
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")), resident()

    threads, files, memory = run(20)
    after = run(40)
    assert after[0] <= threads
    assert after[1] <= files
    assert after[2] - memory < 4e6
