"""A job as it happens: what changed, and what its outputs said, in order and without gaps.

Knows no HTTP; `stream` and the OpenAI-compatible routes give it their forms.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass

from fastapi.concurrency import run_in_threadpool

from slm_jobs.errors import JobNotFound, StoreUnavailable
from slm_jobs.events import LOOK_AGAIN, JobEvents
from slm_jobs.schemas import Job, JobStatus, Output, Piece
from slm_jobs.store import JobStore

_PACE = 0.05  # seconds between two looks
_AWAY_SECONDS = 90.0  # browsers do not come back to a stream that answers with 503
_AWAY_PACE = 0.5
_WHOLE = "end"  # the offset in the id of text that was not streamed


@dataclass(frozen=True, slots=True)
class StatusChanged:
    status: JobStatus
    attempt: int


@dataclass(frozen=True, slots=True)
class TextAdded:
    """`id` is `<output>:<its tokens so far>`: give it as `after` to go on behind it."""

    index: int
    text: str
    id: str


@dataclass(frozen=True, slots=True)
class Restarted:
    """All text so far is void: the job runs again on a worker whose text differs."""


@dataclass(frozen=True, slots=True)
class Ended:
    job: Job


JobEvent = StatusChanged | TextAdded | Restarted | Ended


async def follow(
    store: JobStore, events: JobEvents, job_id: str, after: str | None = None
) -> AsyncGenerator[JobEvent]:
    """Ends with `Ended`; or without, when the job is deleted meanwhile.

    Rides out a Redis that is away for up to 90 s. Raises StoreUnavailable.
    """
    reader = _Reader(after)
    seen: StatusChanged | None = None
    away_since = math.inf
    async with events.watch(job_id) as watch:
        while True:
            looked = time.monotonic()
            try:  # the job first: the worker writes all text before the end
                job = await run_in_threadpool(store.get, job_id)
                entries = await run_in_threadpool(store.read_stream, job_id, reader.position)
            except JobNotFound:
                return
            except StoreUnavailable:
                away_since = min(away_since, looked)
                if looked - away_since > _AWAY_SECONDS:
                    raise
                await asyncio.sleep(_AWAY_PACE)
                continue
            away_since = math.inf
            status = StatusChanged(job.status, job.attempt)
            if status != seen and not job.status.is_terminal:
                seen = status
                yield status
            for event in reader.read(entries):
                yield event
            if job.status.is_terminal:
                for event in reader.rest(job.outputs):
                    yield event
                yield Ended(job)
                return
            await asyncio.sleep(max(0.0, _PACE - (time.monotonic() - looked)))
            await watch.wait(LOOK_AGAIN)


class _Reader:
    """Turns entries of a stream into events; skips those up to the one that ends with `after`."""

    def __init__(self, after: str | None) -> None:
        self.position = 0
        self._after = after
        self._skipping = after is not None
        self._text: defaultdict[int, str] = defaultdict(str)  # of each output, told or skipped

    def read(self, entries: list[Piece | None]) -> Iterator[TextAdded | Restarted]:
        if not entries:
            return
        self.position += len(entries)
        told: list[TextAdded | Restarted] = []
        for entry in entries:
            if entry is None:
                self._text.clear()
                if not self._skipping:
                    told.append(Restarted())
                continue
            self._text[entry.output] += entry.text
            event = TextAdded(entry.output, entry.text, f"{entry.output}:{entry.end}")
            if self._skipping:
                self._skipping = event.id != self._after
            else:
                told.append(event)
        yield from _merged(told)

    def rest(self, outputs: list[Output]) -> Iterator[TextAdded | Restarted]:
        """What an ended job's outputs hold beyond the stream; everything, if there was none."""
        skipped = self._told_whole()
        unknown_place = self._skipping and skipped < 0
        if unknown_place or not all(o.text.startswith(self._text[o.index]) for o in outputs):
            yield Restarted()  # tell all of it, from the beginning
            self._text.clear()
        for output in outputs:
            text = output.text[len(self._text[output.index]) :]
            if text and output.index > skipped:
                yield TextAdded(output.index, text, f"{output.index}:{_WHOLE}")

    def _told_whole(self) -> int:
        """The last output whose end the client has, in a job that was not streamed; -1: none."""
        output, _, offset = (self._after or "").partition(":")
        if not self._skipping or offset != _WHOLE or not output.isdecimal():
            return -1
        return int(output)


def _merged(events: list[TextAdded | Restarted]) -> Iterator[TextAdded | Restarted]:
    """Neighbours of one output become one event."""
    held: TextAdded | None = None
    for event in events:
        if isinstance(event, TextAdded) and held and held.index == event.index:
            held = TextAdded(held.index, held.text + event.text, event.id)
            continue
        if held:
            yield held
        held = event if isinstance(event, TextAdded) else None
        if isinstance(event, Restarted):
            yield event
    if held:
        yield held
