"""`slm status`: once and as long as one looks on, also where the service is away."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from slm_client.redis_server import free_port
from tests.slm_client.fake_http import Answer
from tests.slm_client.fake_service import KEY, FakeService
from tests.slm_client.processes import SLM, eventually, slm

NOT_READY: Answer = (503, {}, {"title": "Not ready", "code": "not_ready", "detail": "no worker"})


def queue(**more: object) -> Answer:
    entry = {"model": "tiny", "waiting": 7, "running": 8, "rows_waiting": 1200, "rows_running": 0}
    entry |= {"workers": 2, "slots": 128, "slots_in_use": 40}
    entry |= {"tokens_per_second": 2000.4, "estimated_wait_seconds": 34.5}
    return 200, {}, {"data": [{**entry, **more}]}


def test_a_look(url: str, service: FakeService) -> None:
    service.next_answers.extend([(200, {}, {}), queue()])
    result = slm("status")
    assert (result.exit_code, result.stderr) == (0, "")
    headline, names, row = result.stdout.splitlines()
    assert headline == f"ready at {url}"
    assert names.split("  ")[0] == "model"
    cells = ["tiny", "7", "8", "1,200", "0", "40", "/", "128", "2", "2,000", "34.5", "s"]
    assert row.split() == cells
    assert {request.path for request in service.seen} == {"/readyz", "/queue"}


def test_an_api_that_does_not_tell_everything(url: str) -> None:
    headline, _, row = slm("status").stdout.splitlines()
    assert headline == f"ready at {url}"
    assert row.split() == ["tiny", "1,200", "8", "1", "2,000", "34.5", "s"]


def test_as_json(url: str, service: FakeService) -> None:
    service.next_answers.extend([(200, {}, {}), queue()])
    found = json.loads(slm("status", "--json").stdout)
    assert (found["url"], found["ready"], found["reason"]) == (url, True, None)
    assert found["models"][0]["slots_in_use"] == 40
    service.next_answers.append(NOT_READY)
    result = slm("status", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert (found["ready"], found["reason"]) == (False, "not ready: no worker")
    assert found["models"][0]["model"] == "tiny"


def test_not_ready_is_1_and_says_why(url: str, service: FakeService) -> None:
    service.next_answers.extend([NOT_READY, queue(workers=0, slots=0, slots_in_use=0)])
    result = slm("status")
    assert result.exit_code == 1
    headline, _, _, note = result.stdout.splitlines()
    assert headline == "not ready: no worker"
    assert note == "tiny: work waits, and no worker serves it."
    assert len(service.seen) == 2  # nothing is asked again


def test_a_service_that_is_away() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    result = slm("status", "--url", url)
    assert result.exit_code == 1
    assert result.stdout == f"nothing answers at {url}; is `slm up` running?\n"
    assert json.loads(slm("status", "--url", url, "--json").stdout)["models"] == []


def test_a_wrong_key(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_API_KEY", "another")
    result = slm("status")
    assert result.exit_code == 1
    assert result.stdout.startswith("401 unauthorised: ")
    assert len(result.stdout.splitlines()) == 1


def test_what_is_not_our_service(url: str, service: FakeService) -> None:
    service.next_answers.extend([(200, {}, {}), (200, {}, ["hello"])])
    result = slm("status")
    assert result.exit_code == 1
    assert "is that our service?" in result.stdout


def test_json_is_not_watched(url: str) -> None:
    assert slm("status", "--watch", "--json").exit_code == 2


@contextmanager
def watching(output: int, url: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160", "SLM_API_KEY": KEY}
    command = [*SLM, "status", "--watch", "--url", url]
    process = subprocess.Popen(
        command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_watching_ends_with_ctrl_c(url: str, service: FakeService, tmp_path: Path) -> None:
    with (tmp_path / "shown").open("w+b") as file, watching(file.fileno(), url) as process:
        eventually(lambda: sum(request.path == "/queue" for request in service.seen) >= 2)
        eventually(lambda: (tmp_path / "shown").read_text().count("ready at ") >= 2)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    shown = (tmp_path / "shown").read_text()
    assert "Traceback" not in shown
    assert "\x1b" not in shown  # no terminal, no colours


class Screen:
    """A terminal, and what was written to it."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()
        os.set_blocking(self.ours, False)
        self.text = ""

    def shows(self, words: str) -> bool:
        try:
            while data := os.read(self.ours, 65_536):
                self.text += data.decode()
        except BlockingIOError:
            pass
        return words in self.text

    def close(self) -> None:
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def screen() -> Iterator[Screen]:
    screen = Screen()
    yield screen
    screen.close()


def test_watching_on_a_terminal(service: FakeService, screen: Screen) -> None:
    port = free_port()
    with watching(screen.theirs, f"http://127.0.0.1:{port}") as process:
        eventually(lambda: screen.shows("nothing answers at"))
        with service.served(port):
            eventually(lambda: screen.shows("waiting, last minute"))
            eventually(lambda: screen.shows("█"))
            service.is_ready = False
            eventually(lambda: screen.shows("not ready: no worker is alive"))
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
    screen.shows("")
    assert "Traceback" not in screen.text
    hidden, back = "\x1b[?25l", "\x1b[?25h"
    assert screen.text.rindex(back) > screen.text.rindex(hidden)  # the cursor
