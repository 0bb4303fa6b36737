"""Results and errors of a batch as JSON lines, also while it runs. Knows no routes."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal

from fastapi.concurrency import run_in_threadpool

from api.batches.pages import PageSize
from api.desk import Desk
from slm_jobs.batch_schemas import Batch, ResultLine
from slm_jobs.errors import BatchNotFound, StoreUnavailable
from slm_jobs.events import LOOK_AGAIN

List = Literal["results", "failures"]

_LINE_ENDS = ("\x85", "\u2028", "\u2029")  # that JSON does not escape by itself
_BLANK_SECONDS = 15.0  # after which a blank line shows that the connection lives
_AWAY_SECONDS = 60.0
_PACE = 0.05  # seconds between two looks
_KEY_SECONDS = 1.0  # after which an open answer's key is looked at again


def to_json(line: ResultLine) -> dict[str, Any]:
    """A row that has ended, as its line says it."""
    document: dict[str, Any] = {"seq": line.seq, "custom_id": line.custom_id}
    if line.line is not None:
        document["line"] = line.line
    if line.prompts:
        document["prompt"] = line.prompts[0] if len(line.prompts) == 1 else line.prompts
    if line.error:
        document["error"] = line.error.model_dump()
    match line.outputs:
        case []:
            pass
        case [output] if len(line.prompts) == 1:
            document |= {"text": output.text, "finish_reason": output.finish_reason}
        case outputs:
            document["outputs"] = [output.model_dump() for output in outputs]
    if line.usage:
        document["usage"] = line.usage.model_dump()
    document["finished_at"] = line.finished_at.isoformat().replace("+00:00", "Z")
    return document


class Lines:
    """The lines of one answer, from number `after` + 1 on, `limit` of them at most.

    `still_valid` is asked now and then whether the reader may go on.
    """

    def __init__(
        self,
        desk: Desk,
        batch: Batch,
        of: List,
        *,
        after: int,
        limit: int | None,
        still_valid: Callable[[], Awaitable[bool]],
    ) -> None:
        self._desk = desk
        batches = desk.store.batches
        self._batch_id = batch.id
        self._read = batches.results if of == "results" else batches.failures
        self._size = PageSize(batch)
        self._seq = after
        self._left = limit
        self._still_valid = still_valid
        self._checked = self._sent = time.monotonic()

    async def now(self) -> AsyncIterator[bytes]:
        """Those that there are. Raises StoreUnavailable."""
        while page := await self._page():
            yield page

    async def until_end(self) -> AsyncIterator[bytes]:
        """Those too that come, until the batch has ended or is deleted; blank ones in long pauses.

        Rides out a Redis that is away for a minute. Raises StoreUnavailable.
        """
        away_since = math.inf
        async with self._desk.watch(self._batch_id) as watch:
            while True:
                try:  # the batch first: when it has ended no line comes any more
                    batch = await run_in_threadpool(self._desk.store.batches.get, self._batch_id)
                    async for page in self.now():
                        yield page
                    if batch.status.is_terminal or self._left == 0 or not await self._may_go_on():
                        return
                    away_since = math.inf
                except BatchNotFound:
                    return
                except StoreUnavailable:
                    away_since = min(away_since, time.monotonic())
                    if time.monotonic() - away_since > _AWAY_SECONDS:
                        raise
                if time.monotonic() - self._sent >= _BLANK_SECONDS:
                    self._sent = time.monotonic()
                    yield b"\n"
                await asyncio.sleep(_PACE)
                await watch.wait(LOOK_AGAIN)

    async def _page(self) -> bytes:
        """The next lines; empty if there are none."""
        size = self._size.rows if self._left is None else min(self._left, self._size.rows)
        if not size or not await self._may_go_on():
            return b""
        return await run_in_threadpool(self._next, size)

    def _next(self, size: int) -> bytes:
        found = self._read(self._batch_id, self._seq, size)
        if not found:
            return b""
        self._seq = found[-1].seq
        self._size.learn(len(found), sum(len(line.outputs) for line in found))
        self._left = None if self._left is None else self._left - len(found)
        self._sent = time.monotonic()
        return "".join(_json_line(to_json(line)) for line in found).encode()

    async def _may_go_on(self) -> bool:
        if time.monotonic() - self._checked > _KEY_SECONDS:
            if not await self._still_valid():
                return False
            self._checked = time.monotonic()
        return True


def _json_line(document: dict[str, Any]) -> str:
    """One line also for readers who, as Python's `splitlines`, take U+2028 and others for ends."""
    text = json.dumps(document, ensure_ascii=False)
    for end in _LINE_ENDS:
        text = text.replace(end, f"\\u{ord(end):04x}")
    return text + "\n"
