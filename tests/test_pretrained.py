import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import hps_lightning
from hps_lightning import pretrained, zoo
from hps_lightning.checkpoint import read_checkpoint
from hps_lightning.data.locate import find_dataset
from hps_lightning.data.readers import load_images
from hps_lightning.errors import UserError
from hps_lightning.modules import RECORD_KEY

PUBLISHED = pretrained.published_names()


def split(name):
    return name.rsplit("-", 1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_is_the_zoos_and_says_how_it_was_trained(name):
    network, dataset = split(name)
    net = hps_lightning.load(network, dataset)
    expected = zoo.find_variant(network).build(len(net.classes)).state_dict()
    assert {key: value.shape for key, value in net.network.state_dict().items()} == {
        key: value.shape for key, value in expected.items()
    }
    assert not net.network.training
    assert net.facts["protocol"] == "full"
    assert net.facts["dataset"] == dataset
    assert net.facts["command"].startswith("hps fit ")
    checkpoint = read_checkpoint(pretrained.published_folder() / f"{name}.ckpt")
    assert "optimizer_states" not in checkpoint
    assert checkpoint[RECORD_KEY]["data"]["root"] is None


def test_images_go_where_the_network_is():
    net = hps_lightning.load("hps_06_05x")
    net.network.to("meta")
    assert net.probabilities(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).device.type == "meta"


@pytest.mark.cifar
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_answers_as_recorded(name):
    network, dataset = split(name)
    try:
        find_dataset(dataset, download=False)
    except UserError as error:
        pytest.skip(f"needs the real {dataset}: {error}")
    net = hps_lightning.load(network, dataset)
    test = load_images(dataset, "test")
    predicted = torch.cat([net.probabilities(images).argmax(1) for images in test.images[:1000].split(250)])
    right = int((predicted == test.labels[:1000]).sum())
    # Another processor may round the odd pair of nearly equal logits the other way.
    assert abs(right - net.facts["test"]["correct_of_first_1000"]) <= 1


def test_the_table_is_that_of_the_facts():
    text = (pretrained.published_folder() / "README.md").read_text(encoding="utf-8")
    for name in PUBLISHED:
        facts = json.loads((pretrained.published_folder() / f"{name}.json").read_text(encoding="utf-8"))
        # A network that another one taught says so behind its name.
        pattern = rf"\| `{split(name)[0]}`(, distilled from `[\w ]+`)? \| {split(name)[1]} \|"
        row = next(line for line in text.splitlines() if re.match(pattern, line))
        assert ("distilled" in row) == (facts.get("distillation") is not None)
        assert f"{facts['test']['correct']:,} of {facts['test']['images']:,}" in row


def test_the_readme_says_what_was_measured():
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    table = text.partition("## Published networks")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([\w. -]+) \| (CIFAR-10+) \| ([\d.]+) %.*? \| ([\d.]+) % \|", table, re.MULTILINE)

    def plain(name):
        return re.sub(r"[^a-z0-9]", "", name.lower())

    said = {plain(name + dataset): figures for name, dataset, *figures in rows}
    assert len(said) == len(PUBLISHED)
    for name in PUBLISHED:
        facts = json.loads((pretrained.published_folder() / f"{name}.json").read_text(encoding="utf-8"))
        network, dataset = split(name)
        printed = zoo.find_variant(network).published(dataset).accuracy
        assert said[plain(name)] == [f"{100 * facts['test']['accuracy']:.2f}", f"{printed:.2f}"], name


def test_what_is_not_published_is_refused_with_what_is():
    with pytest.raises(UserError, match=r"hps_99_1x trained on cifar10 is not published\. Published: "):
        hps_lightning.load("hps_99_1x")


def test_the_package_has_no_other_attributes():
    with pytest.raises(AttributeError, match="lode"):
        _ = hps_lightning.lode


def test_images_are_prepared_from_a_file_or_a_tensor(tmp_path):
    net = hps_lightning.load(*split(PUBLISHED[0]))
    Image.new("RGB", (32, 32), (10, 200, 30)).save(tmp_path / "green.png")
    tensor = torch.tensor([10, 200, 30], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 32, 32)
    assert torch.equal(net.preprocess(tmp_path / "green.png"), net.preprocess(tensor))
    assert net.probabilities(tensor).sum().item() == pytest.approx(1, abs=1e-5)
    with pytest.raises(UserError, match="uint8"):
        net.preprocess(torch.zeros(1, 3, 32, 32))
    for shape in ((1, 3, 224, 224), (1, 3, 1, 1), (1, 1, 32, 32), (3, 32, 32)):
        with pytest.raises(
            UserError, match=r"takes uint8 images of N x 3 x 32 x 32, got torch\.uint8 of .* resize them"
        ):
            net.probabilities(torch.zeros(shape, dtype=torch.uint8))
