"""Calls of `/batches`, and what comes of them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import anyio
import fakeredis
from httpx2 import Response
from starlette.testclient import TestClient

from slm_jobs import keys
from slm_jobs.schemas import Company, Work
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
    while works := store.claim_next(model, worker="w1", rows=1000, company=Company.ANY):
        found += works
    return found


def lines(response: Response) -> list[Any]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == JSONL
    return [json.loads(line) for line in response.text.splitlines() if line]


def left_in(redis: fakeredis.FakeRedis) -> list[str]:
    """What Redis holds besides API keys and counters, and the counters of rows that are not 0."""
    kept = (keys.KEY, keys.KEYS_MADE, keys.SEQUENCE, keys.TICKETS, keys.JANITOR, keys.SWEPT_AT)
    counters = (keys.USAGE, keys.ROWS_WAITING)
    names = [name for name in redis.keys("*") if not name.startswith(kept)]
    return sorted(
        name
        for name in names
        if not name.startswith(counters) or set(redis.hgetall(name).values()) - {"0"}
    )


class Upload:
    """A call of `POST /batches` whose body comes piece by piece, as the test says."""

    def __init__(self, client: TestClient, path: str = "/batches", **headers: str) -> None:
        self.body: list[bytes] = []
        self.reads = 0
        self.sent: list[Any] = []
        self._client = client
        self._more = threading.Event()
        self._left = False
        names = {
            **dict(client.headers),
            "host": "testserver",
            "content-type": "text/plain",
            **{name.lower().replace("_", "-"): value for name, value in headers.items()},
        }
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"max_tokens=5",
            "headers": [(name.encode(), value.encode()) for name, value in names.items()],
            "client": ("127.0.0.1", 1),
            "server": ("testserver", 80),
            "state": {},
        }
        assert client.portal is not None
        self._call = client.portal.start_task_soon(
            client.app, self._scope, self._receive, self._send
        )

    def push(self, chunk: bytes) -> None:
        self.body.append(chunk)

    def leave(self) -> None:
        self._left = True

    def end(self) -> int:
        """The status of the answer; 0 if there was none."""
        self._more.set()
        self._call.result(timeout=60)
        return self.sent[0]["status"] if self.sent else 0

    def answer(self) -> Any:
        return json.loads(b"".join(message.get("body", b"") for message in self.sent))

    def cancel(self) -> None:
        self._call.cancel()

    async def _receive(self) -> Any:
        self.reads += 1
        while not self.body:
            if self._left:
                return {"type": "http.disconnect"}
            if self._more.is_set():
                return {"type": "http.request", "body": b"", "more_body": False}
            await anyio.sleep(0.002)
        return {"type": "http.request", "body": self.body.pop(0), "more_body": True}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)


def until(condition: Callable[[], object]) -> None:
    """Returns when it holds."""
    pause = threading.Event()
    while not condition():
        pause.wait(0.002)
