"""Downloads from a server that speaks as the hub does, and breaks off as networks do."""

from __future__ import annotations

import hashlib
import json
import random
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from training import download
from training.download import DownloadError, HubFile, fetch
from training.prepare import app

huggingface_hub = pytest.importorskip("huggingface_hub")
from huggingface_hub import constants  # noqa: E402

REVISION = "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
NAME = "TinyStoriesV2-GPT4-valid.txt"
CONTENT = random.Random(5).randbytes(200_000)
CHUNK = 1000


class Hub(ThreadingHTTPServer):
    """Sends a file as the hub does: the address of the revision leads to one of the content.

    Attributes:
        files: content by name.
        bursts: how many bytes each of the next answers sends before the connection ends.
        ranges: what each of the answers was asked for, from the first byte on.
        knows_ranges: a proxy may not.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = {NAME: CONTENT}
        self.bursts: list[int] = []
        self.ranges: list[int] = []
        self.knows_ranges = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        folder, _, name = self.path.rpartition("/")
        content = self.server.files.get(name)
        if content is None:
            self._answer(404, {"X-Error-Code": "EntryNotFound", "Content-Length": "0"})
        elif folder == f"/datasets/roneneldan/TinyStories/resolve/{REVISION}":
            self._answer(302, {"Location": f"/blobs/{name}", "Content-Length": "0"})
        else:
            self._send(content)

    def _send(self, content: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))
        assert asked
        assert self.headers["Accept-Encoding"] == "identity"
        assert "Authorization" not in self.headers
        begin = int(asked[1]) if self.server.knows_ranges else 0
        self.server.ranges.append(begin)
        rest, size = content[begin:], len(content)
        headers = {"Content-Length": str(len(rest))}
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{size - 1}/{size}"
        self._answer(206 if begin else 200, headers)
        burst = self.server.bursts.pop(0) if self.server.bursts else len(rest)
        self.wfile.write(rest[:burst])
        self.close_connection = burst < len(rest)

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
    waits = SimpleNamespace(sleep=lambda _: None)  # between tries
    monkeypatch.setattr("huggingface_hub.file_download.time", waits)
    yield server
    huggingface_hub.close_session()
    server.shutdown()
    thread.join()
    server.server_close()


def hub_file(content: bytes = CONTENT, name: str = NAME) -> HubFile:
    return HubFile(name, len(content), hashlib.sha256(content).hexdigest())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_once(hub: Hub, tmp_path: Path) -> None:
    path = fetch(hub_file(), tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / NAME
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == [NAME]
    assert fetch(hub_file(), path.parent) == path
    assert hub.ranges == [0]


def test_a_connection_that_breaks_off_is_gone_on_with(hub: Hub, tmp_path: Path) -> None:
    hub.bursts = [50_500, 70_000]
    assert fetch(hub_file(), tmp_path).read_bytes() == CONTENT
    assert hub.ranges == [0, 50_000, 120_000]


def test_a_later_call_goes_on_with_what_is_there(hub: Hub, tmp_path: Path) -> None:
    hub.bursts = [90_500] + [0] * 10
    with pytest.raises(DownloadError, match=f"cannot download {NAME} of roneneldan") as error:
        fetch(hub_file(), tmp_path)
    assert len(str(error.value).splitlines()) == 1
    assert "is kept" in str(error.value)
    assert "the same command goes on from there" in str(error.value)
    assert "Files that you have may be given as SOURCE" in str(error.value)
    assert names(tmp_path) == [f".{NAME}.partial"]
    hub.bursts, hub.ranges = [], []
    assert fetch(hub_file(), tmp_path).read_bytes() == CONTENT
    assert hub.ranges == [90_000]
    assert names(tmp_path) == [NAME]


def test_a_server_without_ranges_sends_it_all_again(hub: Hub, tmp_path: Path) -> None:
    hub.knows_ranges = False
    (tmp_path / f".{NAME}.partial").write_bytes(CONTENT[:1234])
    assert fetch(hub_file(), tmp_path).read_bytes() == CONTENT


def test_a_damaged_file_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.files[NAME] = CONTENT[:-1] + b"x"
    with pytest.raises(DownloadError, match=r"arrived damaged: it is not the file of SHA-256"):
        fetch(hub_file(), tmp_path)
    assert names(tmp_path) == []
    hub.files[NAME] = CONTENT
    (tmp_path / f".{NAME}.partial").write_bytes(b"x" * 1234)  # whose end would fit
    with pytest.raises(DownloadError, match="arrived damaged"):
        fetch(hub_file(), tmp_path)
    assert names(tmp_path) == []
    (tmp_path / f".{NAME}.partial").write_bytes(CONTENT + b"x")
    assert fetch(hub_file(), tmp_path).read_bytes() == CONTENT
    (tmp_path / NAME).write_bytes(CONTENT[:-1] + b"x")
    assert fetch(hub_file(), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("change", [CONTENT + b"x", CONTENT[:-1]])
def test_a_file_of_another_size_is_refused(hub: Hub, tmp_path: Path, change: bytes) -> None:
    hub.files[NAME] = change
    with pytest.raises(DownloadError, match="ended too early or too late"):
        fetch(hub_file(), tmp_path)
    hub.files[NAME] = CONTENT
    assert fetch(hub_file(), tmp_path).read_bytes() == CONTENT


def test_a_file_that_the_hub_lacks(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="404 Client Error") as error:
        fetch(hub_file(name="other.txt"), tmp_path)
    assert len(str(error.value).splitlines()) == 1
    assert "is kept" not in str(error.value)
    assert names(tmp_path) == []


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DownloadError, match=re.escape("pip install 'slm-jobs[hub]'")):
        fetch(hub_file(), tmp_path)


def test_without_a_network(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(DownloadError, match="offline mode is enabled"):
            fetch(hub_file(), tmp_path)
    closed = Hub()
    closed.server_close()
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(hub.url, closed.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(DownloadError, match="Connection refused"):
        fetch(hub_file(), tmp_path)


def test_without_space(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f".{NAME}.partial").symlink_to("/dev/full")
    with pytest.raises(DownloadError, match=f"no space for {NAME} "):
        fetch(hub_file(), tmp_path)
    (tmp_path / f".{NAME}.partial").unlink()
    free = SimpleNamespace(free=len(CONTENT) - 1001)
    monkeypatch.setattr("shutil.disk_usage", lambda _: free)
    with pytest.raises(DownloadError, match="make room and run the same command again"):
        fetch(hub_file(), tmp_path)
    (tmp_path / f".{NAME}.partial").write_bytes(CONTENT[:1001])
    assert fetch(hub_file(), tmp_path).read_bytes() == CONTENT
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(DownloadError, match=r"cannot download .*File exists"):
        fetch(hub_file(), file)


def test_the_command(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for constant, stories in (("TRAIN", ["One.", "Two."]), ("VALID", ["Three."])):
        pinned: HubFile = getattr(download, constant)
        hub.files[pinned.name] = "".join(f"{s}\n<|endoftext|>\n" for s in stories).encode()
        monkeypatch.setattr(download, constant, hub_file(hub.files[pinned.name], pinned.name))
    out = tmp_path / "data"
    arguments = ["--tinystories", "--out", str(out), "--processes", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    meta = json.loads(result.stdout)
    assert (meta["train"]["documents"], meta["val"]["documents"]) == (2, 1)
    assert meta["train"]["sources"][0]["name"] == "TinyStoriesV2-GPT4-train.txt"
    assert meta["train"]["sources"][0]["sha256"] == download.TRAIN.sha256
    monkeypatch.setattr(download, "TRAIN", hub_file(name="gone.txt"))
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("cannot download gone.txt of roneneldan/")
