"""Calls of `/v1/completions`, and what holds for every error there."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import anyio
from httpx2 import Response
from starlette.testclient import TestClient

from api.openai.errors import OpenAIError

BODY = {"model": "tiny", "prompt": "Once upon"}


def complete(client: TestClient, headers: dict[str, str] | None = None, **body: Any) -> Response:
    return client.post("/v1/completions", json={**BODY, **body}, headers=headers)


def error(response: Response, status: int, code: str, param: str | None = None) -> str:
    """The message, after what holds for all errors."""
    document = response.json()
    assert response.status_code == status, document
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    OpenAIError.model_validate(document, strict=True)
    assert list(document) == ["error"]
    assert (document["error"]["code"], document["error"]["param"]) == (code, param)
    message: str = document["error"]["message"]
    assert message
    return message


def asgi_call(
    client: TestClient,
    body: dict[str, Any],
    *,
    leave: threading.Event | None = None,
    on_send: Callable[[bytes], object] = bytes.__len__,
    **headers: str,
) -> tuple[int, bytes]:
    """A call whose client leaves when `leave` is set. Status (0: none came) and what was sent."""
    sent: list[Any] = []
    parts = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
    names = {
        **dict(client.headers),
        "host": "testserver",
        "content-type": "application/json",
        **headers,
    }

    async def receive() -> Any:
        if parts:
            return parts.pop()
        while leave is None or not leave.is_set():
            await anyio.sleep(0.005)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        on_send(message.get("body", b""))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/completions",
        "raw_path": b"/v1/completions",
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
    status = sent[0]["status"] if sent else 0
    return status, b"".join(message.get("body", b"") for message in sent)
