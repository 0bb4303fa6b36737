"""How a bulk run is going: a bar on a terminal, elsewhere a plain line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from slm_client.batch import Batch

_PLAIN_LINE_EVERY = 5.0  # seconds
_MEGA = 1_000_000


class Display(Protocol):
    def show(self, done: int, total: int, line: str) -> None: ...


@contextmanager
def display(console: Console) -> Iterator[Display]:
    """Shows what `show` is told. Leaves nothing behind on a terminal."""
    if not console.is_terminal:
        yield _PlainLines(console)
        return
    columns = (BarColumn(bar_width=30), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, refresh_per_second=4) as progress:
        yield _Bar(progress)


def line(batch: Batch) -> str:
    """How it stands."""
    counts = batch.counts
    parts = [f"{counts.done:,}/{counts.total:,} rows"]
    if batch.rows_per_second:
        parts.append(f"{batch.rows_per_second:,.1f} rows/s")
    if batch.tokens_per_second:
        parts.append(f"{batch.tokens_per_second:,.0f} tokens/s")
    if batch.estimated_seconds is not None:
        parts.append(f"{clock(batch.estimated_seconds)} left")
    return " · ".join([*parts, *_unsuccessful(batch)])


def summary(batch: Batch) -> str:
    """What came of it."""
    counts, tokens = batch.counts, batch.usage.completion_tokens
    said = ", ".join([f"{counts.succeeded:,} rows succeeded", *_unsuccessful(batch)])
    if not batch.seconds:
        return f"{said}; {tokens:,} tokens"
    rate = f"{tokens / batch.seconds:,.0f} tokens/s"
    return f"{said}; {tokens:,} tokens in {duration(batch.seconds)}: {rate}"


def uploaded(sent: int, total: int) -> str:
    """How an upload stands."""
    if sent == total:
        return "uploaded; the service checks the last rows"
    return f"uploading {sent / _MEGA:,.1f} of {total / _MEGA:,.1f} MB"


def duration(seconds: float) -> str:
    """Such as 20 ms, 4.2 s or 1:02:03."""
    if seconds < 1:
        return f"{seconds * 1000:,.0f} ms"
    return f"{seconds:.1f} s" if seconds < 60 else clock(seconds)


def clock(seconds: float) -> str:
    """Such as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _unsuccessful(batch: Batch) -> list[str]:
    counts = batch.counts
    more = (("cancelled", counts.cancelled), ("expired", counts.expired))
    return [f"{counts.failed:,} failed", *(f"{number:,} {name}" for name, number in more if number)]


class _Bar:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def show(self, done: int, total: int, line: str) -> None:
        self._progress.update(self._task, completed=done, total=total, description=line)


class _PlainLines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = time.monotonic()

    def show(self, done: int, total: int, line: str) -> None:  # noqa: ARG002
        if time.monotonic() - self._last >= _PLAIN_LINE_EVERY:
            self._last = time.monotonic()
            self._console.print(line, markup=False, soft_wrap=True)
