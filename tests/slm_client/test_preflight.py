from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from slm_client import StartError, preflight
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
    with pytest.raises(StartError, match="no address of this machine"):
        preflight.check_port(host, free_port())
    with pytest.raises(StartError, match="no address of this machine"):
        preflight.free_port_on(host)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("localhost", "http://localhost:80"),
        ("::1", "http://[::1]:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),  # noqa: S104
        ("::", "http://[::1]:80"),
        ("192.168.1.5", "http://192.168.1.5:80"),
    ],
)
def test_addresses(host: str, url: str) -> None:
    assert preflight.local_url(host, 80) == url


@pytest.mark.parametrize(
    ("host", "more"),
    [
        ("127.0.0.1", ""),
        ("::1", ""),
        ("localhost", ""),
        ("192.168.1.5", ",192.168.1.5"),
        ("fd00::5", ",[fd00::5]"),
        ("slm.example", ",slm.example"),
    ],
)
def test_the_api_may_be_called_by_the_host_that_it_listens_on(host: str, more: str) -> None:
    assert preflight.allowed_hosts(host) == "localhost,127.0.0.1,[::1]" + more


@pytest.mark.parametrize("wildcard", ["0.0.0.0", "::"])  # noqa: S104
def test_who_listens_everywhere_may_be_called_by_any_of_its_names(wildcard: str) -> None:
    allowed = preflight.allowed_hosts(wildcard).split(",")
    assert allowed[:3] == ["localhost", "127.0.0.1", "[::1]"]
    assert socket.gethostname().lower() in allowed
    assert wildcard not in allowed
    ours = {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)}
    assert ours <= {name.strip("[]") for name in allowed}


def test_a_given_redis(redis_server: RedisServer) -> None:
    preflight.check_redis(redis_server.url)
    with pytest.raises(StartError, match=r"no Redis answers at redis://127\.0\.0\.1") as caught:
        preflight.check_redis(f"redis://:secret@127.0.0.1:{free_port()}/0")
    assert "secret" not in str(caught.value)
    port = redis_server.url.rpartition(":")[2].partition("/")[0]
    nobody = f"127.0.0.1:{free_port()}"
    preflight.check_redis(f"redis+sentinel://user:p@{nobody},127.0.0.1:{port}/name")
    for url in (f"redis+sentinel://{nobody},{nobody}/name", "unix:///nowhere/redis.sock"):
        with pytest.raises(StartError, match="no Redis answers"):
            preflight.check_redis(url)
    for url in (
        "127.0.0.1:6379",
        "http://127.0.0.1",
        "redis://",
        "redis://127.0.0.1:port",
        "unix://",
        "redis+sentinel://a,,b/name",
        "redis://[::1",
        "redis://:sec\N{ACCOUNT OF}ret@h/0",
    ):
        with pytest.raises(StartError, match="must look like") as caught:
            preflight.check_redis(url)
        assert "ret@" not in str(caught.value)
