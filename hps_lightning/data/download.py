"""Download a data set: the Hugging Face hub first, then the university's archive.

Both sources are verified, written aside in the destination's file system, and renamed into
place, so that nothing which was interrupted or altered ever looks complete.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import hashlib
import logging
import os
import shutil
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import TypeVar

from filelock import FileLock, Timeout
from tqdm import tqdm

from hps_lightning.data.catalog import DatasetInfo, Location
from hps_lightning.data.checksums import digest, write_checksums
from hps_lightning.errors import UserError

logger = logging.getLogger(__name__)

# How long a source may take to answer at all, name look-up and every address of the host included.
ANSWER_SECONDS = 8.0
# How long a source that has answered may pause. The university's server is slow but does go on.
STALL_SECONDS = 60.0
_CHUNK_BYTES = 1 << 16
# Seconds before each attempt to go on where a connection broke, until something comes again: a router takes minutes.
_PAUSES = (1, 2, 4, 8, 15, 30, 60, 120)
_LOCK = ".lock"
_JUST_BEGUN_SECONDS = 60
_FULL = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name)}

T = TypeVar("T")


class DownloadError(UserError):
    """No source gave the data set.

    Args:
        title: The data set's name to print.
        reasons: Why each source failed, one text per source.
    """

    def __init__(self, title: str, reasons: tuple[str, ...]):
        super().__init__("\n  ".join([f"{title} could not be downloaded:", *reasons]))
        self.reasons = reasons


class _RefusedError(Exception):
    """A source delivered something that must not be used; the message says what."""


def download_dataset(info: DatasetInfo, destination: Path, endpoint: str | None = None) -> Location:
    """Download a data set into a folder.

    The hub's parquet files become ``<destination>/<name>/``, the university's batches
    ``<destination>/<archive folder>/``. Another process may do the same at the same time.

    Args:
        info: The data set. Its ``hub`` says where from, and its ``archive`` where else, if it has one.
        destination: The folder to download into; made if missing.
        endpoint: Address of the hub; by default ``HF_ENDPOINT``, else huggingface.co.

    Returns:
        The folder that holds the files, and their layout.

    Raises:
        DownloadError: No source gave the data set, or the folder cannot be written.
    """
    endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or "").rstrip("/") or None
    try:
        destination.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(info, destination)
        # A failure to clear what was written aside must not hide the outcome of the download.
        staging_folder = tempfile.TemporaryDirectory(
            prefix=f".{info.name}-", dir=destination, ignore_cleanup_errors=True
        )
    except OSError as error:
        raise DownloadError(info.title, (f"{destination} cannot be written: {error.strerror}",)) from None
    with staging_folder as name, contextlib.ExitStack() as held:
        # Some network file systems have no locks; there, nobody tidies up either (NotImplementedError: so filelock
        # says it before 3.24).
        with contextlib.suppress(OSError, NotImplementedError):
            held.enter_context(FileLock(Path(name, _LOCK), timeout=0))
        return _first_source(info, Path(name), destination, endpoint)


def _remove_abandoned(info: DatasetInfo, destination: Path) -> None:
    """Removes what killed downloads have left aside; that of a living one is locked, or just begun."""
    for folder in destination.glob(f".{info.name}-*"):
        # What has no lock, as in `download_dataset`, stays: nobody knows whether it is of use.
        with contextlib.suppress(OSError, NotImplementedError, Timeout):
            if time.time() - folder.stat().st_mtime > _JUST_BEGUN_SECONDS:
                with FileLock(folder / _LOCK, timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)


def _first_source(info: DatasetInfo, staging: Path, destination: Path, endpoint: str | None) -> Location:
    """Take the data set from the first source that gives it, and rename it into place."""
    hub_host = _host(endpoint or "https://huggingface.co")
    # Any failure of one source is a reason to try the next, and the classes of the hub library's
    # errors differ between its versions (requests, httpx).
    try:
        ready = _from_hub(info, staging, endpoint)
        return Location(_put_in_place(ready, destination / info.name, info.hub.file_names), "parquet")
    except Exception as error:
        _raise_if_full(info, destination, error)
        hub_reason = f"the Hugging Face hub ({hub_host}): {_in_few_words(error)}"
    if info.archive is None:
        raise DownloadError(info.title, (hub_reason,))
    try:
        ready = _from_archive(info, staging, hub_reason)
        return Location(_put_in_place(ready, destination / ready.name, info.archive.file_names), "python")
    except Exception as error:
        _raise_if_full(info, destination, error)
        archive_reason = f"the university's server ({_host(info.archive.url)}): {_in_few_words(error)}"
    raise DownloadError(info.title, (hub_reason, archive_reason))


def _raise_if_full(info: DatasetInfo, destination: Path, error: Exception) -> None:
    """Gives up where another source would meet the same full disk."""
    if isinstance(error, OSError) and error.errno in _FULL:
        raise DownloadError(info.title, (f"{destination} cannot be written: {error.strerror}",)) from error


def _from_hub(info: DatasetInfo, staging: Path, endpoint: str | None) -> Path:
    """Download and verify the hub's files; return the folder that holds just them."""
    ready = staging / info.name
    ready.mkdir()
    checksums = {}
    for path in info.hub.files:
        try:
            file, sha256 = _hub_file(info.hub.repo_id, path, staging / "hub", endpoint)
        except Exception as error:
            if _http_status(error) != HTTPStatus.UNAUTHORIZED:
                raise
            # The user's token has expired, or is another hub's; the data sets themselves need none.
            file, sha256 = _hub_file(info.hub.repo_id, path, staging / "hub", endpoint, token=False)
        name = PurePosixPath(path).name
        os.replace(file, ready / name)
        checksums[name] = sha256
    # What is altered afterwards, by a disk or by anybody, is found by them.
    write_checksums(ready, checksums)
    return ready


def _hub_file(
    repo_id: str, path: str, folder: Path, endpoint: str | None, token: bool | None = None
) -> tuple[Path, str]:
    """Download one file from the hub and verify its size and SHA-256; return where it is and the latter.

    With the token that the user has stored, if any; or, where ``token`` is False, without.
    """
    # Only a download needs it, and importing it takes a noticeable part of a second.
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    url = hf_hub_url(repo_id, path, repo_type="dataset", endpoint=endpoint)
    # hf_hub_download would retry for minutes without a network; asking first does not.
    expected = _answer_in_time(lambda: get_hf_file_metadata(url, token=token, timeout=ANSWER_SECONDS))
    # The ETag of a large file is its SHA-256.
    if len(expected.etag or "") != hashlib.sha256().digest_size * 2:
        raise _RefusedError(f"it states no SHA-256 for {path}")
    file = Path(
        hf_hub_download(
            repo_id,
            path,
            repo_type="dataset",
            revision=expected.commit_hash,
            local_dir=folder,
            etag_timeout=ANSWER_SECONDS,
            endpoint=endpoint,
            token=token,
        )
    )
    # hf_hub_download compares the size only.
    if expected.size is not None and file.stat().st_size != expected.size:
        raise _RefusedError(f"{path} has {file.stat().st_size} bytes instead of {expected.size}")
    if digest(file, hashlib.sha256()) != expected.etag:
        raise _RefusedError(f"{path} does not have the SHA-256 that the hub states")
    return file, expected.etag


def _from_archive(info: DatasetInfo, staging: Path, hub_reason: str) -> Path:
    """Download, verify and unpack the university's archive; return the folder of its batches."""
    source = info.archive
    archive = staging / source.file_name
    with _answer_in_time(lambda: _open(source.url)) as response:
        logger.warning(
            "%s failed.\nDownloading %s from %s instead. That server has been throttled to 50-80 kB/s since "
            "June 2026 (pytorch/vision issue 9536): expect 25 to 57 minutes.",
            hub_reason,
            info.title,
            _host(source.url),
        )
        _save(response, archive)
    if digest(archive, hashlib.md5(usedforsecurity=False)) != source.md5:
        raise _RefusedError(f"{source.file_name} does not have the expected MD5 {source.md5}")
    return _extract(archive, source.folder, source.file_names, staging)


def _open(url: str, start: int = 0) -> HTTPResponse:
    request = urllib.request.Request(url, headers={"User-Agent": "hps_lightning"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        return urllib.request.urlopen(request, timeout=STALL_SECONDS)
    except urllib.error.HTTPError as error:
        # It holds the open connection.
        error.close()
        raise


def _save(response: HTTPResponse, path: Path) -> None:
    """Write a response's body to a file, with a progress bar; where the connection breaks, go on from there.

    Args:
        response: from the start of the file.
        path: to write to.
    """
    total, url = response.length, response.url
    bar = tqdm(total=total, desc=path.name, unit="B", unit_scale=True)
    pauses = iter(_PAUSES)
    farthest = 0
    with bar, open(path, "wb") as file:
        while True:
            chunk = None
            # None where the server could not be reached again.
            if response is not None:
                with response:
                    # A disk that takes nothing is no broken connection.
                    while chunk := _next_chunk(response):
                        file.write(chunk)
                        bar.update(len(chunk))
            if chunk is not None and total in (None, file.tell()):
                return
            if file.tell() > farthest:
                # A slow server may break off often, as long as each attempt brings the end nearer.
                pauses, farthest = iter(_PAUSES), file.tell()
            pause = next(pauses, None)
            if pause is None or total is None:
                break
            time.sleep(pause)
            response = None
            with contextlib.suppress(OSError, HTTPException):
                response = _open(url, file.tell())
                if not response.headers.get("Content-Range", "").startswith(f"bytes {file.tell()}-"):
                    # A server that knows no ranges begins again.
                    file.seek(0)
                    file.truncate()
                    bar.reset()
        raise _RefusedError(f"the connection broke after {file.tell()} of {total or 'unknown'} bytes, again and again")


def _next_chunk(response: HTTPResponse) -> bytes | None:
    """What comes next, empty at the end; None where the connection has broken."""
    try:
        return response.read(_CHUNK_BYTES)
    except (OSError, HTTPException):
        return None


def _extract(archive: Path, folder: str, file_names: tuple[str, ...], staging: Path) -> Path:
    """Unpack an archive of plain files that all lie in one folder; return that folder."""
    # Pythons before 3.10.12 and 3.11.4 lack the filter; the check of each member stands for it.
    safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    target = staging / "unpacked"
    with tarfile.open(archive) as tar:
        for member in tar:
            _refuse_foreign(member, folder)
            tar.extract(member, target, **safely)
    ready = target / folder
    missing = [name for name in file_names if not (ready / name).is_file()]
    if missing:
        raise _RefusedError(f"{archive.name} lacks {', '.join(missing)}")
    return ready


def _refuse_foreign(member: tarfile.TarInfo, folder: str) -> None:
    """Refuse an archive member that is not a plain file or folder below ``folder``."""
    path = PurePosixPath(member.name)
    inside = path.parts[:1] == (folder,) and ".." not in path.parts and "\\" not in member.name
    if not inside or not (member.isfile() or member.isdir()):
        raise _RefusedError(f"its archive has the member {member.name!r}, which is not a plain file in {folder}/")


def _put_in_place(ready: Path, target: Path, file_names: tuple[str, ...]) -> Path:
    """Move a complete folder to its place, which another process may have filled meanwhile."""
    try:
        os.rename(ready, target)
    except OSError:
        if not target.is_dir():
            raise
        if not all((target / name).is_file() for name in file_names):
            # The folder is there but incomplete. Each file is whole when it appears.
            for file in ready.iterdir():
                os.replace(file, target / file.name)
    return target


def _answer_in_time(call: Callable[[], T]) -> T:
    """The result of a call that contacts a server, or TimeoutError after ``ANSWER_SECONDS``.

    A socket's own timeout holds for each address of a host in turn and not for the look-up of
    its name, which together can take minutes behind a firewall that drops packets.
    """
    future: concurrent.futures.Future[T] = concurrent.futures.Future()

    def work() -> None:
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    # A daemon, for an executor's thread would keep the interpreter from ending.
    threading.Thread(target=work, daemon=True).start()
    try:
        return future.result(timeout=ANSWER_SECONDS)
    except concurrent.futures.TimeoutError:
        raise TimeoutError(f"no answer within {ANSWER_SECONDS:g} s") from None


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc


def _http_status(error: Exception) -> int | None:
    return getattr(error, "code", None) or getattr(getattr(error, "response", None), "status_code", None)


def _in_few_words(error: Exception) -> str:
    """An error of one source as a short text for the user."""
    status = _http_status(error)
    if status is not None:
        return f"HTTP status {status}"
    if isinstance(error, (_RefusedError, TimeoutError)) and str(error):
        return str(error)
    # The libraries wrap what the operating system said in texts of their own, some of them long.
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
