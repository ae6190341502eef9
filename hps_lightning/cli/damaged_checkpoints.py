"""Opening the checkpoint that a command is given, or the newest sound one where a run's own is damaged."""

from pathlib import Path
from typing import Any

from hps_lightning.checkpoint import DamagedCheckpointError, read_checkpoint
from hps_lightning.errors import UserError, say_trouble
from hps_lightning.modules import RECORD_KEY
from hps_lightning.runs import NEWEST, resolve_checkpoint

Opened = tuple[Path, dict[str, Any]]
"""A checkpoint's path and what :func:`read_checkpoint` gives of it."""


def open_checkpoint(value: str, runs: Path, resumable: bool = False) -> Opened:
    """Reads what ``--ckpt_path`` names; "last" and "best" give way to another of the same run where they are damaged.

    A path that the user typed never does.

    Args:
        value: a path, "last" or "best", as typed.
        runs: the folder of all runs.
        resumable: whether what takes a damaged one's place must hold what a training needs to go on.

    Raises:
        UserError: there is no such checkpoint, or none that is sound.
    """
    path = resolve_checkpoint(value, runs)
    if value in NEWEST:
        return open_or_replace(path, resumable, best=value == "best")
    try:
        return path, read_checkpoint(path)
    except DamagedCheckpointError as error:
        found = _newest_sound(path, resumable)
        if found is None:
            raise
        raise DamagedCheckpointError(
            f"{error} The newest sound one beside it is of {_epoch(found)}: --ckpt_path {found[0]}"
        ) from error


def open_or_replace(path: Path, resumable: bool, best: bool = False) -> Opened:
    """Reads a checkpoint of a run, or another one of the run where it is damaged or missing, and says so.

    The other is the newest: the one after most training steps, whenever its file was written.

    Args:
        path: of the checkpoint.
        resumable: whether the other must hold what a training needs to go on.
        best: whether the other is the one of highest validation accuracy instead; ``weights.ckpt``
            holds the very weights of a damaged ``best.ckpt``.

    Raises:
        UserError: no other is sound.
    """
    trouble = f"{path} is missing."
    if path.is_file():
        try:
            return path, read_checkpoint(path)
        except DamagedCheckpointError as error:
            trouble = str(error)
    found = _newest_sound(path, resumable, best)
    if found is None:
        wanted = "from which its training could go on" if resumable else "that is sound"
        raise DamagedCheckpointError(f"{trouble} Its run has no other checkpoint {wanted}.")
    kind = "best" if best else "newest"
    say_trouble(f"{trouble} Taking {found[0]} instead, the {kind} sound one of its run, of {_epoch(found)}.")
    return found


def _newest_sound(path: Path, resumable: bool, best: bool = False) -> Opened | None:
    found: list[Opened] = []
    for other in sorted(path.parent.glob("*.ckpt")):
        if other == path:
            continue
        try:
            content = read_checkpoint(other)
        except UserError:
            continue
        if not resumable or "optimizer_states" in content:
            found.append((other, content))

    def rank(opened: Opened) -> tuple[float, int, bool]:
        content = opened[1]
        accuracy = (content[RECORD_KEY].get("metrics") or {}).get("val/accuracy", -1.0) if best else 0.0
        return accuracy, content.get("global_step", 0), "optimizer_states" in content

    return max(found, key=rank, default=None)


def _epoch(opened: Opened) -> str:
    return f"epoch {opened[1].get('epoch', 0) + 1}"
