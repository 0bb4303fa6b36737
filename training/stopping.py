"""SIGTERM, Ctrl-C and the end of the terminal ask a run to stop; a second one ends it at once."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Any, Self

_ECHO = 2.0  # seconds in which a doubled signal comes again


class Interrupted(Exception):
    """The work at hand was given up, because the run is to stop."""


class Stop:
    """Within it, `signal` is the first signal that came, or None.

    Where signals come `doubled`, one that follows at once is the same one again.
    """

    def __init__(self, *, doubled: bool = False) -> None:
        self.signal: int | None = None
        self._doubled = doubled
        self._came = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup does, and "&" in a script
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises Interrupted once a signal has come."""
        if self.signal is not None:
            raise Interrupted

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._came = number, time.monotonic()
        elif not (self._doubled and time.monotonic() - self._came < _ECHO):
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
