"""`slm up` as its own process, with stand-ins for api and worker and a real Redis."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from slm_client import Client
from slm_client.redis_server import free_port
from tests.slm_client.processes import SLM, eventually, lives

pytestmark = pytest.mark.usefixtures("standins")

Start = Callable[..., "Up"]


class Up:
    """A running `slm up` and what it has printed."""

    def __init__(self, folder: Path, arguments: tuple[str, ...]) -> None:
        self.folder = folder
        self.printed = folder / "printed"
        self.port = free_port()
        with self.printed.open("wb") as file:
            self.process = subprocess.Popen(
                [*SLM, "up", "--port", str(self.port), *arguments],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    def text(self) -> str:
        return self.printed.read_text()

    def ready(self) -> list[psutil.Process]:
        """Waits until it says so; returns its children."""
        eventually(lambda: "The service is ready" in self.text() or self.process.poll(), 20)
        assert self.process.poll() is None, self.text()
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Up] = []

    def start(*arguments: str) -> Up:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Up(folder, arguments))
        return started[-1]

    yield start
    for up in started:
        up.process.kill()
        up.process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_serves_until_a_signal(start: Start, number: signal.Signals) -> None:
    up = start()
    children = up.ready()
    assert len(children) == 4
    url = f"http://127.0.0.1:{up.port}"
    key = (up.folder / ".slm" / "api_key").read_text().strip()
    with Client(url, key) as client:
        assert client.generate("Once").succeeded
    for words in (
        f"{url}/#key={key}\n",
        f"{url}/docs",
        f"in {up.folder}/.slm/api_key\n",
        f'slm generate "Once upon a time" --url {url}\n',
        f'curl -s {url}/jobs -H "Authorization: Bearer $(cat .slm/api_key)" \\\n',
    ):
        assert words in up.text()
    assert "authentication" not in up.text()
    up.process.send_signal(number)
    up.process.send_signal(number)  # a double: counts as one
    assert up.process.wait(60) == 0
    order = ("worker-1", "callbacks", "api", "redis")
    assert up.text().endswith("".join(f"stopping {part}\n" for part in order) + "Stopped.\n")
    assert not any(lives(child.pid) for child in children)


def test_the_second_ctrl_c_stops_at_once(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_TEST_WORKER", "stubborn")
    up = start()
    children = up.ready()
    up.process.send_signal(signal.SIGINT)
    time.sleep(0.8)
    assert up.process.poll() is None
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(5) == 130
    assert "Traceback" not in up.text()
    assert not any(lives(child.pid) for child in children)


@pytest.mark.skipif(sys.platform != "linux", reason="nothing ties a child to its parent there")
def test_nothing_outlives_it(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_TEST_WORKER", "stubborn")
    up = start()
    children = up.ready()
    up.process.kill()
    eventually(lambda: not any(lives(child.pid) for child in children))


def test_a_killed_worker_comes_back(start: Start) -> None:
    up = start()
    worker = next(p for p in up.ready() if "celery" in p.cmdline())
    os.kill(worker.pid, signal.SIGKILL)
    eventually(lambda: "restarted worker-1" in up.text())
    assert "worker-1 was killed by SIGKILL; restarting it in 0.5 s" in up.text()


def test_errors_before_anything_starts(start: Start, tmp_path: Path) -> None:
    first = start()
    first.ready()
    second = start("--data-dir", str(tmp_path / "0" / ".slm"))
    assert second.process.wait(10) == 1
    assert f"is in use by another slm (process {first.process.pid})" in second.text()
    third = start("--port", str(first.port))
    assert third.process.wait(10) == 1
    assert third.text() == (
        f"cannot listen on 127.0.0.1 port {first.port} (Address already in use): "
        "stop what uses it, or choose another --port.\n"
    )
    fourth = start("--model", ".")
    assert fourth.process.wait(10) == 1
    assert fourth.text() == "--model . is not a checkpoint: it has no config.json.\n"
    assert not any("Traceback" in up.text() for up in (second, third, fourth))


def test_other_commands_find_the_key(start: Start) -> None:
    up = start("--data-dir", "my data")
    up.ready()
    url = ["--url", f"http://127.0.0.1:{up.port}"]

    def slm(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*SLM, *arguments, *url]
        return subprocess.run(command, cwd=up.folder, capture_output=True, text=True, check=False)

    assert slm("generate", "Once", "--data-dir", "my data").stdout == "Once and so on.\n"
    done = slm("generate", "Once")
    assert (done.returncode, done.stdout) == (1, "")
    assert "No API key was sent" in done.stderr
    for words in ("--data-dir 'my data'\n", "$(cat 'my data/api_key')"):
        assert words in up.text()


def test_what_is_shown_to_try_works(start: Start) -> None:
    if not (shell := shutil.which("bash")) or not shutil.which("curl"):
        pytest.skip("needs bash and curl")
    up = start()
    up.ready()
    command = re.search(r"  (curl .*?\\\n.*?)\n", up.text(), re.DOTALL)
    assert command
    done = subprocess.run(
        [shell, "-ec", command[1]], cwd=up.folder, capture_output=True, check=True
    )
    assert json.loads(done.stdout)["status"] == "queued"


def test_an_address_that_is_not_ours(start: Start) -> None:
    up = start("--host", "192.0.2.1")  # which no machine has
    assert up.process.wait(10) == 1
    assert up.text().startswith("--host 192.0.2.1 is no address of this machine.")
    assert "Traceback" not in up.text()
