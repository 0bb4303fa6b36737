"""Receivers of callbacks on loopback, down to the byte, and deliveries to send there."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from slm_jobs.callback_schemas import DueDelivery

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 - the specification's example
LOOPBACK = ("127.0.0.1",)


@dataclass
class Request:
    """What came in."""

    line: str
    headers: dict[str, str]
    body: bytes


Answer = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Receiver:
    port: int
    requests: list[Request] = field(default_factory=list)
    connections: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?token=hidden"


def says(response: bytes | str) -> Answer:
    """Always this, and then it hangs up."""
    text = response.encode() if isinstance(response, str) else response

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(text)
        await writer.drain()

    return answer


def status(code: int, *headers: str, body: str = "") -> Answer:
    lines = [f"HTTP/1.1 {code} Whatever", *headers, f"content-length: {len(body)}", "", body]
    return says("\r\n".join(lines))


def sequence(*answers: Answer) -> Answer:
    """One after the other; the last one for ever."""
    left = list(answers)

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(request, writer)

    return answer


async def hangs(request: Request, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def resets(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


@asynccontextmanager
async def receiving(
    answer: Answer, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Receiver]:
    tasks: set[asyncio.Task[Any]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        tasks.add(task)
        receiver.connections += 1
        try:
            request = await _read(reader)
            receiver.requests.append(request)
            await answer(request, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            tasks.discard(task)

    server = await asyncio.start_server(connected, host, port, ssl=tls)
    receiver = Receiver(server.sockets[0].getsockname()[1])
    try:
        yield receiver
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *rest = head.strip().split("\r\n")
    headers = {name.lower(): value for name, value in (each.split(": ", 1) for each in rest)}
    return Request(line, headers, await reader.readexactly(int(headers["content-length"])))


def due_delivery(url: str, **changes: Any) -> DueDelivery:
    """A delivery that has been claimed."""
    made = DueDelivery(
        id="job_01ARZ3NDEKTSV4RRFFQ69G5FAV-succeeded",
        type="job.succeeded",
        url=url,
        payload=json.dumps({"type": "job.succeeded", "data": {"text": "Füchse 🦊"}}).encode(),
        tries=0,
        claim=1,
        lane="k 127.0.0.1:80",
        secrets=(SECRET,),
        allowed=LOOPBACK,
    )
    return made._replace(**changes)
