"""The service takes exactly what its OpenAPI document says: what Schemathesis once found."""

from __future__ import annotations

import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.idempotency import IDEMPOTENCY_KEY_SCHEMA
from api.problems import PROBLEMS
from slm_jobs.api_keys import KeySettings
from slm_jobs.store import JobStore
from tests.api.conftest import bearer
from tests.api.fake_worker import FakeWorker


def post(client: TestClient, body: str, **headers: str) -> int:
    return client.post(
        "/jobs", content=body, headers={"Content-Type": "application/json", **headers}
    ).status_code


@pytest.mark.parametrize(
    ("number", "status"),
    [("4", 202), ("4.0", 202), ("4e0", 202), ("4.5", 422), ("1e400", 422), ("4e-400", 422)],
)
def test_an_integer_may_be_written_with_a_fraction_of_nothing(
    client: TestClient, number: str, status: int
) -> None:
    assert post(client, f'{{"prompt": "Hello", "max_tokens": {number}}}') == status


@pytest.mark.parametrize("name", ["created_after", "created_before"])
@pytest.mark.parametrize("time", ["0.5", "1700000000", "2026-01-31", "2026-01-31T09:00:00"])
def test_times_are_rfc_3339(client: TestClient, name: str, time: str) -> None:
    answer = client.get("/jobs", params={name: time})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert client.get("/jobs", params={name: "2026-01-31t09:00:00.5+01:00"}).status_code == 200


@pytest.mark.parametrize(
    ("given", "good"),
    [("a", True), ('"a b"', True), ('a"', True), ('"a', False), ('"a" b', False), ('""', False)],
)
def test_idempotency_keys_are_as_documented(client: TestClient, given: str, good: bool) -> None:
    assert bool(re.search(IDEMPOTENCY_KEY_SCHEMA["pattern"], given)) is good
    status = post(client, '{"prompt": "Hello", "max_tokens": 8}', **{"Idempotency-Key": given})
    assert status == (202 if good else 422)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/jobs", '{"prompt": "a", "max_tokens": 4, "metadata": {"a": "b"}}'),
        ("/v1/completions", '{"model": "tiny", "prompt": "a", "max_tokens": 4}'),
        ("/generate", '{"prompt": "a", "max_tokens": 4}'),
    ],
)
def test_equal_numbers_are_one_request(
    client: TestClient, store: JobStore, path: str, body: str
) -> None:
    """However they are written: an Idempotency-Key goes with the body as it was understood."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": "k"}
    statuses = []
    with FakeWorker(store) as worker:
        for number in ("4", "4.0", "40e-1", "5"):
            sent = body.replace("4", number)
            statuses.append(client.post(path, content=sent, headers=headers).status_code)
    assert [status < 300 for status in statuses] == [True, True, True, False]
    assert statuses[-1] == 422
    assert len(worker.seen) == 1


def test_the_example_of_exceeds_limit_is_what_is_said(client: TestClient, store: JobStore) -> None:
    poor = bearer(store.keys.create(KeySettings(name="x", tokens_per_minute=20_000)))
    body = {"model": "small", "prompt": ["a"] * 16, "n": 4, "max_tokens": 400}
    answer = client.post("/jobs", json=body, headers=poor).json()
    assert answer["detail"] == PROBLEMS["exceeds_limit"].example


def test_parameters_are_never_null(client: TestClient) -> None:
    document: Any = client.get("/openapi.json").json()
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                assert {"type": "null"} not in parameter["schema"].get("anyOf", ())
