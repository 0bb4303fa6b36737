"""The README's examples, run against a real service."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from slm_client.redis_server import free_port
from tests.e2e.service import Service, until
from tests.test_readme import README

pytestmark = pytest.mark.timeout(120)

ADDRESS = "http://127.0.0.1:8000"


def example(kind: str) -> str:
    found = re.search(rf"<!-- tested: {kind} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found, f"no {kind} example"
    return found[1]


def run_shell(command: str, service: Service) -> dict[str, object]:
    command = command.replace(ADDRESS, service.url).replace("$(cat .slm/api_key)", service.api_key)
    bash = shutil.which("bash")
    if not (bash and shutil.which("curl")):
        pytest.skip("needs bash and curl")
    done = subprocess.run([bash, "-ec", command], check=True, capture_output=True)
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document


def test_curl_submits_and_polls(service: Service) -> None:
    shown = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", README, re.DOTALL)]
    submitted = run_shell(example("curl"), service)
    service.client.wait(str(submitted["id"]))
    authorised = f'-H "Authorization: Bearer {service.api_key}"'
    polled = run_shell(f"curl -s {ADDRESS}/jobs/{submitted['id']} {authorised}", service)
    assert [submitted.keys(), polled.keys()] == [document.keys() for document in shown]
    assert (submitted["status"], polled["status"]) == ("queued", "succeeded")
    assert [d["status"] for d in shown] == ["queued", "succeeded"]


def test_curl_uploads_a_file(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_API_KEY", service.api_key)
    batch = run_shell(example("curl-batch"), service)
    ended = service.client.batches.wait(str(batch["id"]), timeout=100)
    assert (ended.status, ended.counts.succeeded) == ("completed", 72)


def test_python_example_runs(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_API_KEY", service.api_key)
    code = example("python").replace(ADDRESS, service.url)
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102


def test_openai_example_runs(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_API_KEY", service.api_key)
    code = example("openai").replace(ADDRESS, service.url).replace("tinystories", "tiny")
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102


def test_callback_examples_run(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (bash := shutil.which("bash")):
        pytest.skip("needs bash")
    port, programs = free_port(), f"{Path(sys.executable).parent}/"
    monkeypatch.setenv("SLM_URL", service.url)
    monkeypatch.setenv("SLM_API_KEY", service.api_key)
    monkeypatch.setenv("SLM_CALLBACK_SECRET", service.client.callbacks.secrets()[0].secret)
    defined: dict[str, Any] = {}
    exec(compile(example("callback"), "README.md", "exec"), defined)  # noqa: S102
    commands = example("callback-sh").replace(".venv/bin/", programs).replace("9000", str(port))
    service.start_callbacks()
    receiver = uvicorn.Server(uvicorn.Config(defined["app"], port=port, log_level="warning"))
    thread = threading.Thread(target=receiver.run)
    thread.start()
    try:
        done = subprocess.run([bash, "-ec", commands], check=True, capture_output=True, text=True)
        assert done.stdout.startswith("Once upon a time")
        job = next(service.client.jobs(limit=1))
        told = f"job.succeeded {job.id} {service.url}/jobs/{job.id}\n"
        until(lambda: told in capsys.readouterr().out, "the callback has come")
    finally:
        receiver.should_exit = True
        thread.join()


def test_engine_example_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "engine.md").read_text("utf-8")
    found = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert found
    exec(compile(found[1], "engine.md", "exec"), {})  # noqa: S102
