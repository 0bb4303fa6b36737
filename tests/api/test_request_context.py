"""What becomes of a request whose client, or whose handler, breaks off."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import pytest
from anyio import BrokenResourceError
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from api.request_context import RequestContext


def run(error: Exception, sent: Sequence[Message] = ()) -> list[Message]:
    """What is sent when the app sends `sent` and raises `error`."""
    answered: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in sent:
            await send(message)
        raise error

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        answered.append(message)

    scope = {"type": "http", "method": "GET", "path": "/jobs/x/stream", "headers": []}
    asyncio.run(RequestContext(app)(scope, receive, send))
    return answered


START: Message = {"type": "http.response.start", "status": 200, "headers": []}


@pytest.mark.parametrize(
    "error",
    [
        ClientDisconnect(),
        ExceptionGroup("as FastAPI's server-sent events raise it", [BrokenResourceError()]),
        ExceptionGroup("nested", [ExceptionGroup("", [BrokenResourceError()]), ClientDisconnect()]),
    ],
)
def test_a_client_that_goes_away_is_no_fault(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert [message["type"] for message in run(error, [START])] == [START["type"]]
    [record] = caplog.records
    assert (record.levelno, "499" in record.getMessage()) == (logging.INFO, True)


@pytest.mark.parametrize(
    "error", [ValueError(), ExceptionGroup("", [BrokenResourceError(), ValueError()])]
)
def test_anything_else_is_one(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    assert run(error)[0]["status"] == 500
    with pytest.raises(type(error)):  # too late for an answer
        run(error, [START])
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
