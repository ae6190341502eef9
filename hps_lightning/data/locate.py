"""Find a data set's files: in the folder that the user names, in the cache, or by a download."""

from __future__ import annotations

import os
from pathlib import Path

from hps_lightning.cache import cache_dir
from hps_lightning.data.catalog import DATASETS, DatasetInfo, Location, dataset_info
from hps_lightning.data.download import DownloadError, download_dataset
from hps_lightning.errors import UserError

ROOT_OPTION = "--data.root"
DATA_DIR_VARIABLE = "HPS_DATA_DIR"
_CACHE = f"the cache; neither {ROOT_OPTION} nor {DATA_DIR_VARIABLE} is set"


def find_dataset(
    name: str | DatasetInfo, root: str | os.PathLike[str] | None = None, download: bool = True
) -> Location:
    """Find a data set's files, downloading them if need be.

    The first of these that is given decides: ``root``, the environment variable ``HPS_DATA_DIR``,
    the cache. Only a data set that the cache lacks is downloaded, never one that a named folder lacks.

    Args:
        name: The data set, such as "cifar10". "digits" has no files of its own: whatever the other
            arguments, its location is inside scikit-learn.
        root: The data set's folder, or a folder that holds it.
        download: Whether to download a data set that the cache lacks.

    Returns:
        The folder that directly holds the files, and their layout.

    Raises:
        UserError: The data set is unknown, is not in the named folder, or is neither in the cache
            nor to be downloaded; or nothing tells how its files are called.
    """
    info = dataset_info(name)
    if info == DATASETS["digits"]:
        return _inside_scikit_learn(info)
    if info.hub is None:
        raise UserError(f"The description of {info.title} has no `hub`, which tells how its files are called.")
    for value, origin in ((root, ROOT_OPTION), (os.environ.get(DATA_DIR_VARIABLE), DATA_DIR_VARIABLE)):
        if value is not None and os.fspath(value):
            return _find_in_named_folder(info, Path(os.path.expanduser(value)), origin)
    cache = cache_dir()
    found = _look_in(info, cache)
    if found is not None:
        return found
    if not info.can_be_downloaded:
        raise UserError(_not_found(info, cache, _CACHE))
    if not download:
        raise UserError(_not_found(info, cache, _CACHE, "It was not downloaded, for download is off."))
    try:
        return download_dataset(info, cache)
    except DownloadError as error:
        failure = "\n  ".join(["The download failed:", *error.reasons])
        raise UserError(_not_found(info, cache, _CACHE, failure)) from None


def _inside_scikit_learn(info: DatasetInfo) -> Location:
    try:
        import sklearn.datasets
    except ImportError:
        raise UserError(
            f"{info.name}: {info.title} need scikit-learn, which is not installed; "
            "install it with: pip install 'hps_lightning[digits]'"
        ) from None
    return Location(Path(sklearn.datasets.__file__).parent / "data", "scikit-learn")


def _find_in_named_folder(info: DatasetInfo, folder: Path, origin: str) -> Location:
    if not os.path.isdir(folder):
        problem = "is not a folder" if os.path.exists(folder) else "does not exist"
        raise UserError(_not_found(info, folder, origin, f"That path {problem}."))
    found = _look_in(info, folder)
    if found is None:
        raise UserError(_not_found(info, folder, origin))
    return found


def _look_in(info: DatasetInfo, root: Path) -> Location | None:
    """The first complete copy of a data set in or below a folder, or None."""
    for layout, folders, file_names in _layouts(info):
        for folder in folders:
            if not _missing(root / folder, file_names):
                return Location(root / folder, layout)
    return None


def _layouts(info: DatasetInfo) -> tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]:
    """Each layout with the folders to look in, relative to a root, and the files that it needs."""
    hub, archive = info.hub, info.archive
    # Folders that bear the data set's name come before the root itself: CIFAR-10 and CIFAR-100
    # have the same file names on the hub.
    parquet = dict.fromkeys((info.name, f"{info.name}/{hub.folder}", hub.folder, "."))
    layouts = [("parquet", tuple(parquet), hub.file_names)]
    if archive is not None:
        layouts.insert(0, ("python", (archive.folder, f"{info.name}/{archive.folder}", "."), archive.file_names))
    return tuple(layouts)


def _missing(folder: Path, file_names: tuple[str, ...]) -> list[str]:
    # Unlike Path.is_file, this is False for a folder that may not be read.
    return [name for name in file_names if not os.path.isfile(folder / name)]


def _not_found(info: DatasetInfo, root: Path, origin: str, why: str = "") -> str:
    """The message for a data set that is not there: what was looked for, where, and the ways out."""
    lines = [f"{info.title} was not found in {root} ({origin}). Looked for:"]
    for layout, folders, file_names in _layouts(info):
        places = ", ".join("the folder itself" if folder == "." else f"{folder}/" for folder in folders)
        lines.append(f"  {layout} layout: {', '.join(file_names)} in {places}")
    lines += _incomplete_copies(info, root)
    if why:
        lines.append(why)
    lines.append("Ways out:")
    if not info.can_be_downloaded:
        lines.append(f"  set {DATA_DIR_VARIABLE} or {ROOT_OPTION} to a folder that holds {info.title};")
    elif origin == DATA_DIR_VARIABLE:
        lines.append(f"  correct {DATA_DIR_VARIABLE}, or unset it to have {info.title} downloaded;")
    elif origin == ROOT_OPTION:
        lines.append(f"  correct {ROOT_OPTION}, or leave it out to have {info.title} downloaded;")
    else:
        lines.append(f"  set {DATA_DIR_VARIABLE} or {ROOT_OPTION} to a folder that holds {info.title};")
        lines.append("  connect this machine to the Internet and run again with downloads on;")
    lines.append("  train offline on small images: hps fit --config quickstart.yaml")
    return "\n".join(lines)


def _incomplete_copies(info: DatasetInfo, root: Path) -> list[str]:
    """One line for each folder that holds some files of a layout but not all."""
    lines = []
    for _, folders, file_names in _layouts(info):
        for folder in folders:
            missing = _missing(root / folder, file_names)
            if 0 < len(missing) < len(file_names):
                lines.append(f"  (incomplete: {root / folder} lacks {', '.join(missing)})")
    return lines
