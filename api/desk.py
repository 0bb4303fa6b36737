"""Where every route that takes, watches or ends jobs works: the store, and what it needs around it.

Knows no route. Methods are safe for threads; those that block say so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from api import admission
from api.callback_targets import CallbackTargets, linked
from api.follow import JobEvent, follow
from slm_core.tokenizer import Tokenizer
from slm_jobs.admission import Admission, Idempotency
from slm_jobs.api_keys import KeyProof
from slm_jobs.batch_schemas import Batch
from slm_jobs.callback_schemas import CallbackTarget
from slm_jobs.errors import StoreUnavailable
from slm_jobs.events import JobEvents, Watch
from slm_jobs.manifest import Manifest
from slm_jobs.records import new_job_id
from slm_jobs.schemas import GenerationParams, Job, JobRequest, JobSpec
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore

_QUICK_SECONDS = 0.5
_PACE = 0.05  # seconds between two looks at a batch, whose rows all wake
_PARAMS = tuple(GenerationParams.model_fields)

W = TypeVar("W", Job, Batch)


class Desk:
    def __init__(
        self,
        settings: Settings,
        manifest: Manifest,
        store: JobStore,
        events: JobEvents,
        targets: CallbackTargets,
    ) -> None:
        self.settings = settings
        self.manifest = manifest
        self.store = store
        self.targets = targets
        self._events = events
        self._tokenizer = Tokenizer()

    def count_tokens(self, prompt: str | list[int]) -> int:
        return len(self._tokenizer.encode(prompt)) if isinstance(prompt, str) else len(prompt)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids)

    def submit(
        self,
        request: JobRequest,
        caller: KeyProof,
        *,
        request_id: str,
        idempotency: Idempotency | None = None,
        prompts: Sequence[str | list[int]] | None = None,
        callback: CallbackTarget | None = None,
    ) -> Admission:
        """Checks a request, and queues it if its key's limits allow it. Blocks.

        `prompts`, texts or token ids, stand for the request's own; `callback` is what `targets`
        made of it. Raises Problem, a kind of Refused, and StoreUnavailable; then nothing was taken
        or charged.
        """
        model = admission.resolve(request.model, self.manifest)
        own = admission.prompts_of(request, model) if prompts is None else prompts
        texts: list[str | list[int]] = list(own)
        lengths = [self.count_tokens(text) for text in texts]
        admission.check_length(request, model, lengths)
        job_id = new_job_id()
        spec = JobSpec.model_construct(  # everything has been checked already
            **{name: getattr(request, name) for name in _PARAMS},
            model=model.name,
            prompts=texts,
            priority=request.priority,
            queue_timeout=request.queue_timeout,
            run_timeout=request.run_timeout,
            stream=request.stream,
            metadata=request.metadata,
            request_id=request_id,
            callback=linked(callback, job_id),
        )
        tokens = sum(lengths) + len(texts) * request.n * request.max_tokens

        def create() -> Admission:
            return self.store.create(
                spec, job_id=job_id, owner=caller, tokens=tokens, idempotency=idempotency
            )

        started = time.monotonic()
        try:
            return create()
        except StoreUnavailable:  # it may have been taken; the id makes asking again safe
            if time.monotonic() - started > _QUICK_SECONDS:  # no answer, rather than a lost one
                raise
            return create()

    def follow(self, job_id: str, after: str | None = None) -> AsyncGenerator[JobEvent]:
        """See `follow.follow`."""
        return follow(self.store, self._events, job_id, after)

    def watch(self, work_id: str) -> AbstractAsyncContextManager[Watch]:
        """See `JobEvents.watch`."""
        return self._events.watch(work_id)

    async def ended(self, job_id: str, seconds: float, http: Request) -> Job:
        """The job as soon as it has ended, or as it stands after `seconds`.

        Rides out a Redis that is away for shorter. Raises ClientDisconnect when the client goes
        away, JobNotFound, and StoreUnavailable at the end of the time.
        """
        return await self._ended(job_id, self.store.get, seconds, http)

    async def batch_ended(self, batch_id: str, seconds: float, http: Request) -> Batch:
        """As `ended`, for a batch. Raises BatchNotFound."""
        return await self._ended(batch_id, self.store.batches.get, seconds, http, pace=_PACE)

    async def _ended(
        self, work_id: str, read: Callable[[str], W], seconds: float, http: Request, pace: float = 0
    ) -> W:
        until = time.monotonic() + seconds
        tasks = [asyncio.create_task(_disconnected(http))]
        try:
            async with self.watch(work_id) as watch:
                while True:
                    found, away = None, None
                    try:
                        found = await run_in_threadpool(read, work_id)
                    except StoreUnavailable as error:
                        away = error
                    left = until - time.monotonic()
                    if found and (found.status.is_terminal or left <= 0):
                        return found
                    if away and left <= 0:
                        raise away
                    tasks[1:] = [asyncio.create_task(watch.wait(left))]
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    if tasks[0].done():
                        raise ClientDisconnect
                    pause = _QUICK_SECONDS if away else pace  # being woken may mean little
                    await asyncio.sleep(min(left, pause))
        finally:
            for task in tasks:
                task.cancel()


async def _disconnected(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
