"""The api's page for Prometheus: what it has answered, and how everything stands by Redis."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import fakeredis
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

import api.app
import api.metrics
from api.app import create_app
from api.metrics import LIMITS
from slm_client.redis_server import RedisServer, free_port
from slm_jobs.api_keys import KeySettings
from slm_jobs.errors import QueueFull, TooManyCallbacks, TooManyFiles
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from tests.api.conftest import WORKER, bearer
from tests.e2e.service import until

JOB = {"prompt": "Once", "max_tokens": 5}
Samples = dict[tuple[str, ...], float]


def samples(text: str) -> Samples:
    """By name, labels and their values: `("slm_x", "model_name", "tiny")`."""
    found = (s for family in text_string_to_metric_families(text) for s in family.samples)
    return {(s.name, *chain.from_iterable(sorted(s.labels.items()))): s.value for s in found}


@pytest.fixture(autouse=True)
def _every_page_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.metrics, "FRESH_SECONDS", 0.0)


def scrape(client: TestClient) -> Samples:
    response = client.get("/metrics", headers={"Authorization": ""})
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return samples(response.text)


def answered(found: Samples, method: str, route: str, status: int) -> float | None:
    labels = ("method", method, "route", route, "status", str(status))
    return found.get(("slm_http_requests_total", *labels))


def test_every_series_is_there_from_the_start_at_0(client: TestClient) -> None:
    found = scrape(client)
    for name in ("num_requests_waiting", "num_requests_running", "num_batch_rows_waiting"):
        assert found[f"slm_{name}", "model_name", "tiny"] == 0
    for name in ("waiting_tokens", "oldest_waiting_seconds", "workers", "slots"):
        assert found[f"slm_{name}", "model_name", "small"] == 0
    for name in ("dead_letters", "callbacks_pending", "callbacks_overdue_seconds"):
        assert found[(f"slm_{name}",)] == 0
    assert found["slm_jobs_expired_total", "model_name", "tiny"] == 0
    assert found[("slm_redis_up",)] == 1
    assert ("slm_redis_memory_used_bytes",) in found
    for limit in LIMITS:
        assert found["slm_rate_limit_refusals_total", "limit", limit] == 0
    for method, route, status in (
        ("POST", "/jobs", 202),
        ("POST", "/jobs", 429),
        ("POST", "/jobs", 500),
        ("GET", "/batches/{id}/results", 404),
        ("DELETE", "/admin/dead-letters/{id}", 204),
        ("POST", "/v1/completions", 503),
    ):
        assert answered(found, method, route, status) == 0, (method, route, status)
        labels = ("method", method, "route", route)
        assert found["slm_http_request_duration_seconds_count", *labels] == 0
    assert not any(name.endswith("_created") for name, *_ in found)


def test_gauges_are_those_of_redis(client: TestClient, store: JobStore) -> None:
    store.heartbeat(WORKER, [])
    for _ in range(2):
        assert client.post("/jobs", json=JOB).status_code == 202
    store.claim_next("tiny", worker="w1")
    store.clock_offset_ms = 9_000
    found = scrape(client)
    assert found["slm_num_requests_waiting", "model_name", "tiny"] == 1
    assert found["slm_num_requests_running", "model_name", "tiny"] == 1
    assert found["slm_waiting_tokens", "model_name", "tiny"] == 6
    assert 8 < found["slm_oldest_waiting_seconds", "model_name", "tiny"] < 30
    assert found["slm_workers", "model_name", "tiny"] == 1
    assert found["slm_slots", "model_name", "tiny"] == 8
    assert found["slm_workers", "model_name", "small"] == 0


def test_routes_are_templates_and_nobody_makes_series(client: TestClient) -> None:
    for path in ("/jobs/job_1", "/jobs/job_2"):
        client.get(path)
    before = len(scrape(client))
    client.get("/openapi.json")
    for number in range(5):
        client.get(f"/nowhere/{number}")
        client.request(f"BREW{number}", "/jobs")
        client.request("DELETE", "/models")
        client.get("/docs", headers={"Host": f"evil{number}.example"})
        client.get(f"/docs/assets/{number}.js")
    found = scrape(client)
    assert answered(found, "GET", "/jobs/{id}", 404) == 2
    assert answered(found, "GET", "unmatched", 404) == 5
    assert answered(found, "GET", "unmatched", 421) == 5
    assert answered(found, "DELETE", "/models", 405) == 5
    assert answered(found, "other", "/jobs", 405) == 5
    assert answered(found, "GET", "other", 404) == 5
    assert answered(found, "GET", "/openapi.json", 200) or answered(found, "GET", "other", 200)
    assert not any("BREW" in label or "evil" in label for sample in found for label in sample)
    assert len(found) < before + 150


def test_answers_count_with_their_times(client: TestClient) -> None:
    client.post("/jobs", json=JOB)
    client.post("/jobs", json={})
    found = scrape(client)
    assert answered(found, "POST", "/jobs", 202) == 1
    assert answered(found, "POST", "/jobs", 422) == 1
    labels = ("method", "POST", "route", "/jobs")
    assert found["slm_http_request_duration_seconds_count", *labels] == 2
    assert 0 < found["slm_http_request_duration_seconds_sum", *labels] < 60


def test_a_fault_counts_as_500(
    client: TestClient, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "queues", lambda _: 1 / 0)
    assert client.get("/queue").status_code == 500
    assert answered(scrape(client), "GET", "/queue", 500) == 1


def test_refusals_are_counted_by_limit(client: TestClient, store: JobStore) -> None:
    key = store.keys.create(KeySettings(name="k", requests_per_minute=1, tokens_per_minute=10))
    for fields in ({}, {}, {"max_tokens": 100}):
        client.post("/jobs", json={**JOB, **fields}, headers=bearer(key))
    found = scrape(client)
    assert found["slm_rate_limit_refusals_total", "limit", "requests"] == 2
    assert found["slm_rate_limit_refusals_total", "limit", "tokens"] == 2


@pytest.mark.parametrize(
    ("error", "limit"),
    [(QueueFull("x"), "queue"), (TooManyFiles(1), "files"), (TooManyCallbacks(1), "callbacks")],
    ids=["queue", "files", "callbacks"],
)
def test_what_is_full_counts_as_a_limit(
    client: TestClient,
    store: JobStore,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    limit: str,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(store, "create", refuse)
    assert client.post("/jobs", json=JOB).status_code in (400, 429, 503)
    assert scrape(client)["slm_rate_limit_refusals_total", "limit", limit] == 1


def test_without_redis_it_says_so(client: TestClient, redis_process: fakeredis.FakeServer) -> None:
    client.get("/models")
    redis_process.connected = False
    found = scrape(client)
    assert found[("slm_redis_up",)] == 0
    assert answered(found, "GET", "/models", 200) == 1
    assert not any(name == "slm_workers" for name, *_ in found)
    redis_process.connected = True
    assert scrape(client)[("slm_redis_up",)] == 1


def test_a_mistake_of_ours_does_not_hide_what_was_counted(
    client: TestClient,
    store: JobStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(store.fleet, "read", lambda _: 1 / 0)
    assert scrape(client)[("slm_redis_up",)] == 1  # it is not Redis that is down
    assert "the gauges of Redis cannot be read" in caplog.text


def test_asking_often_costs_one_call_a_second(
    client: TestClient, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.metrics, "FRESH_SECONDS", 1.0)
    clock = SimpleNamespace(now=100.0)
    times = SimpleNamespace(monotonic=lambda: clock.now, perf_counter=time.perf_counter)
    monkeypatch.setattr(api.metrics, "time", times)
    read, calls = store.fleet.read, []
    monkeypatch.setattr(store.fleet, "read", lambda models: calls.append(1) or read(models))
    first = scrape(client)
    for _ in range(5):
        assert scrape(client) == first
    assert len(calls) == 1
    clock.now += 1.1
    assert answered(scrape(client), "GET", "/metrics", 200) == 6
    assert len(calls) == 2


@pytest.mark.parametrize("host", ["10.0.0.7", "10.0.0.7:8000", "[fd00::7]:8000", "TestServer"])
def test_prometheus_asks_by_address(client: TestClient, host: str) -> None:
    assert client.get("/metrics", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "10.0.0.7.evil.example", "", "[10", "a:b"])
def test_a_page_elsewhere_cannot_have_a_browser_read_it(client: TestClient, host: str) -> None:
    assert client.get("/metrics", headers={"Host": host}).status_code == 421


def test_an_address_opens_nothing_else(client: TestClient) -> None:
    for path in ("/docs", "/openapi.json", "/metrics/", "/queue"):
        assert client.get(path, headers={"Host": "10.0.0.7"}).status_code == 421


def test_behind_a_prefix(settings: Settings, store: JobStore) -> None:
    with TestClient(create_app(settings, store), root_path="/slm") as client:
        answer = client.get("/slm/metrics", headers={"Host": "10.0.0.7"})
        assert answer.status_code == 200
        found = samples(client.get("/slm/metrics").text)
    assert answered(found, "GET", "/metrics", 200) == 1


# Several processes


@pytest.fixture
def pair(redis_server: RedisServer, settings: Settings, tmp_path: Path) -> Iterator[str]:
    """The address of an api of two processes."""
    folder = tmp_path / "metrics"
    folder.mkdir()
    port = free_port()
    command = f"-m uvicorn api.app:app --workers 2 --port {port} --no-access-log"
    env = {
        **os.environ,
        "SLM_REDIS_URL": redis_server.url,
        "SLM_MODELS_FILE": str(settings.models_file),
        "PROMETHEUS_MULTIPROC_DIR": str(folder),
    }
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *command.split()], env=env, stdout=log, stderr=log
        )
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: len(list(folder.glob("counter_*.db"))) == 2, "two processes count")
        until(lambda: _healthy(url), "they answer")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    assert "several api processes" not in (tmp_path / "log").read_text()


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", trust_env=False).is_success
    except httpx.TransportError:
        return False


def test_any_of_several_processes_tells_of_all(pair: str) -> None:
    """Each has a page a second old at most; then all of them say the same."""
    for number in range(40):  # each on a connection of its own, so that both processes get some
        httpx.get(f"{pair}/nowhere/{number}", trust_env=False)

    def page() -> Samples:
        return samples(httpx.get(f"{pair}/metrics", trust_env=False).text)

    until(
        lambda: all(answered(page(), "GET", "unmatched", 404) == 40 for _ in range(6)),
        "every page tells of 40 requests",
    )
    found = page()
    assert found[("slm_redis_up",)] == 1
    assert found["slm_workers", "model_name", "tiny"] == 0
    assert found["slm_rate_limit_refusals_total", "limit", "tokens"] == 0
    labels = ("method", "GET", "route", "unmatched")
    assert found["slm_http_request_duration_seconds_count", *labels] == 40
    assert answered(found, "POST", "/jobs", 202) == 0
    assert not any(name.startswith("process_") for name, *_ in found)


@pytest.mark.parametrize("folder", ["missing", "file", ""])
def test_a_folder_that_is_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings, folder: str
) -> None:
    (tmp_path / "file").touch()
    given = str(tmp_path / folder) if folder else ""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", given)
    monkeypatch.setenv("SLM_MODELS_FILE", str(settings.models_file))
    with pytest.raises(SystemExit, match=r"api: PROMETHEUS_MULTIPROC_DIR: .*is no folder"):
        _ = api.app.app


def test_one_of_several_processes_that_counts_for_itself_says_so(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SLM_MODELS_FILE", str(settings.models_file))
    monkeypatch.setenv("SLM_REDIS_URL", "redis://127.0.0.1:1")
    monkeypatch.setattr("multiprocessing.parent_process", lambda: object())
    assert api.app._from_environment()
    assert "set PROMETHEUS_MULTIPROC_DIR to an empty folder" in caplog.text
