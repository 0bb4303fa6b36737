from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_client import BadInput, StartError, preflight
from slm_client.redis_server import RedisServer, free_port
from tests.slm_client.processes import REPOSITORY


def test_one_lock_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    lock = preflight.Lock(folder)
    with pytest.raises(StartError, match=f"in use by another slm .process {os.getpid()}."):
        preflight.Lock(folder)
    lock.release()
    preflight.Lock(folder).release()


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from slm_client.preflight import Lock
lock = Lock(Path({str(tmp_path)!r}))
print("locked", flush=True)
input()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(StartError, match=str(process.pid)):
            preflight.Lock(tmp_path)
        process.kill()
    preflight.Lock(tmp_path).release()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match="as data folder: "):
        preflight.Lock(tmp_path / "file" / "data")


def test_a_busy_port_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(StartError, match=f"cannot listen on 127.0.0.1 port {port} .*in use"):
            preflight.check_port("127.0.0.1", port)
    preflight.check_port("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_a_foreign_host_is_refused(host: str) -> None:
    with pytest.raises(StartError):
        preflight.check_port(host, free_port())
    with pytest.raises(StartError, match="no address of this machine"):
        preflight.free_port_on(host)


@pytest.mark.parametrize(
    ("host", "url", "loopback"),
    [
        ("127.0.0.1", "http://127.0.0.1:80", True),
        ("localhost", "http://localhost:80", True),
        ("::1", "http://[::1]:80", True),
        ("0.0.0.0", "http://127.0.0.1:80", False),  # noqa: S104
        ("::", "http://[::1]:80", False),
        ("192.168.1.5", "http://192.168.1.5:80", False),
    ],
)
def test_addresses(host: str, url: str, loopback: bool) -> None:
    assert preflight.local_url(host, 80) == url
    assert preflight.is_loopback(host) is loopback


def test_a_given_redis(redis_server: RedisServer) -> None:
    preflight.check_redis(redis_server.url)
    with pytest.raises(StartError, match=r"no Redis answers at redis://127\.0\.0\.1") as caught:
        preflight.check_redis(f"redis://:secret@127.0.0.1:{free_port()}/0")
    assert "secret" not in str(caught.value)
    for url in ("127.0.0.1:6379", "http://127.0.0.1", "redis://", "redis://127.0.0.1:port"):
        with pytest.raises(StartError, match="must look like"):
            preflight.check_redis(url)


def make_checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").touch()
    return folder


@pytest.mark.parametrize(
    ("folder", "name"), [("My Model (2)", "my-model-2"), ("v1.5_b", "v1.5_b"), ('ü"\\😀', "model")]
)
def test_a_manifest_for_one_checkpoint(tmp_path: Path, folder: str, name: str) -> None:
    checkpoint = make_checkpoint(tmp_path / folder)
    path = preflight.write_manifest(checkpoint, tmp_path)
    assert tomllib.loads(path.read_text("utf-8")) == {
        name: {"checkpoint": str(checkpoint), "precision": "auto"}
    }


def test_a_folder_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none is not a folder"):
        preflight.write_manifest(tmp_path / "none", tmp_path)
    checkpoint = make_checkpoint(tmp_path / "model")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"not a checkpoint: it has no model\.safetensors"):
        preflight.write_manifest(checkpoint, tmp_path)


@given(st.text())
def test_every_folder_gives_a_name_that_the_service_takes(folder: str) -> None:
    name = preflight.model_name(folder)
    assert re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name)
