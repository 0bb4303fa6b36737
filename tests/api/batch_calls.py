"""Calls of `/batches`, and what comes of them."""

from __future__ import annotations

import json
from typing import Any

import fakeredis
from httpx2 import Response
from starlette.testclient import TestClient

from slm_jobs import keys
from slm_jobs.schemas import Work
from slm_jobs.store import JobStore

JSONL = "application/jsonl"
SHORT = {"max_tokens": "5"}


def jsonl(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def send(
    client: TestClient,
    content: bytes,
    kind: str = JSONL,
    headers: dict[str, str] | None = None,
    **options: Any,
) -> Response:
    return client.post(
        "/batches",
        params={**SHORT, **options},
        content=content,
        headers={"Content-Type": kind, **(headers or {})},
    )


def take(client: TestClient, *rows: object, **options: Any) -> Any:
    """The batch."""
    response = send(client, jsonl(*rows), **options)
    assert response.status_code == 202, response.text
    return response.json()


def claim_all(store: JobStore, model: str = "tiny") -> list[Work]:
    """Every row that waits, in the order of the file where there is one batch."""
    found = []
    while works := store.claim_next(model, worker="w1", rows=1000, alone=False):
        found += works
    return found


def lines(response: Response) -> list[Any]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == JSONL
    return [json.loads(line) for line in response.text.splitlines() if line]


def left_in(redis: fakeredis.FakeRedis) -> list[str]:
    """What Redis holds besides API keys and counters, and the counters of rows that are not 0."""
    kept = (keys.KEY, keys.KEYS_MADE, keys.SEQUENCE, keys.TICKETS, keys.JANITOR)
    counters = (keys.USAGE, keys.ROWS_WAITING)
    names = [name for name in redis.keys("*") if not name.startswith(kept)]
    return sorted(
        name
        for name in names
        if not name.startswith(counters) or set(redis.hgetall(name).values()) - {"0"}
    )
