"""TLS in front of a Redis that speaks none, as managed services have it."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

PEM = Path(__file__).with_name("redis.pem")  # key and certificate, of 127.0.0.1 and localhost


class TlsProxy:
    """Its `port` leads to `target`, while `running`."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(PEM)

    @contextmanager
    def running(self) -> Iterator[TlsProxy]:
        ready = threading.Event()
        loop = asyncio.new_event_loop()
        over = asyncio.Event()
        thread = threading.Thread(target=loop.run_until_complete, args=(self._serve(ready, over),))
        thread.start()
        try:
            assert ready.wait(10)
            yield self
        finally:
            loop.call_soon_threadsafe(over.set)
            thread.join()
            loop.close()

    async def _serve(self, ready: threading.Event, over: asyncio.Event) -> None:
        tasks: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._connect(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            # one that is cancelled before it begins closes nothing itself
            task.add_done_callback(lambda _: writer.transport.abort())

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await over.wait()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.05)  # transports that were aborted close their sockets later

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with _closing(writer):
            await writer.start_tls(self._tls)
            redis_reader, redis_writer = await asyncio.open_connection("127.0.0.1", self.target)
            async with _closing(redis_writer):
                ways = (_pass(reader, redis_writer), _pass(redis_reader, writer))
                tasks = [asyncio.create_task(way) for way in ways]
                try:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for task in tasks:
                        task.cancel()


@asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Whatever fails, its socket is closed at the end; that is the client's affair."""
    with suppress(OSError):  # also what is no TLS
        try:
            yield
        finally:
            writer.transport.abort()
            await writer.wait_closed()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
