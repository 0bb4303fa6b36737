"""Calls that wait for their text, and get none: what they answer, and what becomes of the job."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import fakeredis
import pytest
from starlette.testclient import TestClient

from api import synchronous
from api.app import create_app
from slm_jobs.admission import Admission
from slm_jobs.api_keys import NewKey
from slm_jobs.errors import StoreUnavailable
from slm_jobs.events import JobEvents
from slm_jobs.schemas import Job, JobError, JobStatus, Work
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from tests.api.conftest import bearer
from tests.api.fake_worker import FakeWorker
from tests.api.openai_calls import complete, error
from tests.api.test_problems import problem

REPEATABLE = {"Idempotency-Key": "k1"}


@pytest.fixture
def hasty(
    settings: Settings, store: JobStore, events: JobEvents, key: NewKey
) -> Iterator[TestClient]:
    """Waits for a text for 0.2 s."""
    settings = settings.model_copy(update={"sync_timeout_seconds": 0.2})
    with TestClient(create_app(settings, store, events), headers=bearer(key)) as client:
        yield client


@pytest.fixture
def outage(
    store: JobStore, redis_process: fakeredis.FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis goes away as soon as it has taken a job."""
    monkeypatch.setattr("api.follow._AWAY_SECONDS", 1.0)  # that a stream waits for it
    create = store.create

    def taken(*args: Any, **fields: Any) -> Admission:
        admission: Admission = create(*args, **fields)
        redis_process.connected = False
        return admission

    monkeypatch.setattr(store, "create", taken)


@pytest.fixture
def cancelled(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a job was cancelled, and not when that was only tried. Attempts follow quickly."""
    cancel, done = store.cancel, threading.Event()

    def cancel_and_tell(job_id: str) -> Job:
        job = cancel(job_id)
        done.set()
        return job

    monkeypatch.setattr(store, "cancel", cancel_and_tell)
    monkeypatch.setattr(synchronous, "_PAUSES", (0.02,) * 500)
    return done


def fail(store: JobStore, work: Work) -> None:
    store.fail(work, JobError(code="out_of_memory", message="no room"))


def test_a_failed_job_tells_how_the_key_stands(client: TestClient, store: JobStore) -> None:
    with FakeWorker(store, fail):
        first = client.post("/generate", json={"prompt": "a"}, headers=REPEATABLE)
    again = client.post("/generate", json={"prompt": "a"}, headers=REPEATABLE)
    for response in (first, again):
        problem(response, "generation_failed")
        assert response.headers["ratelimit"]
        assert response.headers["x-should-retry"] == "false"
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"


def test_a_late_job_tells_how_the_key_stands(hasty: TestClient) -> None:
    for response in (hasty.post("/generate", json={"prompt": "a"}), complete(hasty)):
        assert response.status_code == 504
        assert response.headers["x-ratelimit-limit-requests"]
        assert response.headers["x-should-retry"] == "false"


def test_a_job_that_was_deleted(
    client: TestClient, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    get, gone = store.get, list[str]()

    def vanished(job_id: str, **fields: Any) -> Job:
        gone.append(job_id)
        store.cancel(job_id)
        store.delete(job_id)
        return get(job_id, **fields)

    monkeypatch.setattr(store, "get", vanished)
    response = client.post("/generate", json={"prompt": "a"})
    assert problem(response, "generation_failed")["job_id"] == gone[0]
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.usefixtures("outage")
def test_a_job_that_redis_took_with_it_is_cancelled_later(
    hasty: TestClient,
    store: JobStore,
    redis_process: fakeredis.FakeServer,
    cancelled: threading.Event,
) -> None:
    response = hasty.post("/generate", json={"prompt": "a"})
    document = problem(response, "store_unavailable")
    assert response.headers["x-should-retry"] == "false"
    assert response.headers["ratelimit"]
    assert not cancelled.is_set()
    redis_process.connected = True
    assert cancelled.wait(10)
    assert store.get(document["job_id"]).status is JobStatus.CANCELLED


@pytest.mark.usefixtures("outage")
@pytest.mark.parametrize("streamed", [False, True])
def test_so_is_that_of_a_completion(
    hasty: TestClient,
    store: JobStore,
    redis_process: fakeredis.FakeServer,
    cancelled: threading.Event,
    streamed: bool,
) -> None:
    response = complete(hasty, stream=streamed)
    if streamed:
        assert '"code":"store_unavailable"' in response.text
    else:
        assert "is given up" in error(response, 503, "store_unavailable")
        assert response.headers["x-should-retry"] == "false"
    redis_process.connected = True
    assert cancelled.wait(10)
    assert store.queue_depth("tiny") == 0


@pytest.mark.usefixtures("outage")
def test_a_call_that_may_be_repeated_keeps_its_job(
    hasty: TestClient,
    store: JobStore,
    redis_process: fakeredis.FakeServer,
    cancelled: threading.Event,
) -> None:
    response = hasty.post("/generate", json={"prompt": "a"}, headers=REPEATABLE)
    problem(response, "store_unavailable")
    assert response.headers["retry-after"] == "1"
    assert "x-should-retry" not in response.headers
    redis_process.connected = True
    assert not synchronous._cancelling
    assert not cancelled.is_set()
    assert store.queue_depth("tiny") == 1


@pytest.mark.usefixtures("outage")
def test_attempts_to_cancel_come_to_an_end(
    hasty: TestClient, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, ended = list[str](), threading.Event()

    def never(job_id: str) -> Job:
        tried.append(job_id)
        raise StoreUnavailable("away")

    monkeypatch.setattr(store, "cancel", never)
    monkeypatch.setattr(synchronous, "_PAUSES", (0.01, 0.01))
    monkeypatch.setattr(synchronous.log, "error", lambda *_: ended.set())
    job_id = problem(hasty.post("/generate", json={"prompt": "a"}), "store_unavailable")["job_id"]
    assert ended.wait(10)
    assert tried == [job_id] * 3
