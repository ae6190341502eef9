import importlib.util
import os
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from hps_lightning.bluebox import export
from hps_lightning.bluebox.standin import load_standin
from hps_lightning.data.batches import normalise
from hps_lightning.modules import HPSClassifier

from .board_environment import make_board_python
from .made import DATA, make_bundle, trained


@pytest.fixture
def classifier():
    return HPSClassifier(num_classes=3, stages=[1, 1, 1, 1], width=0.1)


@pytest.fixture(scope="session")
def decided():
    """A classifier whose answers differ from image to image."""
    torch.manual_seed(3)
    classifier = HPSClassifier(num_classes=3, stages=[1, 1, 1, 1], width=0.25)
    trained(classifier.network)
    images = normalise(torch.randint(0, 256, (64, 3, 32, 32)), DATA["mean"], DATA["std"])
    head = classifier.eval().network.classifier
    with torch.no_grad():
        head.bias.sub_(classifier(images).mean(0))
        head.bias.div_(factor := classifier(images).std() / 2)
        head.weight.div_(factor)
    return classifier


@pytest.fixture(scope="session")
def exported(decided, tmp_path_factory):
    return make_bundle(decided, tmp_path_factory.mktemp("exported") / "bundle")


@pytest.fixture
def bundle(exported, tmp_path):
    """A bundle of ``decided`` that a test may damage."""
    return Path(shutil.copytree(exported, tmp_path / "bundle", ignore=shutil.ignore_patterns("__pycache__")))


def load_board_file(name, folder=export.BOARD_FOLDER):
    """A file that is copied onto the board, as a module of its own."""
    spec = importlib.util.spec_from_file_location(f"board_{name}", Path(folder, f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def board_file(monkeypatch):
    """Loads files of the board by their names, with the imports that they find beside them there."""
    monkeypatch.syspath_prepend(export.BOARD_FOLDER)
    return load_board_file


@pytest.fixture(scope="session")
def bundles():
    """The board's ``bundle.py``."""
    return load_board_file("bundle")


@pytest.fixture(scope="session")
def frames():
    """The board's ``frames.py``."""
    return load_board_file("frames")


@pytest.fixture(scope="session")
def board_python(pytestconfig):
    """A Python 3.7 with PyTorch 1.1.0, made once in HPS_BOARD_ENV or in pytest's cache."""
    folder = Path(os.environ.get("HPS_BOARD_ENV") or pytestconfig.cache.mkdir("board")).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The processes of pytest-xdist may want it at once.
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        return make_board_python(folder)


@pytest.fixture
def standin():
    """The stand-in for RTMaps, with an empty log."""
    standin = load_standin()
    standin.reports()
    return standin
