"""Models, health, readiness, request ids, and how the process starts."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import fakeredis
import pytest
from starlette.testclient import TestClient
from starlette.types import Message, Scope

import api.app
import api.body
import api.service
from api.app import create_app
from api.body import MAX_BODY_BYTES
from slm_client.stack import StackOptions, make_plan, service_parts
from slm_jobs.api_keys import NewKey
from slm_jobs.schemas import WorkerInfo
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from tests.api.conftest import WORKER


def test_models(client: TestClient, store: JobStore) -> None:
    store.heartbeat(WORKER, [])
    assert client.get("/models").json() == {
        "data": [
            {
                "name": "tiny",
                "context_length": 128,
                "default": True,
                "kv_cache": True,
                "trained": True,
                "templates": {},
                "workers": 1,
            },
            {
                "name": "small",
                "context_length": 512,
                "default": False,
                "kv_cache": True,
                "trained": True,
                "templates": {
                    "animal": {
                        "text": "A {animal} named {name}",
                        "variables": {"animal": "what it is about", "name": "how it is called"},
                    }
                },
                "workers": 0,
            },
        ]
    }


def test_ready_once_a_worker_of_ours_is_alive(
    client: TestClient, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.service, "READY_SECONDS", 0.0)
    store.heartbeat(WORKER.model_copy(update={"id": "w0", "models": ["unserved"]}), [])
    response = client.get("/readyz")
    assert (response.status_code, response.json()["code"]) == (503, "not_ready")
    assert response.headers["retry-after"] == "1"
    assert "tiny, small" in response.json()["detail"]
    store.heartbeat(WORKER, [])
    response = client.get("/readyz")
    assert (response.status_code, response.json()) == (200, {"status": "ready", "workers": 1})


def test_readiness_is_looked_up_once_a_second(
    client: TestClient,
    store: JobStore,
    redis_process: fakeredis.FakeServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, looked = SimpleNamespace(now=100.0), 0
    monkeypatch.setattr(api.service, "time", SimpleNamespace(monotonic=lambda: clock.now))
    workers = store.workers

    def look() -> list[WorkerInfo]:
        nonlocal looked
        looked += 1
        return workers()

    monkeypatch.setattr(store, "workers", look)

    def statuses() -> list[int]:
        return [client.get("/readyz").status_code for _ in range(3)]

    redis_process.connected = False
    assert (statuses(), looked) == ([503] * 3, 1)
    assert client.get("/readyz").json()["code"] == "store_unavailable"
    redis_process.connected = True
    store.heartbeat(WORKER, [])
    clock.now += 0.9
    assert (statuses(), looked) == ([503] * 3, 1)
    clock.now += 0.2
    assert (statuses(), looked) == ([200] * 3, 2)
    store.forget_worker(WORKER.id)
    clock.now += 1.1
    assert (statuses(), looked) == ([503] * 3, 3)
    assert client.get("/readyz").json()["code"] == "not_ready"


def test_healthy_without_redis(client: TestClient, redis_process: fakeredis.FakeServer) -> None:
    redis_process.connected = False
    response = client.get("/healthz")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_the_documentation_needs_nobody_else(client: TestClient) -> None:
    page = client.get("/docs").text
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', page)
    for address in re.findall(r'(?:src|href)="(/[^"]+)"', page):
        assert client.get(address).status_code == 200
    assert "/docs/assets/swagger-ui-bundle.js" in page


@pytest.mark.parametrize("given", ["a", "Trace.7_x-" + "y" * 54])
def test_a_sane_request_id_is_kept(client: TestClient, given: str) -> None:
    for path in ("/healthz", "/nowhere"):
        response = client.get(path, headers={"X-Request-Id": given})
        assert response.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "y" * 65, "a b", 'a"', "ä"])
def test_another_request_id_is_replaced(client: TestClient, given: str) -> None:
    response = client.get("/healthz", headers=[(b"X-Request-Id", given.encode())])
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])


def test_the_access_log_is_one_line_and_quiet_about_success(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "api"):
        client.get("/healthz")
        client.get("/a%0Ab", headers={"X-Request-Id": "seek-me"})
    (line,) = [r for r in caplog.records if r.name == "api.request_context"]
    assert re.fullmatch(r"GET /a%0Ab 404 \d+\.\d ms", line.getMessage())
    assert vars(line)["request_id"] == "seek-me"


def scope_of(key: NewKey) -> Scope:
    return {
        "type": "http",
        "method": "POST",
        "path": "/jobs",
        "query_string": b"",
        "headers": [
            (b"host", b"testserver"),
            (b"content-type", b"application/json"),
            (b"authorization", f"Bearer {key.token}".encode()),
        ],
    }


def test_a_large_body_is_not_read_to_its_end(
    settings: Settings, store: JobStore, key: NewKey
) -> None:
    chunk = b" " * 65_536
    read, sent = 0, list[Message]()

    async def receive() -> Message:
        nonlocal read
        read += len(chunk)
        return {"type": "http.request", "body": chunk, "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = scope_of(key)
    asyncio.run(create_app(settings, store)(scope, receive, send))
    assert sent[0]["status"] == 413
    assert read == MAX_BODY_BYTES + len(chunk)
    sent.clear()
    read = 0
    scope["headers"] = [*scope["headers"], (b"content-length", b"%d" % (MAX_BODY_BYTES + 1))]
    asyncio.run(create_app(settings, store)(scope, receive, send))
    assert (sent[0]["status"], read) == (413, 0)


def test_a_body_that_does_not_come(
    settings: Settings, store: JobStore, key: NewKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.body, "BODY_SECONDS", 0.05)
    sent = list[Message]()

    async def receive() -> Message:
        return await asyncio.Event().wait() and {}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(create_app(settings, store)(scope_of(key), receive, send))
    assert sent[0]["status"] == 408
    assert b"body_timeout" in sent[1]["body"]


def test_a_client_that_goes_away_is_no_failure(
    settings: Settings, store: JobStore, key: NewKey, caplog: pytest.LogCaptureFixture
) -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    scope = scope_of(key)
    with caplog.at_level(logging.INFO):
        asyncio.run(create_app(settings, store)(scope, receive, send))
    assert " 499 " in caplog.text
    assert "Traceback" not in caplog.text


def test_start_says_what_is_served(
    settings: Settings, store: JobStore, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), TestClient(create_app(settings, store)):
        pass
    assert "serving tiny, context 128 tokens" in caplog.text


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_api_imports_no_model_and_no_queue() -> None:
    names = "('torch', 'numpy', 'celery', 'kombu', 'worker')"
    done = run_python(f"import sys, api.app; print([n for n in {names} if n in sys.modules])")
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_uvicorn_starts_what_the_environment_describes(settings: Settings) -> None:
    code = "from uvicorn import Config; c = Config('api.app:app'); c.load(); print(c.loaded)"
    done = run_python(code, SLM_MODELS_FILE=str(settings.models_file))
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr


def test_the_image_and_slm_up_bound_the_api_alike(tmp_path: Path) -> None:
    """How long it takes to stop, and how many connections it holds."""
    image = (Path(api.app.__file__).parents[1] / "Dockerfile.api").read_text()
    arguments: list[str] = json.loads(image.rpartition("\nCMD ")[2].replace("\\\n", ""))
    plan = make_plan(StackOptions(port=0, data_dir=tmp_path, redis_url=None), 0)
    [part] = (part for stage in service_parts(plan) for part in stage if part.name == "api")
    for option in ("--timeout-graceful-shutdown", "--limit-concurrency"):
        wanted = part.command[part.command.index(option) + 1]
        assert arguments[arguments.index(option) + 1] == wanted
        assert int(wanted) > 0
    assert arguments[:4] == ["python", "-m", "uvicorn", "api.app:app"]


def test_uvicorn_ends_with_one_line_on_a_bad_manifest(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    code = "import uvicorn; uvicorn.run('api.app:app', port=0)"
    done = run_python(code, SLM_MODELS_FILE=str(missing))
    assert done.returncode == 1
    assert done.stderr.strip() == f"api: cannot read {missing}: No such file or directory"


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("SLM_REDIS_TIMEOUT_SECONDS", "-1", "SLM_REDIS_TIMEOUT_SECONDS: Input should be"),
        ("SLM_REDIS_URL", "nowhere", "SLM_REDIS_URL: must look like"),
    ],
)
def test_a_bad_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, name: str, value: str, line: str
) -> None:
    monkeypatch.setenv("SLM_MODELS_FILE", str(settings.models_file))
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=f"^api: {line}"):
        _ = api.app.app
