"""What an installed package holds, which the tests, run from the checkout, would not miss."""

import configparser
from pathlib import Path

import pytest

from tests.lowest import constraints

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def setup():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_every_package_is_installed(setup):
    def packages(folder, name):
        found = [path.parent.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("__init__.py")]
        return {".".join([name, *path.parts]) for path in found}

    listed = setup["options"]["packages"].split()
    assert len(listed) == len(set(listed))
    expected = packages("hps_lightning", "hps_lightning") | packages("configs", "hps_lightning.configs")
    assert set(listed) == expected | {"hps_lightning.published"}


def test_every_data_file_is_installed(setup):
    data = setup["options.package_data"]
    patterns = {name: data[name].replace(",", " ").split() for name in data}
    for folder, name in (
        ("hps_lightning", "hps_lightning"),
        ("configs", "hps_lightning.configs"),
        ("checkpoints", "hps_lightning.published"),
    ):
        for path in (ROOT / folder).rglob("*"):
            if not path.is_file() or "__pycache__" in path.parts:
                continue
            # The folders of what runs on the board are data, though they hold Python.
            package_folder = path.parent
            while not (package_folder / "__init__.py").is_file() and package_folder != ROOT / folder:
                package_folder = package_folder.parent
            if path.suffix == ".py" and path.parent == package_folder:
                continue
            package = ".".join([name, *package_folder.relative_to(ROOT / folder).parts])
            # As setuptools looks for them: below the package's folder, not in any depth.
            assert any(path in package_folder.glob(pattern) for pattern in patterns[package]), path


def test_every_dependency_has_a_lower_bound_and_all_but_fsspec_an_upper_one(setup):
    lines = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    for line in "\n".join(lines).splitlines():
        if line.strip() and not line.lstrip().startswith(("#", "%")):
            assert ">=" in line, line
            # fsspec counts years.
            assert "<" in line or line.startswith("fsspec"), line
    assert "torch==2.9" in constraints()
    assert 'onnxruntime==1.25; python_version >= "3.11"' in constraints()


def test_malicious_releases_of_lightning_are_excluded(setup):
    requirement = next(
        line for line in setup["options"]["install_requires"].splitlines() if line.startswith("lightning")
    )
    assert "!=2.6.2" in requirement
    assert "!=2.6.3" in requirement


def test_the_command_is_installed(setup):
    assert setup["options.entry_points"]["console_scripts"].split() == ["hps", "=", "hps_lightning.cli:main"]
