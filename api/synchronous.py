"""Calls that answer with the text itself: a job whose life is bound to that of the call.

`/v1/completions` and `/generate` are such calls. Knows no form of answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Annotated, Any, Self

from fastapi import Header
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from api.desk import Desk
from api.idempotency import IDEMPOTENCY_KEY_SCHEMA, idempotency_of
from api.limits import admission_headers
from api.problems import Problem
from slm_jobs.admission import Admission
from slm_jobs.api_keys import KeyProof
from slm_jobs.errors import JobNotFound, StoreUnavailable
from slm_jobs.schemas import Job, JobRequest, JobStatus

IdempotencyKey = Annotated[
    str | None,
    Header(
        description="Makes it safe to send the request again: within a day, the same key and body "
        "give the text of the same job, which goes on if the client goes away.",
        json_schema_extra=IDEMPOTENCY_KEY_SCHEMA,
    ),
]

# OpenAI's clients repeat a call that ended with 5xx, unless told that it would end so again.
_FINAL = {"x-should-retry": "false"}

_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # seconds between attempts to cancel an abandoned job
_cancelling: set[asyncio.Task[None]] = set()  # an event loop does not keep its tasks alive

log = logging.getLogger(__name__)


class Call:
    """One job and the call that waits for it.

    A client that goes away cancels the job, unless the call had an Idempotency-Key: then it may
    have lost the connection only, and will ask for the same job again.
    """

    def __init__(self, desk: Desk, admission: Admission, *, repeatable: bool) -> None:
        self.job = admission.job
        self.headers = admission_headers(admission)
        self._desk = desk
        self._repeatable = repeatable

    @classmethod
    def begin(
        cls,
        desk: Desk,
        request: JobRequest,
        prompts: Sequence[str | list[int]],
        caller: KeyProof,
        http: Request,
        data: Any,
    ) -> Self:
        """Submits the job that `data`, the body, asks for; `prompts` stand for the request's own.

        Blocks. Raises what `Desk.submit` raises.
        """
        idempotency = idempotency_of(http, data)
        admission = desk.submit(
            request,
            caller,
            request_id=http.state.request_id,
            idempotency=idempotency,
            prompts=prompts,
        )
        return cls(desk, admission, repeatable=idempotency is not None)

    async def succeeded(self, http: Request) -> Job:
        """The job with its outputs, as soon as it has succeeded.

        One that takes longer than the setting `sync_timeout_seconds` is cancelled. Raises Problem
        `timeout`, `generation_failed` or `store_unavailable`, and ClientDisconnect. A call that
        may be repeated finds its job again, so there a lost Redis is only StoreUnavailable.
        """
        seconds = self._desk.settings.sync_timeout_seconds
        try:
            job = await self._desk.ended(self.job.id, seconds, http)
            in_time = job.status.is_terminal
            if not in_time:
                job = await run_in_threadpool(self._desk.store.cancel, job.id)
        except ClientDisconnect:
            await self.abandon()
            raise
        except JobNotFound:
            detail = f"Job {self.job.id} was deleted."
            raise self._final(Problem("generation_failed", detail)) from None
        except StoreUnavailable as error:
            if self._repeatable:
                raise
            log.warning("%s", error, extra={"request_id": http.state.request_id})
            await self.abandon()
            detail = f"Redis went away before job {self.job.id} ended; the job is given up."
            raise self._final(Problem("store_unavailable", detail)) from None
        if job.status is JobStatus.SUCCEEDED:  # it may have ended just before it was cancelled
            return job
        if in_time:
            raise self._final(failure(job))
        detail = f"Job {job.id} did not end within {seconds:g} s; it was cancelled."
        raise self._final(Problem("timeout", detail))

    async def abandon(self) -> None:
        """Cancels the job, unless the call may be repeated: nobody will read what it makes.

        Where Redis is away, that goes on in the background for half a minute.
        """
        if self._repeatable or await self._is_cancelled():
            return
        task = asyncio.create_task(self._cancel_later())
        _cancelling.add(task)
        task.add_done_callback(_cancelling.discard)

    async def _cancel_later(self) -> None:
        for pause in _PAUSES:
            await asyncio.sleep(pause)
            if await self._is_cancelled():
                return
        log.error("job %s was abandoned, and could not be cancelled", self.job.id)

    async def _is_cancelled(self) -> bool:
        try:
            await run_in_threadpool(self._desk.store.cancel, self.job.id)
        except StoreUnavailable as error:
            log.info("job %s was abandoned, and is not cancelled yet: %s", self.job.id, error)
            return False
        except JobNotFound:
            pass
        return True

    def _final(self, problem: Problem) -> Problem:
        """With what the call's answers have in common. Sent again, it would make another job."""
        problem.headers |= self.headers | _FINAL
        problem.fields["job_id"] = self.job.id
        return problem


def failure(job: Job) -> Problem:
    """Why an ended job has no text to answer with."""
    if job.error is None:
        return Problem("generation_failed", f"Job {job.id} ended as {job.status}.")
    detail = f"Job {job.id} failed with {job.error.code}: {job.error.message}"
    return Problem("generation_failed", detail, error=job.error.model_dump())
