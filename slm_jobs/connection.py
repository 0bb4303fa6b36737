"""How we reach Redis, and which of its errors mean "not now"."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis import BlockingConnectionPool, ConnectionPool, Redis, asyncio, exceptions
from redis.asyncio.connection import ConnectionPool as AsyncConnectionPool
from redis.asyncio.connection import SSLConnection as AsyncSSLConnection
from redis.asyncio.connection import UnixDomainSocketConnection as AsyncUnixConnection
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.asyncio.sentinel import SentinelConnectionPool as AsyncSentinelConnectionPool
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.connection import SSLConnection, UnixDomainSocketConnection
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool

from slm_jobs.errors import StoreUnavailable
from slm_jobs.redis_url import RedisUrl
from slm_jobs.settings import Settings

_NOT_NOW = (
    exceptions.ConnectionError,  # BusyLoadingError is one, too
    exceptions.TimeoutError,
    exceptions.OutOfMemoryError,
    exceptions.ReadOnlyError,
    exceptions.MasterDownError,
)
# Replies of a Redis that is full, cannot persist, is a replica, or is stuck in a script. Before
# Redis 7 they arrive inside the text of a script's error, after a dash.
_REFUSAL = re.compile(r"(?:^|\s-)(OOM|READONLY|MISCONF|NOREPLICAS|MASTERDOWN|LOADING|BUSY) ")
_PAUSE = 0.5  # seconds between two attempts to get an answer of a Redis that fell silent

# A machine that vanished is noticed within 25 s, also by who only listens.
KEEPALIVE = {
    getattr(socket, name): value
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
}


def connect(settings: Settings, *, max_connections: int) -> Redis:
    """A client that waits `redis_timeout_seconds` for each reply, and half of it for a connection.

    It repeats no command: a claim whose reply was lost and that is sent again claims twice. While
    Redis is silent it waits for one caller at a time, and refuses the others at once.
    """
    address, timeout = settings.redis_address, settings.redis_timeout_seconds
    options = {
        **_options(address, timeout),
        "retry": Retry(NoBackoff(), 0),
        "max_connections": max_connections,
        "timeout": timeout / 2,
    }
    if address.sentinels:
        manager = Sentinel(
            address.sentinels,
            sentinel_kwargs={**sentinel_options(address, timeout), "retry": options["retry"]},
        )
        options["ssl"] = address.tls is not None
        pool: ConnectionPool = _SentinelPool(address.master, manager, **options)
    else:
        if address.path:
            options["connection_class"] = UnixDomainSocketConnection
        elif address.tls is not None:
            options["connection_class"] = SSLConnection
        pool = BlockingConnectionPool(**options)
    return _Redis.from_pool(pool)


def connect_asyncio(settings: Settings) -> asyncio.Redis:
    """A client for those who listen. It repeats no command either."""
    address, timeout = settings.redis_address, settings.redis_timeout_seconds
    options = {**_options(address, timeout), "retry": AsyncRetry(NoBackoff(), 0)}
    if address.sentinels:
        manager = AsyncSentinel(
            address.sentinels,
            sentinel_kwargs={**sentinel_options(address, timeout), "retry": options["retry"]},
        )
        options["ssl"] = address.tls is not None
        pool: AsyncConnectionPool = _AsyncSentinelPool(address.master, manager, **options)
    else:
        if address.path:
            options["connection_class"] = AsyncUnixConnection
        elif address.tls is not None:
            options["connection_class"] = AsyncSSLConnection
        pool = AsyncConnectionPool(**options)
    return asyncio.Redis.from_pool(pool)


def _options(address: RedisUrl, timeout: float) -> dict[str, Any]:
    """What connections to Redis itself have in common."""
    options: dict[str, Any] = {
        "db": address.db,
        **address.credentials(),
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout / 2 if address.sentinels else timeout,
        "decode_responses": True,
    }
    if address.path:
        return {**options, "path": address.path}
    if not address.sentinels:
        options |= {"host": address.host, "port": address.port}
    keepalive = {"socket_keepalive": True, "socket_keepalive_options": KEEPALIVE}
    return options | keepalive | (address.tls or {})


def sentinel_options(address: RedisUrl, timeout: float) -> dict[str, Any]:
    """For redis-py's connections to the Sentinels, which are asked one after the other: all of
    them together get half of the time."""
    share = timeout / 2 / len(address.sentinels)
    options = {"socket_timeout": share, "socket_connect_timeout": share, "socket_keepalive": True}
    tls = {} if address.tls is None else {"ssl": True, **address.tls}
    return options | tls | address.sentinel_credentials()


class _SentinelPool(SentinelConnectionPool, BlockingConnectionPool):
    """Connections to whatever the Sentinels call the primary, as they are made."""

    def owns_connection(self, connection: Any) -> int:
        """What leads to a former primary is disconnected, and may be used again: replaced, it
        would be remembered all the same."""
        if not super().owns_connection(connection):
            connection.disconnect()
        return ConnectionPool.owns_connection(self, connection)


class _AsyncSentinelPool(AsyncSentinelConnectionPool):
    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:
            await self.sentinel_manager.aclose()


class _Silence:
    """Whether Redis has left somebody without a reply: then one caller at a time tries again, and
    the others, whose threads are needed, are refused at once."""

    def __init__(self) -> None:
        self._until = 0.0  # refused until then; 0: nobody is
        self._lock = threading.Lock()

    @contextmanager
    def noted(self, timeout: float) -> Iterator[None]:
        """Around a call that may take `timeout` seconds."""
        if self._until:
            self._queue(timeout)
        try:
            yield
        except (exceptions.TimeoutError, MasterNotFoundError):
            self._until = time.monotonic() + _PAUSE
            raise
        except BaseException:
            self._until = 0.0  # it says something
            raise
        self._until = 0.0

    def _queue(self, timeout: float) -> None:
        with self._lock:
            now = time.monotonic()
            if now < self._until:
                raise exceptions.ConnectionError("it did not answer a moment ago")
            if self._until:
                self._until = now + 2 * timeout  # this is the one that tries
