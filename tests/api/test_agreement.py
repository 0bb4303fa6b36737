"""The service takes exactly what its OpenAPI document says: what Schemathesis once found."""

from __future__ import annotations

import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.idempotency import IDEMPOTENCY_KEY_SCHEMA


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


def test_parameters_are_never_null(client: TestClient) -> None:
    document: Any = client.get("/openapi.json").json()
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                assert {"type": "null"} not in parameter["schema"].get("anyOf", ())
