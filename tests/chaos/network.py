"""A network between each process and Redis, which can be spoilt: one loopback proxy for a process.

Bytes that are on their way are not lost when a silence ends: they arrive late, as after a real
partition. Knows nothing of Redis's protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from enum import StrEnum
from typing import Any

_SLOW_SECONDS = 0.2  # that each piece takes more


class Trouble(StrEnum):
    """What may be wrong between a process and Redis."""

    CUT = "cut"  # every connection breaks; new ones work
    AWAY = "away"  # every connection breaks, and so do new ones
    SLOW = "slow"  # everything comes late
    SILENT = "silent"  # connections stay open, nothing comes through
    DEAF = "deaf"  # commands arrive; instead of a reply the connection breaks


class Link:
    """The way of one process to the Redis on `redis_port`. `Network` makes it."""

    def __init__(self, redis_port: int) -> None:
        self.port = 0
        self._redis_port = redis_port
        self.trouble: Trouble | None = None
        self._healed = asyncio.Event()
        self._healed.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks)

    async def spoil(self, trouble: Trouble, seconds: float) -> None:
        """Returns when it is over."""
        if trouble in (Trouble.CUT, Trouble.AWAY):
            for task in list(self._tasks):
                task.cancel()
        if trouble is Trouble.CUT:
            return
        self.trouble = trouble
        self._healed.clear()
        await asyncio.sleep(seconds)
        self.trouble = None
        self._healed.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        both = [writer]
        with contextlib.suppress(OSError, asyncio.CancelledError):
            if self.trouble is not Trouble.AWAY:
                there, back = await asyncio.open_connection("127.0.0.1", self._redis_port)
                both.append(back)
                async with asyncio.TaskGroup() as pumps:
                    pumps.create_task(self._pump(reader, back, both, replies=False))
                    pumps.create_task(self._pump(there, writer, both, replies=True))
        for each in both:
            each.transport.abort()
        self._tasks.discard(task)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        both: list[asyncio.StreamWriter],
        *,
        replies: bool,
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(65_536):
                if self.trouble is Trouble.SLOW:
                    await asyncio.sleep(_SLOW_SECONDS)
                while self.trouble is Trouble.SILENT:
                    await self._healed.wait()
                if replies and self.trouble is Trouble.DEAF:
                    break
                writer.write(piece)
                await writer.drain()
        if replies:  # nobody will answer any more
            for each in both:
                each.transport.abort()
        elif writer.can_write_eof():
            with contextlib.suppress(OSError):
                writer.write_eof()


class Network:
    """All links, in a thread of their own. Use it as a context manager."""

    def __init__(self) -> None:
        self._links: list[Link] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network")

    def link(self, redis_port: int) -> Link:
        async def make() -> Link:
            link = Link(redis_port)
            await link.open()
            return link

        link: Link = self._call(make()).result(10)
        self._links.append(link)
        return link

    def spoil(self, link: Link, trouble: Trouble, seconds: float) -> None:
        """Returns when it is over."""
        self._call(link.spoil(trouble, seconds)).result(seconds + 60)

    def _call(self, call: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(call, self._loop)

    def __enter__(self) -> Network:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for link in self._links:
            self._call(link.close()).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
