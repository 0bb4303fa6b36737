"""How we reach Redis, and which of its errors mean "not now"."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

from redis import BlockingConnectionPool, ConnectionPool, Redis, asyncio, connection, exceptions
from redis import sentinel as sentinels
from redis.asyncio import connection as async_connection
from redis.asyncio import sentinel as async_sentinels
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.retry import Retry

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
_REFUSAL = re.compile(
    r"(?:^|\s-)((?:OOM|READONLY|MISCONF|NOREPLICAS|MASTERDOWN|LOADING|BUSY) .*)", re.DOTALL
)
_PAUSE = 0.5  # seconds between two attempts to get an answer of a Redis that fell silent

# A machine that vanished is noticed within 25 s, also by who only listens.
KEEPALIVE: dict[str, Any] = {
    "socket_keepalive": True,
    "socket_keepalive_options": {
        getattr(socket, name): value
        for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
        if hasattr(socket, name)
    },
}


def connect(settings: Settings, *, max_connections: int) -> Redis:
    """A client that waits `redis_timeout_seconds` for a reply, and half of it for a connection.

    It repeats no command: a claim whose reply was lost and that is sent again claims twice. While
    Redis is silent one caller at a time waits for it; others are refused at once.
    """
    timeout = settings.redis_timeout_seconds
    pool = _pool(_SYNC, settings, max_connections=max_connections, timeout=timeout / 2)
    return _Redis.from_pool(pool)


def connect_asyncio(settings: Settings) -> asyncio.Redis:
    """A client for those who listen. It repeats no command either."""
    return asyncio.Redis.from_pool(_pool(_ASYNCIO, settings))


def sentinel_options(address: RedisUrl, timeout: float) -> dict[str, Any]:
    """Of redis-py's connections to the Sentinels, who are asked one after the other: all of them
    together get half of the time."""
    share = timeout / 2 / len(address.sentinels)
    options = {"socket_timeout": share, "socket_connect_timeout": share, **KEEPALIVE}
    tls = {} if address.tls is None else {"ssl": True, **address.tls}
    return options | tls | address.sentinel_credentials()


def execute_raw(redis: Redis, *command: str | int | bytes) -> Any:
    """What a command returns, with texts as bytes."""
    return redis.execute_command(*command, NEVER_DECODE=True)  # type: ignore[no-untyped-call]


@contextmanager
def store_errors() -> Iterator[None]:
    """Turns what Redis cannot do now into StoreUnavailable. What is our own bug stays visible."""
    try:
        yield
    except _NOT_NOW as error:
        raise StoreUnavailable(f"Redis does not serve us: {_said(error)}") from error
    except exceptions.ResponseError as error:
        if not (refusal := _REFUSAL.search(_said(error))):
            raise
        raise StoreUnavailable(f"Redis refuses: {refusal[1]}") from error


def _said(error: exceptions.RedisError) -> str:
    """What Redis said, without the command, which redis-py quotes where it was in a pipeline."""
    return str(error).rpartition(" of pipeline caused error: ")[2]


class _SentinelPool(sentinels.SentinelConnectionPool, BlockingConnectionPool):
    """Connections to whatever the Sentinels call the primary at the time."""

    def owns_connection(self, connection: Any) -> int:
        """What leads to a former primary is disconnected, and used again: a pool that drops it
        remembers it all the same, and would grow as long as there is no primary."""
        if not super().owns_connection(connection):  # type: ignore[no-untyped-call]
            connection.disconnect()
        return ConnectionPool.owns_connection(self, connection)


class _AsyncSentinelPool(async_sentinels.SentinelConnectionPool):
    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:  # at the end, then
            await self.sentinel_manager.aclose()


class _Library(NamedTuple):
    """What redis-py has twice."""

    retry: Any
    pool: Any
    tls_connection: Any
    unix_connection: Any
    sentinel: Any
    sentinel_pool: Any


_SYNC = _Library(
    Retry,
    BlockingConnectionPool,
    connection.SSLConnection,
    connection.UnixDomainSocketConnection,
    sentinels.Sentinel,
    _SentinelPool,
)
_ASYNCIO = _Library(
    AsyncRetry,
    async_connection.ConnectionPool,
    async_connection.SSLConnection,
    async_connection.UnixDomainSocketConnection,
    async_sentinels.Sentinel,
    _AsyncSentinelPool,
)


def _pool(library: _Library, settings: Settings, **options: Any) -> Any:
    address, timeout = settings.redis_address, settings.redis_timeout_seconds
    retry = library.retry(NoBackoff(), 0)
    options |= {
        "db": address.db,
        "decode_responses": True,
        "retry": retry,
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout / 2 if address.sentinels else timeout,
        **address.credentials(),
    }
    if address.path:
        options |= {"path": address.path, "connection_class": library.unix_connection}
        return library.pool(**options)
    options |= KEEPALIVE | (address.tls or {})
    if address.sentinels:
        asked = {**sentinel_options(address, timeout), "retry": retry}
        manager = library.sentinel(address.sentinels, sentinel_kwargs=asked)
        secure = address.tls is not None
        return library.sentinel_pool(address.master, manager, ssl=secure, **options)
    options |= {"host": address.host, "port": address.port}
    if address.tls is not None:
        options["connection_class"] = library.tls_connection
    return library.pool(**options)


class _Silence:
    """Whether Redis left somebody without a reply: then one caller at a time tries again, and the
    others, whose threads are needed, are refused at once."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._until = 0.0  # callers are refused; 0: nobody is
        self._lock = threading.Lock()

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Around a call."""
        if self._until:
            self._refuse_or_try()
        try:
            yield
        except (exceptions.TimeoutError, sentinels.MasterNotFoundError):
            self._until = time.monotonic() + _PAUSE
            raise
        except BaseException:
            self._until = 0.0  # it says something, or fails at once
            raise
        self._until = 0.0

    def _refuse_or_try(self) -> None:
        with self._lock:
            now = time.monotonic()
            if now < self._until:
                raise exceptions.ConnectionError("it did not answer a moment ago")
            self._until = now + 2 * self._timeout if self._until else 0.0


class _Redis(Redis):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._silence = _Silence(self.connection_pool.connection_kwargs["socket_timeout"])

    def execute_command(self, *args: Any, **options: Any) -> Any:
        with self.calling():
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        pipeline = _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipeline.calling = self.calling
        return pipeline

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Around all that waits for a reply.

        Connections to a Redis that has become a replica are given up: the address, or Sentinels,
        may lead to another by now. Before Redis 7 redis-py cannot tell that by a script's error.
        """
        try:
            with self._silence.noted():
                yield
        except exceptions.ResponseError as error:
            if isinstance(error, exceptions.ReadOnlyError) or "-READONLY " in str(error):
                self.connection_pool.disconnect(inuse_connections=False)
            raise


class _Pipeline(Pipeline):
    calling: Callable[[], AbstractContextManager[None]]

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        with self.calling():
            return super().execute(raise_on_error)
