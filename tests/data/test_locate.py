import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hps_lightning.data.catalog import DATASETS, Location, dataset_info
from hps_lightning.data.download import DownloadError
from hps_lightning.data.locate import find_dataset
from hps_lightning.errors import UserError


@pytest.fixture(autouse=True)
def no_data_but_the_tests(monkeypatch, tmp_path):
    monkeypatch.delenv("HPS_DATA_DIR", raising=False)
    monkeypatch.setenv("HPS_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def no_download(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("nothing is to be downloaded here")

    monkeypatch.setattr("hps_lightning.data.locate.download_dataset", refuse)


def make(folder: Path, name: str, layout: str) -> Path:
    """Empty files under the names of a data set, for nothing here opens them."""
    info = dataset_info(name)
    folder.mkdir(parents=True)
    for file_name in info.hub.file_names if layout == "parquet" else info.archive.file_names:
        (folder / file_name).touch()
    return folder


@pytest.mark.parametrize(
    ("name", "layout", "inside"),
    [
        ("cifar10", "parquet", "."),
        ("cifar10", "parquet", "cifar10"),
        ("cifar10", "parquet", "plain_text"),
        ("cifar10", "parquet", "cifar10/plain_text"),
        ("cifar10", "python", "."),
        ("cifar10", "python", "cifar-10-batches-py"),
        ("cifar10", "python", "cifar10/cifar-10-batches-py"),
        ("cifar100", "parquet", "."),
        ("cifar100", "parquet", "cifar100"),
        ("cifar100", "parquet", "cifar100/cifar100"),
        ("cifar100", "python", "."),
        ("cifar100", "python", "cifar-100-python"),
        ("cifar100", "python", "cifar100/cifar-100-python"),
    ],
)
def test_each_arrangement_of_folders_is_found(tmp_path, no_download, name, layout, inside):
    folder = make(tmp_path / "root" / inside, name, layout)
    assert find_dataset(name, tmp_path / "root") == Location(folder, layout)


def test_the_folder_of_each_data_set_is_taken_where_both_lie(tmp_path, no_download):
    for name in ("cifar10", "cifar100"):
        make(tmp_path / "root" / name, name, "parquet")
    for name in ("cifar10", "cifar100"):
        assert find_dataset(name, tmp_path / "root").path == tmp_path / "root" / name


def test_explicit_root_wins_over_environment(tmp_path, monkeypatch, no_download):
    explicit = make(tmp_path / "explicit", "cifar10", "parquet")
    monkeypatch.setenv("HPS_DATA_DIR", str(make(tmp_path / "environment", "cifar10", "parquet")))
    assert find_dataset("cifar10", str(explicit)).path == explicit


def test_environment_wins_over_cache(tmp_path, monkeypatch, no_download):
    make(tmp_path / "cache" / "cifar10", "cifar10", "parquet")
    environment = make(tmp_path / "environment", "cifar10", "python")
    monkeypatch.setenv("HPS_DATA_DIR", str(environment))
    assert find_dataset("cifar10") == Location(environment, "python")


def test_cache_wins_over_download(tmp_path, no_download):
    cached = make(tmp_path / "cache" / "cifar10", "cifar10", "parquet")
    assert find_dataset("cifar10").path == cached


def test_an_empty_variable_is_as_none(tmp_path, monkeypatch, no_download):
    cached = make(tmp_path / "cache" / "cifar10", "cifar10", "parquet")
    monkeypatch.setenv("HPS_DATA_DIR", "")
    assert find_dataset("cifar10").path == cached


def test_a_home_folder_is_expanded(tmp_path, monkeypatch, no_download):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = make(tmp_path / "data" / "cifar10", "cifar10", "parquet")
    assert find_dataset("cifar10", "~/data").path == folder


def test_a_root_that_does_not_exist_is_refused_though_the_cache_has_the_data(tmp_path, no_download):
    make(tmp_path / "cache" / "cifar10", "cifar10", "parquet")
    with pytest.raises(UserError, match="does not exist") as caught:
        find_dataset("cifar10", tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(caught.value)


def test_a_root_that_is_a_file_is_refused(tmp_path, no_download):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not a folder"):
        find_dataset("cifar10", tmp_path / "file")


def test_a_root_without_the_data_says_what_was_looked_for(tmp_path, monkeypatch, no_download):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("HPS_DATA_DIR", str(tmp_path / "empty"))
    with pytest.raises(UserError) as caught:
        find_dataset("cifar100")
    message = str(caught.value)
    assert f"CIFAR-100 was not found in {tmp_path / 'empty'} (HPS_DATA_DIR)" in message
    for text in ("train-00000-of-00001.parquet", "cifar-100-python/", "unset it", "quickstart.yaml"):
        assert text in message


@pytest.mark.parametrize("download", [True, False])
@pytest.mark.parametrize("named", [True, False])
def test_data_of_ones_own_are_not_said_to_be_downloadable(tmp_path, no_download, named, download):
    hub = replace(DATASETS["cifar10"].hub, repo_id="")
    own = replace(DATASETS["cifar10"], name="pets", title="My pets", hub=hub, archive=None)
    with pytest.raises(UserError, match="My pets was not found in ") as caught:
        find_dataset(own, tmp_path if named else None, download)
    assert "set HPS_DATA_DIR or --data.root to a folder that holds My pets;" in str(caught.value)
    assert "download" not in str(caught.value)


def test_the_other_data_set_is_not_found_by_its_folder(tmp_path, no_download):
    make(tmp_path / "root" / "cifar-100-python", "cifar100", "python")
    with pytest.raises(UserError, match="CIFAR-10 was not found"):
        find_dataset("cifar10", tmp_path / "root")


def test_an_incomplete_copy_is_not_found_but_named(tmp_path, no_download):
    folder = make(tmp_path / "root" / "cifar-10-batches-py", "cifar10", "python")
    (folder / "data_batch_3").unlink()
    with pytest.raises(UserError, match=r"incomplete: .*cifar-10-batches-py lacks data_batch_3"):
        find_dataset("cifar10", tmp_path / "root")


def test_without_download_an_empty_cache_is_refused(tmp_path, no_download):
    with pytest.raises(UserError, match="download is off") as caught:
        find_dataset("cifar10", download=False)
    assert str(tmp_path / "cache") in str(caught.value)


def test_an_empty_cache_is_filled_by_a_download(tmp_path, monkeypatch):
    asked = []

    def download(info, destination):
        asked.append((info.name, destination))
        return Location(destination / "cifar10", "parquet")

    monkeypatch.setattr("hps_lightning.data.locate.download_dataset", download)
    assert find_dataset("cifar10") == Location(tmp_path / "cache" / "cifar10", "parquet")
    assert asked == [("cifar10", tmp_path / "cache")]


def test_a_failed_download_is_one_clear_error(tmp_path, monkeypatch):
    def fail(info, destination):
        raise DownloadError(info.title, ("the hub: no answer", "the university: HTTP status 503"))

    monkeypatch.setattr("hps_lightning.data.locate.download_dataset", fail)
    with pytest.raises(UserError) as caught:
        find_dataset("cifar10")
    message = str(caught.value)
    for text in (
        str(tmp_path / "cache"),
        "neither --data.root nor HPS_DATA_DIR is set",
        "train-00000-of-00001.parquet",
        "data_batch_1",
        "the hub: no answer",
        "the university: HTTP status 503",
        "set HPS_DATA_DIR or --data.root",
        "connect this machine",
        "hps fit --config quickstart.yaml",
    ):
        assert text in message


def test_digits_are_inside_scikit_learn_whatever_the_root(tmp_path, no_download):
    location = find_dataset("digits", tmp_path / "nowhere")
    assert location.layout == "scikit-learn"
    assert (location.path / "digits.csv.gz").is_file()


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install 'hps_lightning\[digits\]'"):
        find_dataset("digits")


def test_unknown_name():
    with pytest.raises(UserError, match="'cifar11'"):
        find_dataset("cifar11")
