import contextlib
import errno
import hashlib
import http.client
import http.server
import io
import logging
import os
import socket
import tarfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from hps_lightning.data import download
from hps_lightning.data.catalog import Location
from hps_lightning.data.checksums import CHECKSUMS_FILE
from hps_lightning.data.download import DownloadError, download_dataset
from hps_lightning.data.locate import find_dataset
from hps_lightning.data.readers import load_images
from hps_lightning.errors import UserError
from tests.disks import NEEDS_FULL_DEVICE

from .made_cifar import archive_bytes, made_dataset, md5

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Sources(http.server.ThreadingHTTPServer):
    """Serves a made data set as the hub and as the university do, with faults on request.

    Args:
        made: The data set.

    ``hub`` and ``archive`` hold the content to serve, ``checksum`` replaces the hub's SHA-256,
    ``status`` is sent for paths that contain a key, ``broken`` are the parts of paths whose
    content breaks off in the middle, ``ranges`` says whether the rest can be asked for alone,
    ``token`` says that requests to the hub must have one ("needed") or must not ("refused"),
    ``asked`` lists the requests.
    """

    daemon_threads = True

    def __init__(self, made):
        super().__init__(("127.0.0.1", 0), Answer)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.hub = made.hub_files()
        self.archive = made.archive()
        self.checksum = None
        self.status = {}
        self.broken = []
        self.ranges = False
        self.token = None
        self.asked = []

    def handle_error(self, request, client_address):
        """Keep quiet about clients that leave early."""


class Answer(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        server = self.server
        server.asked.append(f"{self.command} {self.path}")
        status = next((status for part, status in server.status.items() if part in self.path), 200)
        wrong = {"needed": "Authorization" not in self.headers, "refused": "Authorization" in self.headers}
        if "/resolve/" in self.path and wrong.get(server.token):
            status = 401
        content = self.content() if status == 200 else b""
        if content is None:
            status, content = 404, b""
        wanted = self.headers.get("Range") if server.ranges and status == 200 else None
        if wanted:
            start, size = int(wanted.removeprefix("bytes=").removesuffix("-")), len(content)
            status, content = 206, content[start:]
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if "/resolve/" in self.path:
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{server.checksum or hashlib.sha256(content).hexdigest()}"')
        self.end_headers()
        if with_body:
            breaks = any(part in self.path for part in server.broken)
            self.wfile.write(content[: len(content) // 2] if breaks else content)

    def content(self):
        for path, content in self.server.hub.items():
            if self.path.endswith(f"/{path}") and self.path.startswith("/datasets/uoft-cs/"):
                return content
        return self.server.archive if self.path.endswith(".tar.gz") else None

    def log_message(self, *arguments):
        """Keep quiet."""


@pytest.fixture(autouse=True)
def only_loopback(monkeypatch, tmp_path):
    for name in ("HPS_DATA_DIR", "HF_ENDPOINT", "HF_TOKEN", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HPS_CACHE_DIR", str(tmp_path / "cache"))
    # huggingface_hub waits a second before each of its attempts to resume.
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.fixture(params=["cifar10", "cifar100"])
def each_made(request):
    return made_dataset(request.param)


@contextlib.contextmanager
def serve(made):
    """The running sources, and the info that points at their archive."""
    with Sources(made) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            url = f"{server.endpoint}/{made.info.archive.file_name}"
            yield server, replace(made.info, archive=replace(made.info.archive, url=url))
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def made():
    return made_dataset()


@pytest.fixture
def sources(made):
    with serve(made) as running:
        yield running


def with_archive(server, info, content: bytes):
    """Serve another archive, of which the info states the right MD5."""
    server.archive = content
    return replace(info, archive=replace(info.archive, md5=md5(content)))


def left_in(folder):
    """What a download left in a folder, the copies of decoded images aside."""
    return sorted(set(os.listdir(folder)) - {"cache"})


def assert_loads(made, info, location):
    for split in ("train", "test"):
        loaded = load_images(info, split, location.path)
        assert np.array_equal(loaded.images.numpy(), made.images[split])
        assert np.array_equal(loaded.labels.numpy(), made.labels[split])


def test_the_hub_gives_the_data(tmp_path, each_made):
    with serve(each_made) as (server, info):
        location = download_dataset(info, tmp_path / "new" / "root", endpoint=server.endpoint)
    assert location == Location(tmp_path / "new" / "root" / info.name, "parquet")
    assert sorted(path.name for path in location.path.iterdir()) == sorted([*info.hub.file_names, CHECKSUMS_FILE])
    assert os.listdir(tmp_path / "new" / "root") == [info.name]
    assert_loads(each_made, info, location)
    assert not any("tar.gz" in request for request in server.asked)


def test_the_hubs_address_comes_from_the_environment(tmp_path, monkeypatch, sources):
    server, info = sources
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint + "/")
    assert find_dataset(info) == Location(tmp_path / "cache" / "cifar10", "parquet")
    asked = len(server.asked)
    assert find_dataset(info) == Location(tmp_path / "cache" / "cifar10", "parquet")
    assert len(server.asked) == asked


def test_both_files_are_of_one_commit_of_the_hub(tmp_path, sources):
    server, info = sources
    download_dataset(info, tmp_path, endpoint=server.endpoint)
    loads = [request for request in server.asked if request.startswith("GET")]
    assert len(loads) == 2
    assert all(f"/resolve/{COMMIT}/" in request for request in loads)


def test_without_the_hub_the_university_gives_the_data(tmp_path, each_made, caplog):
    with serve(each_made) as (server, info):
        server.status["/datasets/"] = 503
        with caplog.at_level(logging.WARNING):
            location = download_dataset(info, tmp_path, endpoint=server.endpoint)
    assert location == Location(tmp_path / info.archive.folder, "python")
    assert left_in(tmp_path) == [info.archive.folder]
    assert info.archive.meta_file in os.listdir(location.path)
    assert_loads(each_made, info, location)
    for text in ("HTTP status 503", "50-80 kB/s", "9536", "25 to 57 minutes"):
        assert text in caplog.text


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_hub_that_breaks_off_is_replaced_by_the_university(tmp_path, made, sources, split):
    server, info = sources
    server.broken = [f"{split}-00000"]
    location = download_dataset(info, tmp_path, endpoint=server.endpoint)
    assert location.layout == "python"
    assert left_in(tmp_path) == ["cifar-10-batches-py"]
    assert_loads(made, info, location)


def test_if_both_break_off_nothing_is_left(tmp_path, sources):
    server, info = sources
    server.broken = ["parquet", "tar.gz"]
    with pytest.raises(DownloadError, match="the connection broke after"):
        download_dataset(info, tmp_path, endpoint=server.endpoint)
    assert left_in(tmp_path) == []


def test_an_archive_that_breaks_off_goes_on_where_it_stopped(tmp_path, made, sources, tally):
    server, info = sources
    server.status["/datasets/"] = 404
    server.broken, server.ranges = ["tar.gz"], True
    # Half of the rest comes each time, until the last byte would be halved.
    size = len(server.archive)
    sent = []
    wait = download.time.sleep

    def mended(seconds):
        sent.append(seconds)
        if len(sent) == 3:
            server.broken = []
        wait(seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download.time, "sleep", mended)
        location = download_dataset(info, tmp_path, endpoint=server.endpoint)
    assert len([request for request in server.asked if "tar.gz" in request]) == 4
    assert len(sent) == 3
    assert size == len(made.archive())
    assert_loads(made, info, location)
    tally("bad inputs tried")


def test_a_slow_server_may_break_off_as_often_as_it_likes(tmp_path, made, sources, monkeypatch):
    server, info = sources
    server.status["/datasets/"] = 404
    server.broken, server.ranges = ["tar.gz"], True
    breaks = len(download._PAUSES) + 1
    # Each attempt brings half of what is left.
    assert len(server.archive) > 2**breaks
    waited = []

    def wait(seconds):
        waited.append(seconds)
        if len(waited) == breaks:
            server.broken = []

    monkeypatch.setattr(download.time, "sleep", wait)
    assert_loads(made, info, download_dataset(info, tmp_path, endpoint=server.endpoint))
    assert waited == breaks * [download._PAUSES[0]]


def test_a_server_that_answers_nonsense_for_a_while_is_asked_again(tmp_path, made, sources, monkeypatch):
    server, info = sources
    server.status["/datasets/"] = 404
    server.broken, server.ranges = ["tar.gz"], True
    attempts = []
    ask = download._open

    def broken(url, start=0):
        attempts.append(start)
        if len(attempts) == 2:
            raise http.client.BadStatusLine("")
        server.broken = [] if len(attempts) > 2 else server.broken
        return ask(url, start)

    monkeypatch.setattr(download, "_open", broken)
    assert_loads(made, info, download_dataset(info, tmp_path, endpoint=server.endpoint))
    assert len(attempts) == 3


def test_a_file_system_without_locks_is_no_error(tmp_path, made, sources, monkeypatch):
    server, info = sources

    class Unlockable(FileLock):
        def _acquire(self):
            raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(download, "FileLock", Unlockable)
    left = tmp_path / f".{info.name}-abandoned"
    left.mkdir()
    os.utime(left, (0, 0))
    assert_loads(made, info, download_dataset(info, tmp_path, endpoint=server.endpoint))
    assert left.is_dir()


def test_a_token_that_the_hub_refuses_is_left_out(tmp_path, made, sources, monkeypatch):
    server, info = sources
    server.token = "refused"
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    location = download_dataset(info, tmp_path, endpoint=server.endpoint)
    assert location.layout == "parquet"
    assert_loads(made, info, location)


def test_a_hub_that_wants_a_token_is_given_it(tmp_path, sources, monkeypatch):
    server, info = sources
    server.token = "needed"
    monkeypatch.setenv("HF_TOKEN", "hf_private")
    assert download_dataset(info, tmp_path, endpoint=server.endpoint).layout == "parquet"


def test_a_server_that_is_away_for_a_while_is_asked_again(tmp_path, made, sources, monkeypatch, tally):
    server, info = sources
    server.status["/datasets/"] = 404
    server.broken, server.ranges = ["tar.gz"], True
    sent = []

    def wait(seconds):
        sent.append(seconds)
        # Away at the first two attempts to go on.
        server.status["tar.gz"] = 503
        if len(sent) == 3:
            server.broken = []
            del server.status["tar.gz"]

    monkeypatch.setattr(download.time, "sleep", wait)
    assert_loads(made, info, download_dataset(info, tmp_path, endpoint=server.endpoint))
    assert len(sent) == 3
    tally("bad inputs tried")


def test_an_archive_of_a_server_without_ranges_begins_again(tmp_path, made, sources, monkeypatch, tally):
    server, info = sources
    server.status["/datasets/"] = 404
    server.broken = ["tar.gz"]
    monkeypatch.setattr(download.time, "sleep", lambda seconds: server.broken.clear())
    assert_loads(made, info, download_dataset(info, tmp_path, endpoint=server.endpoint))
    tally("bad inputs tried")


@NEEDS_FULL_DEVICE
@pytest.mark.parametrize("hub", [True, False])
def test_a_full_disk_is_named_at_once(tmp_path, monkeypatch, sources, hub):
    server, info = sources
    if hub:

        def full(*arguments):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(download, "_from_hub", full)
    else:
        server.status["/datasets/"] = 404
        save = download._save
        monkeypatch.setattr(download, "_save", lambda response, path: save(response, Path("/dev/full")))
    monkeypatch.setattr(download.time, "sleep", lambda seconds: pytest.fail("another attempt"))
    with pytest.raises(DownloadError, match=f"{tmp_path} cannot be written: No space left on device") as caught:
        download_dataset(info, tmp_path, endpoint=server.endpoint)
    assert "the connection broke" not in str(caught.value)
    assert len([request for request in server.asked if "tar.gz" in request]) == (0 if hub else 1)
    assert left_in(tmp_path) == []


def test_what_is_altered_after_a_download_is_found_by_its_checksum(tmp_path, sources, tally):
    server, info = sources
    location = download_dataset(info, tmp_path, endpoint=server.endpoint)
    path = location.path / info.hub.file_name("test")
    # Another sound file of the data set: nothing but the checksum tells them apart.
    path.write_bytes(made_dataset().parquet("test", images=255 - made_dataset().images["test"]))
    with pytest.raises(UserError, match=r"test-00000-of-00001\.parquet: its SHA-256 is \w+, not \w+, which is stated"):
        load_images(info, "test", location.path)
    tally("bad inputs tried")


def test_a_file_of_the_hub_with_another_checksum_is_refused(tmp_path, sources):
    server, info = sources
    server.checksum = "0" * 64
    server.status["tar.gz"] = 404
    with pytest.raises(DownloadError) as caught:
        download_dataset(info, tmp_path, endpoint=server.endpoint)
    hub, university = caught.value.reasons
    assert "train-00000-of-00001.parquet does not have the SHA-256 that the hub states" in hub
    assert "HTTP status 404" in university
    assert left_in(tmp_path) == []


def test_a_hub_without_checksums_is_refused(tmp_path, sources):
    server, info = sources
    server.checksum = "0" * 40
    location = download_dataset(info, tmp_path, endpoint=server.endpoint)
    assert location.layout == "python"
    assert not any(request.startswith("GET /datasets") for request in server.asked)


def test_an_archive_with_another_checksum_is_refused(tmp_path, sources):
    server, info = sources
    server.status["/datasets/"] = 404
    server.archive += b"\0"
    with pytest.raises(DownloadError, match="does not have the expected MD5"):
        download_dataset(info, tmp_path, endpoint=server.endpoint)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    "path", ["../escaped", "cifar-10-batches-py/../../escaped", "/{outside}/escaped", "elsewhere/file"]
)
def test_an_archive_that_escapes_its_folder_is_refused(tmp_path, made, sources, path, tally):
    server, info = sources
    server.status["/datasets/"] = 404
    files = {f"cifar-10-batches-py/{name}": content for name, content in made.batch_files().items()}
    content = archive_bytes({path.format(outside=tmp_path / "outside"): b"escaped"} | files)
    with pytest.raises(DownloadError, match=r"not a plain file in cifar-10-batches-py/"):
        download_dataset(with_archive(server, info, content), tmp_path / "root", endpoint=server.endpoint)
    assert left_in(tmp_path) == ["root"]
    assert os.listdir(tmp_path / "root") == []
    tally("malicious files refused")


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (tarfile.SYMTYPE, "/etc/hostname"),
        (tarfile.SYMTYPE, "../../outside"),
        (tarfile.LNKTYPE, "../../outside"),
        (tarfile.CHRTYPE, ""),
        (tarfile.BLKTYPE, ""),
        (tarfile.FIFOTYPE, ""),
    ],
)
def test_an_archive_with_anything_but_files_is_refused(tmp_path, sources, kind, target, tally):
    server, info = sources
    server.status["/datasets/"] = 404
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        member = tarfile.TarInfo("cifar-10-batches-py/test_batch")
        member.type, member.linkname = kind, target
        tar.addfile(member)
    with pytest.raises(DownloadError, match="not a plain file"):
        download_dataset(with_archive(server, info, buffer.getvalue()), tmp_path / "root", endpoint=server.endpoint)
    assert os.listdir(tmp_path / "root") == []
    tally("malicious files refused")


def test_an_archive_that_lacks_a_batch_is_refused(tmp_path, made, sources):
    server, info = sources
    server.status["/datasets/"] = 404
    files = {f"cifar-10-batches-py/{name}": content for name, content in made.batch_files().items()}
    del files["cifar-10-batches-py/data_batch_2"]
    with pytest.raises(DownloadError, match="lacks data_batch_2"):
        download_dataset(with_archive(server, info, archive_bytes(files)), tmp_path, endpoint=server.endpoint)
    assert left_in(tmp_path) == []


def test_with_both_sources_down_there_is_one_clear_error(tmp_path, monkeypatch, made):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        info = replace(made.info, archive=replace(made.info.archive, url=f"{address}/cifar.tar.gz"))
        start = time.monotonic()
        with pytest.raises(UserError) as caught:
            find_dataset(info)
        assert time.monotonic() - start < 5
        with pytest.raises(UserError) as without_archive:
            find_dataset(replace(info, archive=None))
    assert str(without_archive.value).count("refused") == 1
    message = str(caught.value)
    assert message.count("refused") == 2
    for text in ("Hugging Face hub (127.0.0.1", "university's server (127.0.0.1", "HPS_DATA_DIR", "quickstart.yaml"):
        assert text in message
    assert os.listdir(tmp_path / "cache") == []


def test_servers_that_never_answer_are_given_up(tmp_path, monkeypatch, made):
    monkeypatch.setattr(download, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        info = replace(made.info, archive=replace(made.info.archive, url=f"{address}/cifar.tar.gz"))
        start = time.monotonic()
        with pytest.raises(DownloadError) as caught:
            download_dataset(info, tmp_path, endpoint=address)
        assert time.monotonic() - start < 5
    assert "no answer within 0.2 s" in caught.value.reasons[1]


def test_a_folder_that_cannot_be_written_is_named(tmp_path, sources):
    server, info = sources
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match=r"file.root cannot be written"):
        download_dataset(info, tmp_path / "file" / "root", endpoint=server.endpoint)
    assert server.asked == []


def test_what_a_killed_download_left_is_removed_and_what_another_one_holds_is_not(tmp_path, sources):
    server, info = sources
    for name, age in (("killed", 1e6), ("held", 1e6), ("begun", 0)):
        folder = tmp_path / f".{info.name}-{name}"
        folder.mkdir()
        (folder / "half.tar.gz").write_bytes(b"half")
        os.utime(folder, (time.time() - age,) * 2)
    (tmp_path / ".cifar10-killed" / ".lock").touch()
    with FileLock(tmp_path / ".cifar10-held" / ".lock"):
        os.utime(tmp_path / ".cifar10-held", (0, 0))
        os.utime(tmp_path / ".cifar10-killed", (0, 0))
        download_dataset(info, tmp_path, endpoint=server.endpoint)
    assert left_in(tmp_path) == [".cifar10-begun", ".cifar10-held", "cifar10"]


def test_an_incomplete_copy_is_completed(tmp_path, made, sources):
    server, info = sources
    folder = tmp_path / "cifar10"
    folder.mkdir()
    (folder / info.hub.file_name("train")).write_bytes(b"half")
    location = download_dataset(info, tmp_path, endpoint=server.endpoint)
    assert left_in(tmp_path) == ["cifar10"]
    assert_loads(made, info, location)


def test_a_copy_that_another_process_put_there_meanwhile_is_kept(tmp_path, monkeypatch, made, sources):
    server, info = sources
    take = download._from_hub

    def others_first(*arguments):
        ready = take(*arguments)
        made.write_parquet(tmp_path / "cifar10")
        return ready

    monkeypatch.setattr(download, "_from_hub", others_first)
    location = download_dataset(info, tmp_path, endpoint=server.endpoint)
    assert left_in(tmp_path) == ["cifar10"]
    # Ours would have come with checksums.
    assert not (tmp_path / "cifar10" / CHECKSUMS_FILE).exists()
    assert_loads(made, info, location)


def test_several_downloads_at_once_do_not_spoil_each_other(tmp_path, made, sources):
    server, info = sources
    failures = []

    def work():
        try:
            assert_loads(made, info, download_dataset(info, tmp_path, endpoint=server.endpoint))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert left_in(tmp_path) == ["cifar10"]


def test_an_interrupted_download_leaves_nothing(tmp_path, monkeypatch, sources):
    server, info = sources

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "_put_in_place", interrupt)
    with pytest.raises(KeyboardInterrupt):
        download_dataset(info, tmp_path, endpoint=server.endpoint)
    assert left_in(tmp_path) == []
