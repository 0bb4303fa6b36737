"""Jobs that are taken and read."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fakeredis import FakeRedis
from starlette.testclient import TestClient

from slm_jobs.admission import Admission
from slm_jobs.errors import StoreUnavailable
from slm_jobs.schemas import JobError, JobSpec, Output, Usage
from slm_jobs.store import JobStore

BODY = {"prompt": "Once upon a time", "max_tokens": 20}
KEYS = [
    "id",
    "status",
    "model",
    "created_at",
    "started_at",
    "finished_at",
    "attempt",
    "priority",
    "seed",
    "queue",
    "cancel_requested",
    "outputs",
    "usage",
    "fingerprint",
    "error",
    "metadata",
    "retry_of",
]


def test_a_job_is_taken(client: TestClient, store: JobStore) -> None:
    response = client.post("/jobs", json={**BODY, "metadata": {"a": "b"}})
    job = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/jobs/{job['id']}"
    assert response.headers["content-type"] == "application/json"
    assert list(job) == KEYS
    assert (job["status"], job["model"], job["metadata"]) == ("queued", "tiny", {"a": "b"})
    assert (job["started_at"], job["usage"], job["outputs"]) == (None, None, [])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", job["created_at"])
    assert store.queue_depth("tiny") == 1
    assert job["queue"] == {"ahead": 0, "estimated_wait_seconds": None}
    assert client.get(response.headers["location"]).json() == job


def test_what_was_asked_reaches_the_worker(client: TestClient, store: JobStore) -> None:
    body = {
        "prompt": ["A cat", "Ein Käse 🧀\u0000"],
        "model": "small",
        "n": 2,
        "temperature": 0,
        "top_k": None,
        "seed": 7,
        "stop": ["\n"],
    }
    sent = client.post("/jobs", json=body, headers={"X-Request-Id": "mine"})
    assert sent.status_code == 202
    [work] = store.claim_next("small", worker="w1")
    prompts = body.pop("prompt")
    assert work.spec == JobSpec.model_validate({**body, "prompts": prompts, "request_id": "mine"})


def test_a_job_is_read_through_its_life(client: TestClient, store: JobStore) -> None:
    address = client.post("/jobs", json=BODY).headers["location"]
    [work] = store.claim_next("tiny", worker="w1")
    running = client.get(address).json()
    assert (running["status"], running["attempt"]) == ("running", 1)
    usage = Usage(prompt_tokens=4, completion_tokens=1, total_tokens=5)
    outputs = [Output(index=0, text=", ☃", finish_reason="stop")]
    assert store.complete(work, outputs, usage, fingerprint="x")
    response = client.get(address)
    done = response.json()
    assert done["status"] == "succeeded"
    assert done["outputs"] == [{"index": 0, "text": ", ☃", "finish_reason": "stop"}]
    assert done["usage"]["total_tokens"] == 5
    assert done["finished_at"].endswith("Z")
    assert "☃".encode() in response.content


def test_a_failed_job_says_why(client: TestClient, store: JobStore) -> None:
    address = client.post("/jobs", json=BODY).headers["location"]
    [work] = store.claim_next("tiny", worker="w1")
    store.fail(work, JobError(code="engine_failed", message="no luck"))
    job = client.get(address).json()
    assert (job["status"], job["error"]) == (
        "failed",
        {"code": "engine_failed", "message": "no luck"},
    )


@pytest.mark.parametrize(
    "content_type",
    ["application/json; charset=utf-8", "Application/JSON", "application/vnd.slm+json"],
)
def test_json_by_any_of_its_names(client: TestClient, content_type: str) -> None:
    content = b'\xef\xbb\xbf{"prompt": "a", "max_tokens": 5}'
    response = client.post("/jobs", content=content, headers={"Content-Type": content_type})
    assert response.status_code == 202


def test_the_context_may_be_filled_exactly(client: TestClient) -> None:
    assert client.post("/jobs", json={"prompt": " a" * 28, "max_tokens": 100}).status_code == 202
    assert client.post("/jobs", json={"prompt": " a" * 29, "max_tokens": 100}).status_code == 422


def test_a_lost_reply_makes_no_second_job(
    client: TestClient, store: JobStore, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = store.create
    calls = 0

    def lossy(spec: JobSpec, **options: Any) -> Admission:
        nonlocal calls
        calls += 1
        admission = create(spec, **options)
        if calls == 1:
            raise StoreUnavailable("the reply was lost")
        return admission

    monkeypatch.setattr(store, "create", lossy)
    response = client.post("/jobs", json=BODY)
    assert response.status_code == 202
    assert calls == 2
    assert store.queue_depth("tiny") == 1


def test_behind_a_proxy_the_address_has_its_prefix(client: TestClient) -> None:
    behind = TestClient(client.app, root_path="/slm", headers=dict(client.headers))
    response = behind.post("/jobs", json=BODY)
    assert response.headers["location"] == f"/slm/jobs/{response.json()['id']}"
