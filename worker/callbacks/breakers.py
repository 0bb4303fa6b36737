"""Which receivers are left alone for a while, because nothing gets through to them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger(__name__)

FAILURES = 5  # in a row, until a breaker opens
FIRST_PROBE_SECONDS = (
    1.0  # from then to the first attempt; doubled each time, as it may only restart
)
PROBE_SECONDS = 30.0  # at most
_MOST = 1_024  # lanes that are remembered, as claims name them; the oldest are forgotten first


@dataclass
class _Breaker:
    failures: int = 0
    probe_at: float = 0.0
    pause: float = FIRST_PROBE_SECONDS

    @property
    def open(self) -> bool:
        return self.failures >= FAILURES


class Breakers:
    """A circuit breaker for each lane whose last attempt failed, so that dead receivers hold no
    slots. An open one lets a single attempt through from time to time; an answer closes it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._breakers: dict[str, _Breaker] = {}

    def note(self, lane: str, *, reached: bool) -> None:
        """Whether an attempt in the lane got an answer, and soon."""
        if reached:
            if (ended := self._breakers.pop(lane, None)) and ended.open:
                log.info("%s answers again", _host(lane))
            return
        breaker = self._breakers.setdefault(lane, _Breaker())
        breaker.failures += 1
        if breaker.failures == FAILURES:
            log.warning("%s cannot be reached; one attempt at a time, less and less", _host(lane))
        if breaker.open and breaker.probe_at <= self._clock():
            breaker.probe_at = self._clock() + breaker.pause
            breaker.pause = min(2 * breaker.pause, PROBE_SECONDS)
        if len(self._breakers) > _MOST:
            del self._breakers[next(iter(self._breakers))]

    def limits(self) -> dict[str, int]:
        """How many attempts may be under way in the lanes whose breaker is open: none, or one."""
        now = self._clock()
        return {
            lane: int(breaker.probe_at <= now)
            for lane, breaker in self._breakers.items()
            if breaker.open
        }

    def next_probe(self) -> float | None:
        """Seconds until a lane may be tried that may not yet; None if there is none."""
        now = self._clock()
        waits = (breaker.probe_at - now for breaker in self._breakers.values())
        return min((wait for wait in waits if wait > 0), default=None)


def _host(lane: str) -> str:
    return lane.rpartition(" ")[2]
