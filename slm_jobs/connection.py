"""How we reach Redis, and which of its errors mean "not now"."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis import BlockingConnectionPool, Redis, exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from slm_jobs.errors import StoreUnavailable
from slm_jobs.settings import Settings

_NOT_NOW = (
    exceptions.ConnectionError,  # BusyLoadingError is one, too
    exceptions.TimeoutError,
    exceptions.OutOfMemoryError,
    exceptions.ReadOnlyError,
)
# Replies of a Redis that is full, cannot persist, is a replica, or is stuck in a script. Before
# Redis 7 they arrive inside the text of a script's error, after a dash.
_REFUSAL = re.compile(r"(?:^|\s-)(OOM|READONLY|MISCONF|NOREPLICAS|MASTERDOWN|LOADING|BUSY) ")


def connect(settings: Settings, *, max_connections: int) -> Redis:
    """A client that waits `redis_timeout_seconds` at most: for a connection, and for each reply.

    It repeats no command: a claim whose reply was lost and that is sent again claims twice.
    """
    timeout = settings.redis_timeout_seconds
    pool = BlockingConnectionPool.from_url(
        settings.redis_url,
        max_connections=max_connections,
        timeout=timeout,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
    )
    return Redis.from_pool(pool)


def execute_raw(redis: Redis, *command: str | int | bytes) -> Any:
    """What a command returns, with texts as bytes."""
    return redis.execute_command(*command, NEVER_DECODE=True)  # type: ignore[no-untyped-call]


@contextmanager
def store_errors() -> Iterator[None]:
    """Turns what Redis cannot do now into StoreUnavailable. What is our own bug stays visible."""
    try:
        yield
    except _NOT_NOW as error:
        raise StoreUnavailable(f"Redis does not serve us: {error}") from error
    except exceptions.ResponseError as error:
        if not _REFUSAL.search(str(error)):
            raise
        raise StoreUnavailable(f"Redis refuses: {error}") from error
