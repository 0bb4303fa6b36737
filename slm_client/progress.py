"""How a bulk run is going: a bar on a terminal, elsewhere a plain line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from slm_client.bulk import RowResult

_PLAIN_LINE_EVERY = 5.0  # seconds


@dataclass
class Tally:
    """Counts of one run. Rates are means since it began, per second."""

    total: int
    done: int = 0
    failed: int = 0
    tokens: int = 0
    began: float = field(default_factory=time.monotonic)

    def add(self, result: RowResult) -> None:
        self.done += 1
        self.failed += result.error is not None
        self.tokens += result.completion_tokens

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self.began, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """None while nothing is done."""
        return self.seconds / self.done * (self.total - self.done) if self.done else None

    def line(self) -> str:
        left = "?" if self.seconds_left is None else _clock(self.seconds_left)
        return (
            f"{self.done}/{self.total} rows · {self.done / self.seconds:.1f} rows/s · "
            f"{self.tokens / self.seconds:,.0f} tokens/s · {left} left · {self.failed} failed"
        )

    def summary(self) -> str:
        return (
            f"{self.done - self.failed} rows succeeded, {self.failed} failed; {self.tokens:,} "
            f"tokens in {self.seconds:.1f} s: {self.tokens / self.seconds:,.0f} tokens/s"
        )


class Display(Protocol):
    def show(self, tally: Tally) -> None: ...


@contextmanager
def display(console: Console, tally: Tally) -> Iterator[Display]:
    """Shows `tally` from now on; call `show` after each change."""
    if not console.is_terminal:
        yield _PlainLines(console)
        return
    columns = (BarColumn(bar_width=30), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, refresh_per_second=4) as progress:
        bar = _Bar(progress, tally)
        bar.show(tally)
        yield bar


class _Bar:
    def __init__(self, progress: Progress, tally: Tally) -> None:
        self._progress = progress
        self._task = progress.add_task(tally.line(), total=tally.total)

    def show(self, tally: Tally) -> None:
        self._progress.update(self._task, completed=tally.done, description=tally.line())


class _PlainLines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = time.monotonic()

    def show(self, tally: Tally) -> None:
        if time.monotonic() - self._last >= _PLAIN_LINE_EVERY:
            self._last = time.monotonic()
            self._console.print(tally.line(), markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    """Such as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
