"""A running job as OpenAI's stream of chunks. Knows no HTTP but the form of an event."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import anyio
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.follow import Ended, JobEvent, Restarted, TextAdded
from api.openai.errors import error_body
from api.openai.schemas import Choice, Completion
from api.problems import PROBLEMS, Problem
from api.synchronous import Call, failure
from slm_jobs.errors import StoreUnavailable
from slm_jobs.schemas import Job, JobStatus

log = logging.getLogger(__name__)

SILENCE = 15.0  # seconds; after it a comment tells proxies that the connection is in use
_DONE = b"data: [DONE]\n\n"
_COMMENT = b": waiting\n\n"


class TextStream(StreamingResponse):
    """Sends what `chunks` makes of a job's events. Abandons the call if it stops before the job
    is known to have ended."""

    media_type = "text/event-stream"

    def __init__(self, call: Call, chunks: Chunks, events: AsyncGenerator[JobEvent]) -> None:
        headers = {"X-Accel-Buffering": "no", **call.headers}
        self._lines = _kept_alive(chunks.of(events))
        super().__init__(self._lines, headers=headers)
        self._call = call
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._lines.aclose()
                if not self._chunks.ended:
                    await self._call.abandon()


class Chunks:
    """Turns the events of one job into server-sent events.

    `before` holds, for each choice, what stands before its text. The texts of a choice's chunks
    join to that and the text of its output.
    """

    def __init__(self, job: Job, before: Sequence[str], *, include_usage: bool) -> None:
        self.ended = False  # whether the job is known to have ended
        self._job = job
        self._before = before
        self._include_usage = include_usage

    async def of(self, events: AsyncGenerator[JobEvent]) -> AsyncGenerator[bytes, None]:
        """Ends with `[DONE]`, or with an error where what was sent cannot be made right."""
        for index, text in enumerate(self._before):
            if text:
                yield self._chunk([Choice(index=index, text=text, finish_reason=None)])
        try:
            async with aclosing(events), aclosing(self._told(events)) as lines:
                async for line in lines:
                    yield line
        except StoreUnavailable as error:
            log.warning("the stream of job %s breaks off: %s", self._job.id, error)
            yield _error("store_unavailable", PROBLEMS["store_unavailable"].example)

    async def _told(self, events: AsyncGenerator[JobEvent]) -> AsyncGenerator[bytes, None]:
        begun = False
        async for event in events:
            if isinstance(event, TextAdded):
                begun = True
                choice = Choice(index=event.index, text=event.text, finish_reason=None)
                yield self._chunk([choice])
            elif isinstance(event, Restarted) and begun:
                detail = "started anew on a worker of another kind, with another text. Ask again."
                yield _error("generation_failed", f"Job {self._job.id} {detail}")
                return
            elif isinstance(event, Ended):
                self.ended = True
                for line in self._last(event.job):
                    yield line
                return
        yield _error("generation_failed", f"Job {self._job.id} was deleted.")

    def _last(self, job: Job) -> list[bytes]:
        if job.status is not JobStatus.SUCCEEDED:
            return [_event(error_body(failure(job)))]
        self._job = job
        lines = [
            self._chunk([Choice(index=output.index, text="", finish_reason=output.finish_reason)])
            for output in job.outputs
        ]
        if self._include_usage:
            lines.append(self._chunk([]))
        return [*lines, _DONE]

    def _chunk(self, choices: list[Choice]) -> bytes:
        chunk = completion(self._job, choices)
        if not choices:
            chunk.usage = self._job.usage
        return _event(chunk.model_dump(exclude=None if self._include_usage else {"usage"}))


def completion(job: Job, choices: list[Choice]) -> Completion:
    """What every answer and every chunk for this job has in common."""
    return Completion(
        id="cmpl-" + job.id,
        created=int(job.created_at.timestamp()),
        model=job.model,
        choices=choices,
        system_fingerprint=job.fingerprint,
    )


async def _kept_alive(lines: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The lines, and comments between them. Each line is awaited in a task of its own: neither a
    comment nor a client that goes away breaks into what follows the job. It closes the lines,
    however it stops."""
    following: asyncio.Future[bytes | None] | None = None
    try:
        while True:
            following = following or asyncio.ensure_future(anext(lines, None))
            done, _ = await asyncio.wait((following,), timeout=SILENCE)
            if not done:
                yield _COMMENT
                continue
            line, following = following.result(), None
            if line is None:
                return
            yield line
    finally:
        with anyio.CancelScope(shield=True):
            if following:
                following.cancel()
                await asyncio.wait((following,))  # until then the lines are in use
            await lines.aclose()


def _error(code: str, detail: str) -> bytes:
    return _event(error_body(Problem(code, detail)))


def _event(document: dict[str, Any]) -> bytes:
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + text.encode("utf-8", "replace") + b"\n\n"
