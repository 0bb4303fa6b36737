"""A job's text as it comes: server-sent events, read across broken connections. Knows no screen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import httpx
from httpx_sse import EventSource, ServerSentEvent

from slm_client.errors import ApiError, ServiceUnreachable
from slm_client.job import Job
from slm_client.transport import COME_AGAIN, Connection, Patience


@dataclass(frozen=True, slots=True)
class StatusEvent:
    """The job has a new status. May be repeated."""

    status: str
    attempt: int


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """The next piece of the text of output `index`."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class RestartEvent:
    """The text so far is void; all of it comes anew."""


@dataclass(frozen=True, slots=True)
class DoneEvent:
    """The job has ended; the last event."""

    job: Job


StreamEvent: TypeAlias = StatusEvent | TokenEvent | RestartEvent | DoneEvent


def events(connection: Connection, path: str) -> Iterator[StreamEvent]:
    """See `Client.stream`."""
    patience = Patience(connection.retry_for)
    last_id = ""
    while True:
        problem: ApiError | ServiceUnreachable
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if last_id:
            headers["Last-Event-ID"] = last_id
        try:
            with connection.open_stream(path, headers) as response:
                for sent in EventSource(response).iter_sse():
                    event = _read(sent, connection, response)
                    patience.renew()
                    if isinstance(event, TokenEvent):
                        last_id = sent.id
                    elif isinstance(event, RestartEvent):
                        last_id = ""  # it names a place in a text that is void
                    if event:
                        yield event
                    if isinstance(event, DoneEvent):
                        return
            problem = ServiceUnreachable(f"{connection.base_url} ended a stream before its job")
        except httpx.TransportError as error:
            problem = connection.unreachable(error)
        except ApiError as error:
            if error.status not in COME_AGAIN:
                raise
            problem = error
        patience.pause(problem)


def _read(
    sent: ServerSentEvent, connection: Connection, response: httpx.Response
) -> StreamEvent | None:
    """None for an event of a later version. Raises ApiError if it cannot be read."""
    try:
        match sent.event:
            case "status":
                return StatusEvent(sent.json()["status"], sent.json()["attempt"])
            case "token":
                return TokenEvent(sent.json()["index"], sent.json()["text"])
            case "restart":
                return RestartEvent()
            case "done":
                return DoneEvent(Job.from_json(sent.json()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise connection.api_error(response) from None
    return None
