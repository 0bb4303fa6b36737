"""Wakes those who wait for a job, or for callbacks, the moment something changes. For asyncio.

Knows not what has changed: who is woken reads the record again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

from redis import exceptions

from slm_jobs import keys
from slm_jobs.connection import connect_asyncio
from slm_jobs.settings import Settings

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.client import PubSub

log = logging.getLogger(__name__)

LOOK_AGAIN = 5.0  # seconds: waiters are woken at least so often, whatever was lost
_PAUSE = 0.5  # seconds, before a lost connection is tried again


class _Channel:
    """Those who watch one job."""

    def __init__(self) -> None:
        self.heard = asyncio.Event()  # Redis has confirmed that we listen
        self.watchers: set[asyncio.Event] = set()


class JobEvents:
    """All watchers of a process share one connection, which is opened for the first of them.

    One task talks to it: who watches may be cancelled at any place, and leaves nothing behind.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._channels: dict[str, _Channel] = {}
        self._unsettled: dict[str, None] = {}  # channels that came, or are left, in order
        self._something = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> JobEvents:
        return cls(connect_asyncio(settings))

    @asynccontextmanager
    async def watch(self, job_id: str) -> AsyncIterator[Watch]:
        """What happens to the job after this was entered wakes the watch.

        Without Redis it is entered too, after a moment: a watch then wakes by the clock alone.
        """
        if not self._task:
            self._task = asyncio.create_task(self._run(), name="job-events")
        name = keys.EVENTS + job_id
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = _Channel()
            self._settle(name)
        changed = asyncio.Event()
        channel.watchers.add(changed)
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(channel.heard.wait(), 1.0)
                changed.clear()  # set by the confirmation itself
            yield Watch(changed)
        finally:
            channel.watchers.discard(changed)
            if not channel.watchers:
                self._settle(name)

    async def close(self) -> None:
        if self._task:
            await _end(self._task)
        await self._redis.aclose()

    async def _run(self) -> None:
        while True:
            pubsub = self._redis.pubsub()
            try:
                await self._listen(pubsub)
            except (exceptions.RedisError, OSError) as error:
                log.warning("no events from Redis: %s", error)
            finally:
                await pubsub.aclose()  # type: ignore[no-untyped-call]
            self._wake_all()
            await asyncio.sleep(_PAUSE)
            for name in self._channels:
                self._settle(name)

    async def _listen(self, pubsub: PubSub) -> None:
        """Hears, and subscribes, in turn: the connection is for one task at a time."""
        wanted = asyncio.create_task(self._something.wait())
        hearing: asyncio.Task[dict[str, str] | None] | None = None
        line: _Line | None = None
        try:
            while True:
                line = (line or _Line(pubsub)) if pubsub.subscribed else None
                if line and not hearing:
                    hearing = asyncio.create_task(line.hear())
                tasks = {wanted, hearing} if hearing else {wanted}
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                self._hear(await _stopped(hearing))
                hearing = None
                if wanted.done():
                    await self._subscribe(pubsub)
                    wanted = asyncio.create_task(self._something.wait())
        finally:
            wanted.cancel()
            if hearing:
                hearing.cancel()

    def _settle(self, name: str) -> None:
        self._unsettled[name] = None
        self._something.set()

    async def _subscribe(self, pubsub: PubSub) -> None:
        """Brings what Redis tells us in step with who watches."""
        self._something.clear()
        names = [name for name in self._unsettled if name in self._channels]
        self._unsettled.clear()
        left = [name for name in names if not self._channels[name].watchers]
        for name in left:
            del self._channels[name]
        if came := [name for name in names if name not in left]:
            await pubsub.subscribe(*came)
        if left:
            await pubsub.unsubscribe(*left)

    def _hear(self, message: dict[str, str] | None) -> None:
        channel = self._channels.get(message["channel"]) if message else None
        if channel and message:
            if message["type"] == "subscribe":  # what came before it may have been missed
                channel.heard.set()
            for changed in channel.watchers:
                changed.set()

    def _wake_all(self) -> None:
        for channel in self._channels.values():
            for changed in channel.watchers:
                changed.set()


class Watch:
    """One waiter's view of a job."""

    def __init__(self, changed: asyncio.Event) -> None:
        self._changed = changed

    async def wait(self, seconds: float) -> None:
        """Returns when something has changed since the last call, or the time is over."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), min(max(seconds, 0), LOOK_AGAIN))
        self._changed.clear()


class DueEvents:
    """Calls `heard` when a callback has become due, and whenever that may have been missed: as
    long as it is entered, which it may be without Redis, too."""

    def __init__(self, settings: Settings, heard: Callable[[], None]) -> None:
        self._redis = connect_asyncio(settings)
        self._heard = heard

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="due-events")
        return self

    async def __aexit__(self, *_: object) -> None:
        await _end(self._task)
        await self._redis.aclose()

    async def _run(self) -> None:
        while True:
            pubsub = self._redis.pubsub()
            try:
                await pubsub.subscribe(keys.CALLBACKS_DUE)
                line = _Line(pubsub)
                while True:
                    if await line.hear():  # also that it is subscribed
                        self._heard()
            except (exceptions.RedisError, OSError) as error:
                log.debug("no events from Redis: %s", error)  # whose calls fail says so
            finally:
                await pubsub.aclose()  # type: ignore[no-untyped-call]
            await asyncio.sleep(_PAUSE)


class _Line:
    """What a subscribed connection hears. One that says nothing for long is asked whether it lives:
    a Redis that hangs, or whose machine has vanished, closes no connection."""

    def __init__(self, pubsub: PubSub) -> None:
        self._pubsub = pubsub
        self._heard = asyncio.get_running_loop().time()
        self._asked = False

    async def hear(self) -> dict[str, str] | None:
        """The next message, or None after a while. Raises a RedisError."""
        clock = asyncio.get_running_loop().time
        silence = clock() - self._heard
        if silence > 2 * LOOK_AGAIN:
            raise exceptions.TimeoutError("it does not answer")
        if silence > LOOK_AGAIN and not self._asked:
            self._asked = True
            await self._pubsub.ping()
        message: dict[str, str] | None = await self._pubsub.get_message(timeout=LOOK_AGAIN)
        if message:
            self._heard, self._asked = clock(), False
        return message


async def _stopped(hearing: asyncio.Task[dict[str, str] | None] | None) -> dict[str, str] | None:
    """What it heard, if it did; else it stops, and what arrives stays for the next."""
    if hearing is None:
        return None
    await _end(hearing)
    return None if hearing.cancelled() else hearing.result()


async def _end(task: asyncio.Task[Any]) -> None:
    """Cancels it until it has ended: `asyncio.wait_for`, which redis-py uses, may swallow a cancel
    (Python 3.11)."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)
