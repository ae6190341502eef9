"""How a training's checkpoints reach the disk: whole, flushed, and kept in memory while the disk takes none."""

import contextlib
import errno
import os
import shlex
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer

from hps_lightning.cache import cache_dir
from hps_lightning.checkpoint import read_checkpoint, serialised
from hps_lightning.errors import UserError, say_trouble
from hps_lightning.files import remove_leftovers, replaced_whole


class UnwrittenCheckpointsError(UserError):
    """A training has come to its end, and the disk does not take its checkpoints."""


@dataclass
class _Unwritten:
    """A checkpoint that the disk did not take.

    Attributes:
        content: of the file.
        epoch: that it ends, counted from 1.
        reason: why it was not taken; empty before the first attempt.
    """

    content: memoryview
    epoch: int
    reason: str = ""


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes a training's checkpoints so that none is ever lost; only the process of rank 0 is asked to.

    Lightning's own writes to the system's temporary folder, copies from there over the checkpoint and
    does not flush it, so that a kill or a power cut in the meantime leaves neither the old one nor
    the new one. This one writes beside the checkpoint, flushes, and renames.

    A checkpoint that cannot be written (the disk is full or read-only, the quota is used up) is said so once and kept
    in memory, and the training goes on. It is tried again with each later one and at the end; then, it is saved
    elsewhere. Nothing is removed while anything is unwritten.

    Files on other than local disks are written as Lightning does it.

    Attributes:
        rescued: where the checkpoints lie that could not be written where they belong, by the latter path.
    """

    def __init__(self) -> None:
        self.rescued: dict[Path, Path] = {}
        self._unwritten: dict[Path, _Unwritten] = {}
        self._superseded: list[Path] = []
        self._tidied: set[Path] = set()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any | None = None
    ) -> None:
        """Writes a checkpoint, or keeps it in memory where that is impossible."""
        target = _local(path)
        if target is None or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        earlier = self._unwritten.get(target)
        reason = earlier.reason if earlier else ""
        self._unwritten[target] = _Unwritten(serialised(checkpoint), checkpoint.get("epoch", 0) + 1, reason)
        if target in self._superseded:
            self._superseded.remove(target)
        self._write_all()

    def load_checkpoint(
        self, path: str | os.PathLike, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint, on the CPU, without executing anything that it holds, whatever ``weights_only`` says.

        Raises:
            UserError: see :func:`read_checkpoint`.
        """
        target = _local(path)
        if target is None:
            return super().load_checkpoint(path, weights_only=True)
        return read_checkpoint(target)

    def remove_checkpoint(self, path: str | os.PathLike) -> None:
        """Removes a checkpoint, as soon as those that are to take its place are written."""
        target = _local(path)
        if target is None:
            super().remove_checkpoint(path)
            return
        self._unwritten.pop(target, None)
        self._superseded.append(target)
        self._remove_superseded()

    def teardown(self) -> None:
        """Tries once more at the end of the training, then saves elsewhere what still cannot be written."""
        super().teardown()
        self._write_all()
        for path, unwritten in list(self._unwritten.items()):
            elsewhere = _write_elsewhere(path.name, unwritten.content)
            if elsewhere is not None:
                self.rescued[path] = elsewhere

    def whereabouts(self, path: str) -> str | None:
        """Where the checkpoint lies that belongs to ``path``: there, or elsewhere where it could not be written there.

        None where no disk has it, nor an earlier one at ``path``.
        """
        target = _local(path)
        if target is None or target not in self._unwritten:
            return path
        if target in self.rescued:
            return str(self.rescued[target])
        return path if target.is_file() else None

    def complaint(self) -> str | None:
        """What the user has to know and to do about checkpoints that could not be written; None where all are."""
        if not self._unwritten:
            return None
        reasons = sorted({unwritten.reason for unwritten in self._unwritten.values()})
        folders = sorted({str(_shown(path.parent)) for path in self._unwritten})
        lines = [f"The training's checkpoints cannot be written to {', '.join(folders)}: {'; '.join(reasons)}."]
        saved = {path: self.rescued[path] for path in self._unwritten if path in self.rescued}
        if saved:
            lines.append(
                "They lie elsewhere. Make room, then move them to where they belong, and all goes on from there:"
            )
            lines += [f"  {shlex.join(['mv', str(elsewhere), str(_shown(path))])}" for path, elsewhere in saved.items()]
        lost = [path for path in self._unwritten if path not in self.rescued]
        lines += [
            f"No other folder took {_shown(path)} of epoch {self._unwritten[path].epoch} either; set TMPDIR or "
            "HPS_CACHE_DIR to one with room."
            for path in lost
        ]
        return "\n".join(lines)

    def _write_all(self) -> None:
        # What has waited longest comes first.
        for path, unwritten in list(self._unwritten.items()):
            reason = self._write(path, unwritten.content)
            if reason is None:
                del self._unwritten[path]
                if unwritten.reason:
                    say_trouble(f"{_shown(path)} could be written again; it is of epoch {unwritten.epoch}.")
                continue
            if not unwritten.reason:
                kept = " What was written there before stays." if path.exists() else ""
                say_trouble(
                    f"{_shown(path)} of epoch {unwritten.epoch} cannot be written: {reason}.{kept} The training goes "
                    "on, keeps it in memory and tries again at the next checkpoint."
                )
            unwritten.reason = reason
        self._remove_superseded()

    def _write(self, path: Path, content: memoryview) -> str | None:
        """Writes a file; returns why it could not."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.parent not in self._tidied:
                self._tidied.add(path.parent)
                remove_leftovers(path.parent)
            with replaced_whole(path) as aside:
                aside.write_bytes(content)
        except OSError as error:
            return _reason(error, path.parent, len(content))
        return None

    def _remove_superseded(self) -> None:
        while self._superseded and not self._unwritten:
            path = self._superseded.pop()
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                say_trouble(f"{_shown(path)}, which a later checkpoint replaces, cannot be removed: {error.strerror}.")


def safe_checkpoints(trainer: Trainer) -> SafeCheckpointIO | None:
    """The trainer's :class:`SafeCheckpointIO`, or None where the user or the strategy has brought another."""
    found = trainer.strategy.checkpoint_io
    return found if isinstance(found, SafeCheckpointIO) else None


def use_safe_checkpoints(trainer: Trainer) -> None:
    """Lets a trainer write its checkpoints with a :class:`SafeCheckpointIO` where it would with Lightning's own."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = SafeCheckpointIO()


def _local(path: str | os.PathLike) -> Path | None:
    """The absolute path of a local file, or None of another one."""
    system, name = url_to_fs(os.fspath(path))
    return Path(name) if isinstance(system, LocalFileSystem) else None


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _reason(error: OSError, folder: Path, size: int) -> str:
    reason = error.strerror or str(error)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return reason
    needed = f"it needs {_amount(size)}"
    if error.errno == errno.ENOSPC:
        with contextlib.suppress(OSError):
            needed += f", {_amount(shutil.disk_usage(folder).free)} are free"
    return f"{reason} ({needed})"


def _amount(size: int) -> str:
    return f"{size / 1e3:,.0f} kB" if size < 1e7 else f"{size / 1e6:,.0f} MB"


def _write_elsewhere(name: str, content: memoryview) -> Path | None:
    """Writes a file into a new folder where there is room; returns its path, or None where there is none."""
    for base in _other_folders():
        folder = None
        try:
            base.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix="hps-unwritten-", dir=base))
            with replaced_whole(folder / name) as aside:
                aside.write_bytes(content)
            return folder / name
        except OSError:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
    return None


def _other_folders() -> list[Path]:
    folders = []
    with contextlib.suppress(OSError):
        folders.append(Path(tempfile.gettempdir()))
    with contextlib.suppress(UserError):
        folders.append(cache_dir())
    # Memory, on Linux: gone with the next start, but there until then.
    return [*folders, *filter(Path.is_dir, [Path("/dev/shm")])]
