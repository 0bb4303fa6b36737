"""Waiting for the end of what runs in the service. Knows no HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from slm_client.errors import JobTimeout
from slm_client.transport import growing

_LONGEST_WAIT = 30  # seconds that one request waits; proxies often cut at 60


class Ending(Protocol):
    """A job or a batch."""

    @property
    def id(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def ended(self) -> bool: ...


T = TypeVar("T", bound=Ending)


def whole(seconds: float) -> int:
    """What may be asked of the service."""
    return max(0, int(min(seconds, _LONGEST_WAIT)))


def until_ended(get: Callable[[int], T], deadline: float, timeout: float) -> T:
    """What `get` gives once that has ended; `get` takes the seconds to ask the service to wait.
    Raises JobTimeout at `deadline`, which came `timeout` seconds after somebody asked."""
    for pause in growing(0.05, 1.0):
        began = time.monotonic()
        asked = whole(deadline - began)
        found = get(asked)
        if found.ended:
            return found
        now = time.monotonic()
        if now >= deadline:
            raise JobTimeout(f"{found.id} is still {found.status} after {timeout:g} s")
        if now - began < asked or not asked:  # the service did not wait
            time.sleep(min(pause, deadline - now))
    raise AssertionError("growing() does not end")
