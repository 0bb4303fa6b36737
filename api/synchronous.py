"""Calls that answer with the text itself: a job whose life is bound to that of the call.

`/v1/completions` and `/generate` are such calls. Knows no form of answer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Annotated, Self

from fastapi import Header
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from api.desk import Desk
from api.idempotency import IDEMPOTENCY_KEY_SCHEMA, idempotency_of
from api.jobs import REPLAYED
from api.limits import quota_headers
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

log = logging.getLogger(__name__)


class Call:
    """One job and the call that waits for it.

    A client that goes away cancels the job, unless the call had an Idempotency-Key: then it may
    have lost the connection only, and will ask for the same job again.
    """

    def __init__(self, desk: Desk, admission: Admission, *, repeatable: bool) -> None:
        self.job = admission.job
        self.headers = quota_headers(admission.quotas)
        if admission.replayed:
            self.headers[REPLAYED] = "true"
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
        body: bytes,
    ) -> Self:
        """Submits the job that `body` was read to ask for; `prompts` stand for the request's own.

        Blocks. Raises what `Desk.submit` raises.
        """
        idempotency = idempotency_of(http, body)
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
        `timeout` or `generation_failed`, and ClientDisconnect.
        """
        seconds = self._desk.settings.sync_timeout_seconds
        try:
            job = await self._desk.ended(self.job.id, seconds, http)
        except ClientDisconnect:
            await self.abandon()
            raise
        if not job.status.is_terminal:
            job = await run_in_threadpool(self._desk.cancel, job.id)
            if job.status is not JobStatus.SUCCEEDED:  # it may have ended just now
                detail = f"Job {job.id} did not end within {seconds:g} s; it was cancelled."
                raise Problem("timeout", detail, headers=_FINAL, job_id=job.id)
        if job.status is not JobStatus.SUCCEEDED:
            raise failure(job)
        return job

    async def abandon(self) -> None:
        """The client is gone: nobody will read what the job makes."""
        if self._repeatable:
            return
        try:
            await run_in_threadpool(self._desk.cancel, self.job.id)
        except (JobNotFound, StoreUnavailable) as error:
            log.warning("job %s was left by its client: %s", self.job.id, error)


def failure(job: Job) -> Problem:
    """Why an ended job has no text to answer with."""
    if job.error is None:
        detail = f"Job {job.id} ended as {job.status}."
        return Problem("generation_failed", detail, headers=_FINAL, job_id=job.id)
    detail = f"Job {job.id} failed with {job.error.code}: {job.error.message}"
    return Problem(
        "generation_failed",
        detail,
        headers=_FINAL,
        job_id=job.id,
        error=job.error.model_dump(),
    )
