"""Jobs and batches with callbacks, and a callback process without a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from slm_jobs.callback_schemas import Attempt, DueDelivery, Outcome
from slm_jobs.store import JobStore
from tests.api.fake_worker import answer

HOOK = "https://example.com/hook"
BODY = {"prompt": "a", "max_tokens": 5}
CALLBACK = {"callback_url": HOOK}

Take = Callable[..., Response]


def take_job(client: TestClient, **asked: Any) -> Response:
    return client.post("/jobs", json={**BODY, **asked})


def take_json(client: TestClient, **asked: Any) -> Response:
    return client.post("/batches", json={"rows": ["a"], "max_tokens": 5, **asked})


def take_file(client: TestClient, **asked: Any) -> Response:
    return client.post(
        "/batches",
        params={"max_tokens": 5, **asked},
        content=b"a\n",
        headers={"Content-Type": "text/plain"},
    )


def take_form(client: TestClient, **asked: Any) -> Response:
    data = {"max_tokens": "5", **asked}
    return client.post("/batches", data=data, files={"file": ("a.txt", b"a\n")})


EVERYWHERE = pytest.mark.parametrize("take", [take_job, take_json, take_file, take_form])
BATCHES = pytest.mark.parametrize("take", [take_json, take_file, take_form])


def run(store: JobStore) -> None:
    """All that waits."""
    while works := store.claim_next("tiny", worker="w1", rows=100):
        for work in works:
            answer(store, work)


def due(store: JobStore) -> list[DueDelivery]:
    return store.callbacks.claim(100)[0]


def told(store: JobStore) -> list[Any]:
    """What is due, as receivers would read it."""
    return [json.loads(one.payload) for one in due(store)]


def settle(store: JobStore, *, delivered: bool = True) -> None:
    """All that is due."""
    attempt = Attempt(
        at=datetime.now(UTC),
        duration_ms=7,
        status=204 if delivered else 410,
        error=None if delivered else "http_410",
    )
    outcomes = [Outcome(d.id, d.claim, attempt, None, delivered) for d in due(store)]
    assert all(store.callbacks.settle(outcomes))
