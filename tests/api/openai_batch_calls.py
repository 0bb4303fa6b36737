"""OpenAI's client on the service in this process, and rows that end as a test wants it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from openai.types import Batch, FileObject
from starlette.testclient import TestClient

from slm_jobs.api_keys import NewKey
from slm_jobs.batch_schemas import RowEnd
from slm_jobs.schemas import Work
from slm_jobs.store import JobStore
from tests.api.fake_worker import FINGERPRINT, outputs, usage


def connect(client: TestClient, key: NewKey, **options: Any) -> openai.OpenAI:
    """Its requests carry `key`, whatever `client` sends otherwise."""
    return openai.OpenAI(
        api_key=key.token,
        base_url="http://testserver/v1",
        http_client=client,
        max_retries=0,
        **options,
    )


def line(custom_id: str = "a", **fields: Any) -> dict[str, Any]:
    """A line of OpenAI's documentation, with our address and model."""
    body = {"model": "tiny", "prompt": "Once upon", "max_tokens": 8, **fields}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}


def content(*lines: Any) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def upload(api: openai.OpenAI, *lines: Any) -> FileObject:
    return api.files.create(file=("rows.jsonl", content(*lines)), purpose="batch")


def run(api: openai.OpenAI, *lines: Any, **options: Any) -> Batch:
    """A batch of these lines."""
    asked = {"endpoint": "/v1/completions", "completion_window": "24h", **options}
    return api.batches.create(input_file_id=upload(api, *lines).id, **asked)


def succeed(work: Work) -> RowEnd:
    return RowEnd(work, "succeeded", outputs(work), usage(work), FINGERPRINT)


def claim(store: JobStore, most: int = 64) -> list[Work]:
    return store.claim_next("tiny", worker="w1", rows=most)


def finish(store: JobStore, end: Callable[[Work], RowEnd] = succeed) -> list[Work]:
    """Ends all rows that wait, in order. Returns them."""
    seen: list[Work] = []
    while works := claim(store):
        assert all(store.batches.finish([end(work) for work in works]))
        seen += works
    return seen


def lines_of(api: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id
    return [json.loads(line) for line in api.files.content(file_id).text.splitlines()]


def asgi(
    client: TestClient,
    method: str,
    path: str,
    receive: Callable[[], Awaitable[dict[str, Any]]],
    **headers: str,
) -> list[dict[str, Any]]:
    """What the service sends, message by message, as a server would see it."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    names = {**dict(client.headers), "host": "testserver", **headers}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [
            (name.lower().replace("_", "-").encode(), value.encode())
            for name, value in names.items()
        ],
        "client": ("127.0.0.1", 1),
        "server": ("testserver", 80),
        "state": {},
    }
    assert client.portal is not None
    client.portal.call(client.app, scope, receive, send)
    return sent


@contextmanager
def raises(kind: type[openai.APIStatusError], code: str) -> Iterator[list[str]]:
    """The message of the error, once it was raised."""
    message: list[str] = []
    with pytest.raises(kind) as caught:
        yield message
    assert (type(caught.value), caught.value.code) == (kind, code)
    message.append(caught.value.message)
