"""Sends the same request over many connections that stay open; a process of its own.

python -m benchmarks.load HOST PORT SECONDS CONNECTIONS < request

The request comes on standard input, as its bytes; several, with zero bytes between them, are dealt
out to the connections. One line of JSON tells how it went.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import subprocess
import sys
import time
from functools import partial
from typing import Any, cast

import uvloop

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


def request(method: str, path: str, headers: dict[str, str], body: bytes = b"") -> bytes:
    """An HTTP/1.1 request as it goes over the wire."""
    headers = {"Host": "127.0.0.1", "Content-Length": str(len(body)), **headers}
    lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def load(port: int, raw: bytes, *, seconds: float, connections: int) -> dict[str, Any]:
    """Requests per second, and quantiles of their times in ms. Raises RuntimeError for any answer
    but 200 and 202."""
    command = [sys.executable, "-m", "benchmarks.load", "127.0.0.1", str(port)]
    command += [str(seconds), str(connections)]
    told = subprocess.run(
        command, input=raw, capture_output=True, check=False, timeout=seconds + 60
    )
    if told.returncode:
        raise RuntimeError(told.stderr.decode(errors="replace")[-2000:])
    figures: dict[str, Any] = json.loads(told.stdout)
    return figures


class _Client(asyncio.Protocol):
    """One connection: sends the request again as soon as it is answered."""

    def __init__(self, raw: bytes, until: float, took: list[float]) -> None:
        self.raw, self.until, self.took = raw, until, took
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._received = b""
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self.raw)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not end or len(body) < int(length[1] if length else 0):
            return
        now = time.perf_counter()
        if head[9:12] not in (b"200", b"202"):
            self.done.set_exception(RuntimeError(self._received[:500].decode(errors="replace")))
            self._transport.close()
            return
        self.took.append(now - self._sent)
        self._received = b""
        if now < self.until:
            self._send()
        else:
            self._transport.close()
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or RuntimeError("the service closed the connection"))


async def _run(host: str, port: int, seconds: float, connections: int, raw: bytes) -> list[float]:
    took: list[float] = []
    loop, until = asyncio.get_running_loop(), time.perf_counter() + seconds
    clients = [
        (await loop.create_connection(partial(_Client, each, until, took), host, port))[1]
        for each in itertools.islice(itertools.cycle(raw.split(b"\0")), connections)
    ]
    await asyncio.gather(*(client.done for client in clients))
    return took


def main() -> None:
    host, port, seconds, connections = sys.argv[1:]
    raw = sys.stdin.buffer.read()
    run = _run(host, int(port), float(seconds), int(connections), raw)
    started = time.perf_counter()
    took = sorted(uvloop.run(run))
    elapsed = time.perf_counter() - started

    def quantile(share: float) -> float:
        return round(took[min(int(len(took) * share), len(took) - 1)] * 1000, 3)

    figures = {"per_second": round(len(took) / elapsed, 1), "requests": len(took)}
    print(json.dumps({**figures, "p50_ms": quantile(0.5), "p99_ms": quantile(0.99)}))


if __name__ == "__main__":
    main()
