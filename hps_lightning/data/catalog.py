"""What is known about each image data set before any of its files is opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hps_lightning.errors import UserError

IMAGE_SIDE = 32
SPLITS = ("train", "test")

_CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_CIFAR100_CLASSES = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle
    bowl boy bridge bus butterfly camel can castle caterpillar cattle
    chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
    dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
    lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
    mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
    plain plate poppy porcupine possum rabbit raccoon ray road rocket
    rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
    """.split()  # noqa: SIM905
)

_CIFAR100_SUPERCLASSES = (
    "aquatic_mammals",
    "fish",
    "flowers",
    "food_containers",
    "fruit_and_vegetables",
    "household_electrical_devices",
    "household_furniture",
    "insects",
    "large_carnivores",
    "large_man-made_outdoor_things",
    "large_natural_outdoor_scenes",
    "large_omnivores_and_herbivores",
    "medium_mammals",
    "non-insect_invertebrates",
    "people",
    "reptiles",
    "small_mammals",
    "trees",
    "vehicles_1",
    "vehicles_2",
)

# fmt: off
_CIFAR100_SUPERCLASS_OF = (
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3,
    3, 14, 9, 18, 7, 11, 3, 9, 7, 11,
    6, 11, 5, 10, 7, 6, 13, 15, 3, 15,
    0, 11, 1, 10, 12, 14, 16, 9, 11, 5,
    5, 19, 8, 8, 15, 13, 14, 17, 18, 10,
    16, 4, 17, 4, 2, 0, 17, 4, 18, 17,
    10, 3, 2, 12, 12, 16, 12, 1, 9, 19,
    2, 10, 0, 1, 16, 12, 9, 13, 15, 13,
    16, 19, 2, 4, 6, 19, 5, 5, 8, 19,
    18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
)
# fmt: on


@dataclass(frozen=True)
class HubSource:
    """A data set in parquet files, one per split, as those on the Hugging Face hub.

    The column ``img`` holds the images, 32 x 32, each as a struct with the encoded file (PNG, JPEG or WebP) in
    ``bytes``.

    Args:
        repo_id: The data set repository on the hub, "owner/name"; of use for a download alone, and empty where there
            is none.
        train_file: Path of the training split inside the repository.
        test_file: Path of the test split inside the repository.
        label_column: The column of class indices.
    """

    repo_id: str
    train_file: str
    test_file: str
    label_column: str

    @property
    def files(self) -> tuple[str, str]:
        """Paths of both splits inside the repository."""
        return self.train_file, self.test_file

    @property
    def folder(self) -> str:
        """The sub-folder of the repository that holds the files."""
        return str(PurePosixPath(self.train_file).parent)

    def file_name(self, split: str) -> str:
        """The bare file name of a split ("train" or "test")."""
        return PurePosixPath(self.train_file if split == "train" else self.test_file).name

    @property
    def file_names(self) -> tuple[str, ...]:
        """The bare file names of both splits."""
        return tuple(self.file_name(split) for split in SPLITS)


@dataclass(frozen=True)
class ArchiveSource:
    """The original archive of pickled batches, which torchvision downloads too.

    Args:
        url: Address of the archive.
        file_name: Name of the archive.
        md5: MD5 of the archive, as hexadecimal digits.
        folder: The folder that the archive unpacks to.
        train_batches: (file name, MD5) of each training batch, in order.
        test_batches: (file name, MD5) of each test batch, in order.
        label_key: The key of the class indices in a batch.
        meta_file: The file of class names. torchvision wants it; this package does not read it.
        meta_key: The key of the class names in ``meta_file``.
    """

    url: str
    file_name: str
    md5: str
    folder: str
    train_batches: tuple[tuple[str, str], ...]
    test_batches: tuple[tuple[str, str], ...]
    label_key: str
    meta_file: str
    meta_key: str

    def batches(self, split: str) -> tuple[tuple[str, str], ...]:
        """(file name, MD5) of each batch of a split ("train" or "test"), in order."""
        return self.train_batches if split == "train" else self.test_batches

    @property
    def file_names(self) -> tuple[str, ...]:
        """The file names of all the batches."""
        return tuple(name for split in SPLITS for name, _ in self.batches(split))


@dataclass(frozen=True)
class DatasetInfo:
    """One data set: its classes, statistics, sizes and sources.

    Args:
        name: The name that users write, such as "cifar10".
        title: The name to print, such as "CIFAR-10".
        classes: Official class names, in label order.
        mean: Mean of the training pixels, RGB, in 0..1.
        std: Standard deviation of the training pixels, RGB, in 0..1.
        train_size: Number of training images.
        test_size: Number of test images.
        superclasses: Names of the superclasses; empty where there are none.
        superclass_of: Index of the superclass of each class; empty where there are none.
        hub: Its parquet files; None for the digits, which need no files.
        archive: Its original archive, where there is one.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    train_size: int
    test_size: int
    superclasses: tuple[str, ...] = ()
    superclass_of: tuple[int, ...] = ()
    hub: HubSource | None = None
    archive: ArchiveSource | None = None

    def size(self, split: str) -> int:
        """Number of images of a split ("train" or "test")."""
        return self.train_size if split == "train" else self.test_size

    @property
    def can_be_downloaded(self) -> bool:
        """Whether it lies anywhere on the Internet; data of one's own need not."""
        return self.archive is not None or bool(self.hub and self.hub.repo_id)


@dataclass(frozen=True)
class Location:
    """Where a data set lies.

    Args:
        path: The folder that directly holds its files.
        layout: "parquet" (the hub's files), "python" (torchvision's pickled batches), or
            "scikit-learn" (inside that package).
    """

    path: Path
    layout: str


DATASETS: dict[str, DatasetInfo] = {
    "cifar10": DatasetInfo(
        name="cifar10",
        title="CIFAR-10",
        classes=_CIFAR10_CLASSES,
        mean=(0.49139968, 0.48215841, 0.44653091),
        # Over all pixels. The 0.2023, 0.1994, 0.2010 in circulation are a mean of per-image deviations.
        std=(0.24703223, 0.24348513, 0.26158784),
        train_size=50_000,
        test_size=10_000,
        hub=HubSource(
            repo_id="uoft-cs/cifar10",
            train_file="plain_text/train-00000-of-00001.parquet",
            test_file="plain_text/test-00000-of-00001.parquet",
            label_column="label",
        ),
        archive=ArchiveSource(
            url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            file_name="cifar-10-python.tar.gz",
            md5="c58f30108f718f92721af3b95e74349a",
            folder="cifar-10-batches-py",
            train_batches=(
                ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
                ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
                ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
                ("data_batch_4", "634d18415352ddfa80567beed471001a"),
                ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
            ),
            test_batches=(("test_batch", "40351d587109b95175f43aff81a1287e"),),
            label_key="labels",
            meta_file="batches.meta",
            meta_key="label_names",
        ),
    ),
    "cifar100": DatasetInfo(
        name="cifar100",
        title="CIFAR-100",
        classes=_CIFAR100_CLASSES,
        mean=(0.50707516, 0.48654887, 0.44091784),
        std=(0.26733429, 0.25643846, 0.27615047),
        train_size=50_000,
        test_size=10_000,
        superclasses=_CIFAR100_SUPERCLASSES,
        superclass_of=_CIFAR100_SUPERCLASS_OF,
        hub=HubSource(
            repo_id="uoft-cs/cifar100",
            train_file="cifar100/train-00000-of-00001.parquet",
            test_file="cifar100/test-00000-of-00001.parquet",
            label_column="fine_label",
        ),
        archive=ArchiveSource(
            url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            file_name="cifar-100-python.tar.gz",
            md5="eb9058c3a382ffc7106e4002c42a8d85",
            folder="cifar-100-python",
            train_batches=(("train", "16019d7e3df5f24257cddd939b257f8d"),),
            test_batches=(("test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),),
            label_key="fine_labels",
            meta_file="meta",
            meta_key="fine_label_names",
        ),
    ),
    "digits": DatasetInfo(
        name="digits",
        title="scikit-learn's handwritten digits",
        classes=tuple(str(digit) for digit in range(10)),
        mean=(0.30582244, 0.30582244, 0.30582244),
        std=(0.37639858, 0.37639858, 0.37639858),
        train_size=1438,
        test_size=359,
    ),
}


def dataset_info(name: str | DatasetInfo) -> DatasetInfo:
    """What is known about a data set.

    Args:
        name: A key of ``DATASETS``, or an info, which is returned as it is. The functions of
            this package that take a name go through here, so they take an info of one's own too.

    Raises:
        UserError: There is no data set of that name.
    """
    if isinstance(name, DatasetInfo):
        return name
    if name not in DATASETS:
        raise UserError(f"unknown data set {name!r}; known are: {', '.join(DATASETS)}")
    return DATASETS[name]
