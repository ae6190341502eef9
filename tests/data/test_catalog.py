import numpy as np
import pyarrow.parquet as pq
import pytest

from hps_lightning.data.catalog import DATASETS, dataset_info
from hps_lightning.data.locate import find_dataset
from hps_lightning.data.readers import load_images
from hps_lightning.errors import UserError


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_an_info_is_consistent(name):
    info = dataset_info(name)
    assert info.name == name
    assert len(set(info.classes)) == len(info.classes)
    assert len(info.superclass_of) in (0, len(info.classes))
    assert set(info.superclass_of) == set(range(len(info.superclasses)))


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100), ("digits", 10)])
def test_number_of_classes(name, classes):
    assert len(dataset_info(name).classes) == classes


@pytest.mark.parametrize(
    ("fine", "coarse"),
    [("apple", "fruit_and_vegetables"), ("crab", "non-insect_invertebrates"), ("wolf", "large_carnivores")],
)
def test_superclass_of_a_class(fine, coarse):
    info = dataset_info("cifar100")
    assert info.superclasses[info.superclass_of[info.classes.index(fine)]] == coarse


def test_classes_of_cifar100_are_in_alphabetical_order_and_five_to_a_superclass():
    info = dataset_info("cifar100")
    assert list(info.classes) == sorted(info.classes)
    assert list(info.superclasses) == sorted(info.superclasses)
    assert np.bincount(info.superclass_of).tolist() == [5] * 20


def test_an_unknown_name_is_named_with_the_known_ones():
    with pytest.raises(UserError, match=r"'cifar1000'.*cifar10, cifar100, digits"):
        dataset_info("cifar1000")


def test_an_info_of_ones_own_passes():
    info = dataset_info("digits")
    assert dataset_info(info) is info


def test_statistics_of_digits():
    info = dataset_info("digits")
    pixels = load_images("digits", "train").images.double() / 255
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(info.mean, abs=1e-7)
    assert pixels.std((0, 2, 3), correction=0).tolist() == pytest.approx(info.std, abs=1e-7)


@pytest.fixture(params=["cifar10", "cifar100"])
def real_info(request):
    try:
        find_dataset(request.param, download=False)
    except UserError as error:
        pytest.skip(str(error).partition("\n")[0])
    return dataset_info(request.param)


@pytest.mark.cifar
def test_real_data_have_the_stated_sizes_balance_and_statistics(real_info):
    train, test = (load_images(real_info.name, split, download=False) for split in ("train", "test"))
    classes = len(real_info.classes)
    assert len(train.images) == real_info.train_size == 50_000
    assert len(test.images) == real_info.test_size == 10_000
    assert train.labels.bincount(minlength=classes).tolist() == [50_000 // classes] * classes
    assert test.labels.bincount(minlength=classes).tolist() == [10_000 // classes] * classes
    # From the counts of each of the 256 values, for a copy in floating point would take gigabytes.
    values = np.arange(256) / 255
    for channel in range(3):
        weights = train.images[:, channel].flatten().bincount(minlength=256).numpy() / (50_000 * 32 * 32)
        mean = (weights * values).sum()
        std = np.sqrt((weights * (values - mean) ** 2).sum())
        # Some copies hold 121 images of CIFAR-10 as JPEG, hence not closer.
        assert mean == pytest.approx(real_info.mean[channel], abs=1e-4)
        assert std == pytest.approx(real_info.std[channel], abs=1e-4)


@pytest.mark.cifar
@pytest.mark.parametrize("real_info", ["cifar100"], indirect=True)
def test_real_superclasses_are_the_stated_ones(real_info):
    location = find_dataset(real_info, download=False)
    if location.layout != "parquet":
        pytest.skip(f"{location.path} has the {location.layout} layout, without a column of superclasses")
    for split in ("train", "test"):
        table = pq.read_table(location.path / real_info.hub.file_name(split), columns=["fine_label", "coarse_label"])
        fine, coarse = (table.column(name).to_numpy() for name in table.column_names)
        assert np.array_equal(np.array(real_info.superclass_of)[fine], coarse)
