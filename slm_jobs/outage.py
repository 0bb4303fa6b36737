"""What a janitor does about a Redis that was away."""

from __future__ import annotations

import time
from collections.abc import Callable


class Outage:
    """How long to let leases be, which nobody could extend meanwhile.

    Leases are extended three times in their length, so whoever lives had two thirds of one left
    when Redis went away. If it was away for a third at most, all will be extended before they end.
    After a longer outage some may have ended: then nobody takes any back for the length of one.
    """

    def __init__(self, lease_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._reached = clock()

    def over(self) -> None:
        """Redis has answered."""
        self._reached = self._clock()

    def pause(self) -> float:
        """Seconds to wait before the next sweep, after one that Redis did not answer."""
        away = self._clock() - self._reached
        return self._lease_seconds if away > self._lease_seconds / 3 else 0.0
