"""What the store asks Redis about itself and its workers, once a second at most. Safe for threads:
two that ask at once cost one call too many, and nothing else."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from redis.exceptions import ResponseError

from slm_jobs.connection import store_errors
from slm_jobs.errors import StoreUnavailable
from slm_jobs.schemas import WorkerInfo

if TYPE_CHECKING:
    from redis import Redis

_FRESH_SECONDS = 1.0
FULL_SHARE = 0.9  # of Redis's memory: then no more jobs are taken


class Rates:
    """Tokens per second of each model, of all workers together."""

    def __init__(self, workers: Callable[[], Iterable[WorkerInfo]]) -> None:
        self._workers = workers
        self._asked = -math.inf
        self._rates: Counter[str] = Counter()

    def of(self, model: str) -> float:
        """0 while nobody has measured one."""
        if time.monotonic() - self._asked > _FRESH_SECONDS:
            self._asked = time.monotonic()
            with suppress(StoreUnavailable):  # an estimate is not worth an error
                rates: Counter[str] = Counter()
                for worker in self._workers():
                    rates.update(worker.tokens_per_second)
                self._rates = rates
        return self._rates[model]


class Memory:
    """Redis refuses to write when it is full; we stop before, so that what runs may end."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._asked = -math.inf
        self._used = self._most = 0

    def nearly_full(self) -> bool:
        used, most = self.use()
        return bool(most) and used > most * FULL_SHARE

    def use(self) -> tuple[int, int]:
        """Bytes that it uses, and that it may use; 0: there is no limit, or it may not be asked."""
        if time.monotonic() - self._asked > _FRESH_SECONDS:
            self._asked = time.monotonic()
            # it may be forbidden to ask; and if Redis is away, what asks for memory will tell
            with suppress(StoreUnavailable, ResponseError), store_errors():
                info = cast("dict[str, int]", self._redis.info("memory"))
                self._used, self._most = info.get("used_memory", 0), info.get("maxmemory", 0)
        return self._used, self._most
