"""python -m tests.worker.dying_callbacks STEP: a callback process that dies there, by SIGKILL."""

from __future__ import annotations

import inspect
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from slm_jobs.callbacks import CallbackStore
from worker.callbacks.__main__ import main
from worker.callbacks.courier import Courier
from worker.callbacks.delivery import Sender
from worker.callbacks.network import GuardedNetwork

_PLACES: dict[str, tuple[type, str]] = {
    "claim": (CallbackStore, "claim"),
    "attempt": (Sender, "attempt"),
    "connect": (GuardedNetwork, "connect_tcp"),
    "post": (Sender, "_post"),
    "deliver": (Courier, "_deliver"),
    "settle": (CallbackStore, "settle"),
}
STEPS = [f"{when} {place}" for place in _PLACES for when in ("before", "after")]


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _dying(call: Callable[..., Any], when: str) -> Callable[..., Any]:
    def sync(*args: Any, **options: Any) -> Any:
        if when == "before":
            _die()
        result = call(*args, **options)
        if when == "after" and (call.__name__ != "claim" or result[0]):
            _die()
        return result

    async def coroutine(*args: Any, **options: Any) -> Any:
        if when == "before":
            _die()
        result = await call(*args, **options)
        _die()
        return result

    return coroutine if inspect.iscoroutinefunction(call) else sync


if __name__ == "__main__":
    when, place = sys.argv.pop().split()
    owner, name = _PLACES[place]
    setattr(owner, name, _dying(getattr(owner, name), when))
    main()
