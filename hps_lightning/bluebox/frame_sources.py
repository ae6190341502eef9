"""Where a replay's frames come from: image files, a data set's test images, or a made camera."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hps_lightning.data.photos import find_photos, open_photo
from hps_lightning.errors import UserError, say_trouble

WEBCAM_FRAMES = 300
"""How many the made camera has, if not told."""

Frame = tuple[np.ndarray | None, str | None]
"""A picture (uint8, rows x columns x 3, RGB; None where it cannot be read) and its class, where that is known."""


class FileFrames(Sequence[Frame]):
    """Image files as frames; one is of the class that ``labels`` or else its folder's name says.

    A file given by name that cannot be read is an error; one found in a folder has no picture.

    Args:
        paths: image files, and folders that hold some at any depth.
        classes: the bundle's.
        labels: a file with a line "image class" for each, image paths being relative to it.

    Raises:
        UserError: there are no images, or ``labels`` cannot be used.
    """

    def __init__(self, paths: Sequence[Path], classes: Sequence[str], labels: Path | None = None) -> None:
        self._named = set(paths)
        self._files = find_photos(paths)
        self._classes = classes
        self._labels = None if labels is None else _read_labels(labels, classes)
        if self._labels is not None and not any(file.resolve() in self._labels for file in self._files):
            raise UserError(f"{labels} names none of the images; its paths are relative to the folder that it lies in.")

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Frame:
        file = self._files[index]
        if self._labels is not None:
            label = self._labels.get(file.resolve())
        else:
            # Where a link lies, not what it leads to: sets are split by links into one folder.
            folder = Path(os.path.abspath(file)).parent.name
            label = folder if folder in self._classes else None
        try:
            return np.asarray(open_photo(file)), label
        except UserError as error:
            if file in self._named:
                raise
            say_trouble(f"left out: {error}")
            return None, label


def _read_labels(path: Path, classes: Sequence[str]) -> dict[Path, str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    labels = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        image, _, name = line.rpartition(",") if "," in line else line.strip().replace("\t", " ").rpartition(" ")
        if name.strip() not in classes:
            raise UserError(
                f"{path}, line {number}: {name.strip()!r} is none of the bundle's classes, {', '.join(classes)}."
            )
        labels[Path(path.parent, image.strip()).resolve()] = name.strip()
    return labels


class DatasetFrames(Sequence[Frame]):
    """The test images of a data set as frames.

    Raises:
        UserError: it is not found, or has other classes than the bundle.
    """

    def __init__(self, name: str, classes: Sequence[str], root: Path | None = None) -> None:
        from hps_lightning.data.catalog import dataset_info
        from hps_lightning.data.readers import load_images

        if list(dataset_info(name).classes) != list(classes):
            raise UserError(f"The bundle tells other classes apart than those of {name}: {', '.join(classes)}.")
        split = load_images(name, "test", root)
        self._images = split.images.permute(0, 2, 3, 1).numpy()
        self._labels = [classes[label] for label in split.labels]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Frame:
        return self._images[index], self._labels[index]


class WebcamFrames(Sequence[Frame]):
    """What a camera that turns sees of a made scene: the same frames each time, no two neighbours alike.

    Args:
        columns: of a frame.
        rows: of a frame.
        count: of frames.
    """

    _STEP = 7

    def __init__(self, columns: int, rows: int, count: int = WEBCAM_FRAMES) -> None:
        random = np.random.RandomState(0)
        patches = random.randint(0, 256, (rows // 16 + 1, 2 * columns // 16 + 1, 3)).astype(np.uint8)
        self._scene = patches.repeat(16, axis=0).repeat(16, axis=1)[:rows]
        self._columns = columns
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Frame:
        if not 0 <= index < self._count:
            raise IndexError(index)
        left = index * self._STEP % self._columns
        return self._scene[:, left : left + self._columns], None
