"""The id of a request goes with what it made: to workers, in every row, and to callbacks."""

from __future__ import annotations

import json

import pytest
from starlette.testclient import TestClient

from slm_jobs.api_keys import NewKey
from slm_jobs.schemas import JobError
from slm_jobs.store import JobStore
from tests.api.batch_calls import claim_all
from tests.api.callback_calls import CALLBACK, EVERYWHERE, Take, due, run
from tests.api.conftest import bearer
from tests.api.openai_batch_calls import content, line

ID = "order-7"


@pytest.fixture
def client(client: TestClient) -> TestClient:
    client.headers["X-Request-Id"] = ID
    return client


@EVERYWHERE
def test_to_workers_and_callbacks(client: TestClient, store: JobStore, take: Take) -> None:
    work = take(client, **CALLBACK).json()
    assert ID not in json.dumps(work)
    [claimed] = store.claim_next("tiny", worker="w1", rows=9)
    assert claimed.spec.request_id == ID
    assert store.hand_back([claimed]) == 1
    run(store)
    assert {delivery.request_id for delivery in due(store)} == {ID}


def test_of_openai_batches(client: TestClient, store: JobStore) -> None:
    file = client.post(
        "/v1/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", content(line()))}
    ).json()
    body = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
    assert client.post("/v1/batches", json=body).status_code == 200
    assert [work.spec.request_id for work in claim_all(store)] == [ID]


def test_rows_that_are_retried_have_that_of_the_retry(client: TestClient, store: JobStore) -> None:
    batch = client.post("/batches", json={"rows": ["a", "b"], "max_tokens": 5}).json()
    client.post(f"/batches/{batch['id']}/cancel")
    again = {"X-Request-Id": "order-8"}
    assert client.post(f"/batches/{batch['id']}/retry", headers=again).status_code == 202
    assert {work.spec.request_id for work in claim_all(store)} == {"order-8"}


def test_a_job_that_is_redriven_keeps_its_own(
    client: TestClient, store: JobStore, admin: NewKey
) -> None:
    job = client.post("/jobs", json={"prompt": "a", "max_tokens": 5, **CALLBACK}).json()
    [work] = store.claim_next("tiny", worker="w1")
    assert store.fail(work, JobError(code="engine_fault", message="x"))
    boss = {**bearer(admin), "X-Request-Id": "order-9"}
    client.post(f"/admin/dead-letters/{job['id']}/redrive", headers=boss)
    [work] = store.claim_next("tiny", worker="w1")
    assert work.spec.request_id == ID
    assert store.fail(work, JobError(code="engine_fault", message="x"))
    assert [delivery.request_id for delivery in due(store)] == [ID, ID]
