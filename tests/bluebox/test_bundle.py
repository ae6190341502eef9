import io
import json
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from hps_lightning.bluebox import export
from hps_lightning.data.batches import normalise
from hps_lightning.modules import HPSClassifier

from .made import DATA, change_manifest, make_bundle, replace_file
from .payloads import PAYLOADS, UNPICKLED

FILES = (*export.BOARD_FILES, "README.md", "golden.npz", "manifest.json", "squeezenext.py", "weights.pt")


def images(count=4):
    return np.random.RandomState(count).randint(0, 256, (count, 32, 32, 3)).astype(np.uint8)


def refused(bundles, bundle):
    """What a bundle that cannot be used is refused with, in one line."""
    with pytest.raises(bundles.BundleError) as error:
        bundles.Bundle(str(bundle))
    assert "\n" not in str(error.value)
    assert str(bundle) in str(error.value)
    return str(error.value)


def test_a_bundle_answers_as_the_network_does(bundles, bundle, decided):
    loaded = bundles.Bundle(str(bundle))
    given = images()
    expected = decided(normalise(torch.from_numpy(given).permute(0, 3, 1, 2), DATA["mean"], DATA["std"])).detach()
    assert expected.std(0).min() > 0.1, "answers that hardly differ would agree by themselves"
    assert torch.allclose(loaded.logits(given), expected, rtol=0, atol=1e-4)
    probabilities = loaded.probabilities(given)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, expected.softmax(1), rtol=0, atol=1e-4)
    assert loaded.classes == DATA["classes"]
    assert loaded.side == 32
    assert not loaded.network.training


def test_batch_norms_are_folded_where_the_manifest_asks_for_it(bundles, bundle):
    def norms(loaded):
        return sum(isinstance(module, torch.nn.BatchNorm2d) for module in loaded.network.modules())

    folded = bundles.Bundle(str(bundle))
    change_manifest(bundle, lambda manifest: manifest["network"].update(folded=False))
    plain = bundles.Bundle(str(bundle))
    assert norms(folded) < norms(plain)
    assert torch.allclose(folded.logits(images()), plain.logits(images()), rtol=0, atol=1e-4)


def test_folding_that_is_missing_or_fails_is_told(bundles, bundle):
    replace_file(bundle, "folding.py", b"def fold(network):\n    raise KeyError('norm')\n")
    assert "describes a network that does not run: 'norm'" in refused(bundles, bundle)
    change_manifest(bundle, lambda manifest: {**manifest, "files": without(manifest["files"], "folding.py")})
    assert "does not describe folding.py" in refused(bundles, bundle)


def without(files, name):
    return {key: value for key, value in files.items() if key != name}


def test_images_are_left_as_they_are_and_need_not_be_in_one_piece(bundles, bundle):
    loaded = bundles.Bundle(str(bundle))
    given = images()
    before = given.copy()
    mirrored = loaded.logits(given[:, :, ::-1])
    assert np.array_equal(given, before)
    assert torch.equal(mirrored, loaded.logits(given[:, :, ::-1].copy()))
    assert not torch.equal(mirrored, loaded.logits(given))


def test_the_folder_holds_what_the_tests_damage(bundle):
    assert sorted(path.name for path in bundle.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(bundles, bundle, name):
    (bundle / name).unlink()
    assert f"{bundle / name} cannot be read: No such file" in refused(bundles, bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named(bundles, bundle, name):
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[: len(content) // 2])
    expected = "is damaged" if name == "manifest.json" else f"has {len(content) // 2} bytes instead of {len(content)}"
    assert f"{bundle / name} {expected}" in refused(bundles, bundle)


@pytest.mark.parametrize("name", [name for name in FILES if name != "manifest.json"])
def test_a_changed_file_is_named(bundles, bundle, name):
    content = bytearray((bundle / name).read_bytes())
    content[-2] ^= 1
    (bundle / name).write_bytes(content)
    assert f"{bundle / name} is not the exported one: its SHA-256 differs" in refused(bundles, bundle)


def test_a_folder_or_a_pipe_in_a_files_place(bundles, bundle):
    (bundle / "weights.pt").unlink()
    (bundle / "weights.pt").mkdir()
    assert f"{bundle / 'weights.pt'} is no file" in refused(bundles, bundle)
    (bundle / "weights.pt").rmdir()
    os.mkfifo(bundle / "weights.pt")
    assert f"{bundle / 'weights.pt'} is no file" in refused(bundles, bundle)


def test_there_is_no_such_folder(bundles, tmp_path):
    assert "cannot be read" in refused(bundles, tmp_path / "nowhere")


def test_weights_of_another_network(bundles, bundle, tmp_path):
    other = HPSClassifier(num_classes=3, stages=[1, 1, 1, 1], width=0.5)
    make_bundle(other, tmp_path / "other")
    replace_file(bundle, "weights.pt", (tmp_path / "other" / "weights.pt").read_bytes())
    message = refused(bundles, bundle)
    assert "weights.pt holds the weights of another network: " in message
    assert "the network's is torch.float32 (16, " in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda weights: weights.pop("classifier.bias"), "classifier.bias is missing"),
        (lambda weights: weights.update(more=torch.ones(2)), "'more' is none of its weights"),
        (lambda weights: weights.update({"classifier.bias": torch.ones(4)}), r"torch.float32 (4,), the network's is"),
        (
            lambda weights: weights.update({"classifier.bias": torch.ones(3, dtype=torch.int64)}),
            "torch.int64 (3,), the network's is torch.float32 (3,)",
        ),
        (lambda weights: weights.clear(), "is missing"),
    ],
)
def test_a_weight_too_few_too_many_or_another(bundles, bundle, change, expected):
    weights = torch.load(bundle / "weights.pt", weights_only=True)
    change(weights)
    buffer = io.BytesIO()
    torch.save(weights, buffer, _use_new_zipfile_serialization=False)
    replace_file(bundle, "weights.pt", buffer.getvalue())
    assert expected in refused(bundles, bundle)


@pytest.mark.parametrize("name", ["manifest.json", "weights.pt"])
def test_files_of_two_exports(bundles, bundle, tmp_path, name):
    other = make_bundle(HPSClassifier(num_classes=3, stages=[1, 1, 1, 1], width=0.25), tmp_path / "other")
    (bundle / name).write_bytes((other / name).read_bytes())
    assert "copy the bundle again" in refused(bundles, bundle)


@pytest.mark.parametrize("number", [2, 0, "1", 1.5, None, True])
def test_a_manifest_of_another_format(bundles, bundle, number):
    change_manifest(bundle, lambda manifest: manifest.update(format=number))
    assert f"manifest.json has format {number!r}, this bundle's code reads 1" in refused(bundles, bundle)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"[" * 100_000, b"weights", b'{"format": 1,}'])
def test_a_manifest_that_is_none(bundles, bundle, content):
    (bundle / "manifest.json").write_bytes(content)
    assert "manifest.json is damaged: " in refused(bundles, bundle)


@pytest.mark.parametrize("content", ["[1]", "1", "null", "{}"])
def test_a_manifest_of_other_json(bundles, bundle, content):
    (bundle / "manifest.json").write_text(content)
    assert "manifest.json has format None" in refused(bundles, bundle)


def put(*keys, value):
    """A change of a manifest: ``value`` at the end of ``keys``; None for its removal."""

    def change(manifest):
        for key in keys[:-1]:
            manifest = manifest[key]
        if value is None:
            del manifest[keys[-1]]
        else:
            manifest[keys[-1]] = value

    return change


HOSTILE = [
    (put("files", value=None), "lists no files"),
    (put("files", value=[]), "lists no files"),
    (put("files", value={}), "lists no files"),
    (put("files", "weights.pt", value=None), "does not describe weights.pt"),
    (put("files", "squeezenext.py", value=None), "does not describe squeezenext.py"),
    (put("files", "weights.pt", value=3), "does not describe weights.pt"),
    (put("files", "weights.pt", "bytes", value="many"), "the size 'many'"),
    (put("files", "weights.pt", "sha256", value=3), "SHA-256 differs"),
    (put("classes", value=None), "describes no network: KeyError: 'classes'"),
    (put("classes", value="cat"), "classes must be a list of names"),
    (put("classes", value=[]), "classes must be a list of names"),
    (put("classes", value=["cat", 3, ["dog"]]), "classes must be a list of names"),
    (put("classes", value=["cat", "dog"]), "names 2 classes, the network answers (1, 3)"),
    (put("input", value=7), "describes no network: TypeError"),
    (put("input", "shape", value=[3, 32]), "describes no network: ValueError"),
    (put("input", "shape", value=[1, 32, 32]), "an input of [1, 32, 32]"),
    (put("input", "shape", value=[3, 32, 33]), "an input of [3, 32, 33]"),
    (put("input", "shape", value=[3, 0, 0]), "an input of [3, 0, 0]"),
    (put("input", "shape", value=[3, 1000000, 1000000]), "an input of [3, 1000000, 1000000]"),
    (put("input", "shape", value=[3, "32", "32"]), "an input of [3, '32', '32']"),
    (put("input", "shape", value=[3, 1, 1]), "a network that does not run"),
    (put("input", "mean", value=[0.5]), "a mean of [0.5]"),
    (put("input", "mean", value=[0.5, 0.5, "x"]), "describes no network: ValueError"),
    (put("input", "std", value=[1, 0, 1]), "std of [1, 0, 1]"),
    (put("input", "std", value=[1, float("nan"), 1]), "std of [1, nan, 1]"),
    (put("network", value="HPS"), "describes no network: TypeError"),
    (put("network", "class", value="__builtins__"), "describes no network: TypeError"),
    (put("network", "class", value="Missing"), "describes no network: KeyError"),
    (put("network", "class", value="OrderedDict"), "OrderedDict is no network"),
    (put("network", "arguments", value=[1]), "describes no network: TypeError"),
    (put("network", "arguments", "width", value=-1), "describes no network: ValueError"),
    (put("network", "arguments", "unheard", value=1), "describes no network: TypeError"),
    (put("network", "file", value=3), "names 3, which is no file of a bundle"),
    (put("network", "file", value="manifest.json"), "does not describe manifest.json"),
    (put("network", "file", value="README.md"), "describes no network: SyntaxError"),
    (put("weights", value=None), "describes no network: KeyError: 'weights'"),
    (put("weights", "file", value="golden.npz"), "holds no weights that can be read"),
    (put("weights", "file", value="README.md"), "holds no weights that can be read"),
]
PATHS = ["../x", "/etc/passwd", "a/b", "..\\x", "C:x", "..", ".", "", "x\0y", "a/../../x"]
HOSTILE += [(put("files", path, value={"bytes": 1, "sha256": ""}), "which is no file of a bundle") for path in PATHS]
HOSTILE += [(put("network", "file", value=path), "which is no file of a bundle") for path in PATHS]
HOSTILE += [(put("weights", "file", value=path), "which is no file of a bundle") for path in PATHS]


@pytest.mark.parametrize(("change", "expected"), HOSTILE)
def test_a_manifest_that_describes_nonsense(bundles, bundle, change, expected):
    change_manifest(bundle, change)
    assert expected in refused(bundles, bundle)


def test_a_file_outside_is_not_even_looked_at(bundles, bundle, monkeypatch):
    monkeypatch.setattr(bundles, "_read", lambda *arguments, **options: pytest.fail("it is looked at"))
    with pytest.raises(bundles.BundleError, match="which is no file of a bundle"):
        bundles.verify(str(bundle), {"files": {"../x": {"bytes": 0, "sha256": ""}}})


def test_a_file_name_that_no_file_can_have(bundles, bundle):
    change_manifest(bundle, put("files", "\ud800", value={"bytes": 1, "sha256": ""}))
    assert "cannot be read: " in refused(bundles, bundle)


@pytest.mark.parametrize("kind", PAYLOADS)
def test_weights_that_would_execute_something_are_refused(bundles, bundle, tmp_path, tally, kind):
    trace = tmp_path / "trace"
    replace_file(bundle, "weights.pt", PAYLOADS[kind](trace))
    assert "weights.pt holds no weights that can be read: " in refused(bundles, bundle)
    assert not trace.exists()
    tally("malicious files refused")


@pytest.mark.filterwarnings("ignore:unclosed file")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", UNPICKLED)
def test_those_weights_do_execute_something_elsewhere(tmp_path, kind):
    trace = tmp_path / "trace"
    file = io.BytesIO(PAYLOADS[kind](trace))
    while file.tell() < len(file.getvalue()):
        pickle.load(file)
    assert trace.exists()


def state():
    return {"weight": torch.randn(4, 3), "count": torch.tensor(5), "none": torch.ones(0, 2), "bias": torch.randn(3)}


def legacy(weights):
    buffer = io.BytesIO()
    torch.save(weights, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_weights_are_read_to_the_bit(bundles, kind):
    weights = kind(state())
    read = bundles.read_weights(legacy(weights))
    assert set(read) == set(weights)
    for name, value in weights.items():
        assert torch.equal(read[name], value), name
        assert read[name].dtype == value.dtype
        read[name] += 1
    assert bundles.read_weights(legacy({})) == {}


def test_every_weight_of_an_export_is_read(bundles, bundle, decided):
    read = bundles.read_weights((bundle / "weights.pt").read_bytes())
    expected = decided.network.state_dict()
    assert set(read) == set(expected)
    assert all(torch.equal(read[name], value) for name, value in expected.items())


def test_weights_cut_off_anywhere(bundles):
    content = legacy(state())
    for length in range(len(content)):
        with pytest.raises(ValueError, match=r"\w") as error:
            bundles.read_weights(content[:length])
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        ({"weight": torch.randn(4, 3).t()}, "not in one piece"),
        ({"weight": torch.randn(8)[2:]}, "not in one piece"),
        ({"weight": torch.randn(1).expand(4)}, "not in one piece"),
        ({"weight": torch.randn(3).double()}, "names torch.DoubleStorage"),
        ({"weight": torch.nn.Parameter(torch.ones(2))}, "names torch._utils._rebuild_parameter"),
        ({"weight": 3}, "."),
        ([torch.ones(2)], "."),
        (3, "."),
    ],
)
def test_files_that_hold_other_things(bundles, weights, match):
    with pytest.raises(ValueError, match=match):
        bundles.read_weights(legacy(weights))


def test_what_follows_the_weights_is_refused(bundles):
    with pytest.raises(ValueError, match="goes on after its end"):
        bundles.read_weights(legacy(state()) + b"\0")


def test_a_size_that_the_values_do_not_have(bundles):
    content = legacy({"weight": torch.ones(6)})
    count = (6).to_bytes(8, "little")
    assert content.count(count) == 1
    for other in (5, 7, 2**40, -1):
        with pytest.raises(ValueError, match=r"\w"):
            bundles.read_weights(content.replace(count, other.to_bytes(8, "little", signed=True)))


def test_two_bundles_with_files_of_one_name(bundles, bundle, tmp_path):
    other = make_bundle(HPSClassifier(num_classes=3, stages=[1, 2, 1, 1], width=0.1), tmp_path / "other")
    first, second = bundles.Bundle(str(bundle)), bundles.Bundle(str(other))
    count = [sum(value.numel() for value in loaded.network.state_dict().values()) for loaded in (first, second)]
    assert count[0] != count[1]
    assert json.loads((other / "manifest.json").read_text()) == second.manifest
