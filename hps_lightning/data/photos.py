"""A user's own image files, brought to the size and colours that the networks were trained on."""

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from hps_lightning.data.batches import normalise
from hps_lightning.errors import UserError


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow would cut these off at 255 instead of scaling them.
        values = np.asarray(image, dtype=np.float64)
        brightest = np.nanmax(values, initial=0)
        if image.mode.startswith("I;16") or brightest > 255:
            highest = 65535.0
        else:
            highest = 1.0 if image.mode == "F" and brightest <= 1 else 255.0
        values = np.nan_to_num(values, posinf=highest)
        image = Image.fromarray(np.clip(values * (255.0 / highest), 0, 255).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        # What shines through in a viewer is usually white.
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def open_photo(path: Path) -> Image.Image:
    """Opens an image file of any size and mode that Pillow reads, upright and in RGB.

    Raises:
        UserError: the file cannot be read as an image.
    """
    try:
        with Image.open(path) as image:
            return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is not an image that Pillow can read.") from error
    except FileNotFoundError as error:
        raise UserError(f"There is no image {path}.") from error
    except Exception as error:  # Pillow's plugins raise errors of every kind for a broken file.
        raise UserError(f"{path} cannot be read as an image: {error}") from error


def read_photo(path: Path, size: int = 32) -> Tensor:
    """Reads an image file of any size and mode that Pillow reads.

    The whole picture is reduced, or enlarged, to a square with a bilinear filter (antialiased
    where it reduces), as the block on the board does.

    Args:
        path: the file.
        size: side of the result in pixels.

    Returns:
        uint8, 3 x ``size`` x ``size``, RGB.

    Raises:
        UserError: the file cannot be read as an image.
    """
    pixels = np.array(open_photo(path).resize((size, size), Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def find_photos(paths: Iterable[str | Path]) -> list[Path]:
    """The image files that ``paths`` name; a folder stands for the images anywhere below it, sorted.

    Raises:
        UserError: a path does not exist, or there is no image in any.
    """
    paths = [Path(path) for path in paths]
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(file for file in path.rglob("*") if file.suffix.lower() in known and file.is_file())
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"There is no image or folder {path}.")
    if not found:
        names = ", ".join(map(str, paths)) or "nothing"
        raise UserError(f"No images in {names}; give image files, or a folder that holds some: --images PATH.")
    return found


class Photos(Dataset[tuple[Tensor, str]]):
    """Image files as normalised images (float32, 3 x ``size`` x ``size``), each with its path.

    A file given by name that cannot be read is an error; one found in a folder is left out
    with a warning, so that one broken file does not cost the others.

    Raises:
        UserError: nothing can be read.
    """

    def __init__(
        self, paths: Iterable[str | Path], mean: tuple[float, ...], std: tuple[float, ...], size: int = 32
    ) -> None:
        paths = [Path(path) for path in paths]
        self.mean, self.std = mean, std
        self.files: list[Path] = []
        images = []
        for file in find_photos(paths):
            try:
                images.append(read_photo(file, size))
            except UserError as error:
                if file in paths:
                    raise
                warnings.warn(f"Left out: {error}", stacklevel=2)
                continue
            self.files.append(file)
        if not images:
            raise UserError(f"None of the files in {', '.join(map(str, paths))} can be read as an image.")
        self.images = torch.stack(images)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        return normalise(self.images[index : index + 1], self.mean, self.std)[0], str(self.files[index])
