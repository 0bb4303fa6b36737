"""What clients ask of a worker, at once: a channel of Redis. Nothing here is certain to arrive; the
heartbeat tells the same again."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from slm_jobs import keys
from slm_jobs.connection import store_errors

if TYPE_CHECKING:
    from redis import Redis


class Commands:
    """Jobs that clients cancel. Use it as a context manager, in one thread.

    Raises StoreUnavailable; then enter a new one.
    """

    def __init__(self, redis: Redis, worker_id: str) -> None:
        self._channel = redis.pubsub()  # type: ignore[no-untyped-call]
        self._name = keys.COMMANDS + worker_id

    def __enter__(self) -> Self:
        with store_errors():
            self._channel.subscribe(self._name)
            self._channel.get_message(timeout=None)  # Redis says that it listens
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._channel.close()

    def get(self, timeout: float) -> list[tuple[str, int]]:
        """Jobs and their attempts, after `timeout` seconds at most; none if none came."""
        with store_errors():
            message = self._channel.get_message(timeout=timeout)
        if not message or message["type"] != "message":
            return []
        job_id, attempt = message["data"].split(" ")
        return [(job_id, int(attempt))]
