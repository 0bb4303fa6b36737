"""`/jobs`: take, read, wait for, list, cancel and delete jobs. Knows nothing of their life."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import AwareDatetime, BaseModel, BeforeValidator, Field, WithJsonSchema

from api.addresses import absolute
from api.auth import Caller, Viewer
from api.body import check, json_bytes, load
from api.desk import Desk
from api.documentation import (
    JOB_BODY,
    JOB_EXAMPLES,
    TAKEN,
    TAKING_PROBLEMS,
    job_examples,
    problems,
)
from api.idempotency import IDEMPOTENCY_KEY_SCHEMA, idempotency_of
from api.limits import admission_headers
from api.links import JOB_LINKS
from api.problems import Problem
from slm_jobs.admission import Admission
from slm_jobs.callback_schemas import CallbackTarget
from slm_jobs.errors import JobNotFound
from slm_jobs.schemas import Job, JobRequest, JobStatus

MAX_WAIT_SECONDS = 60
# An id of any other form is nobody's, and must not reach a Redis key.
_JOB_ID = re.compile(r"job_[0-9A-Za-z]{1,60}")
_WAIT = re.compile(r"wait\s*=\s*\"?(\d{1,9})\"?")
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _check_time(given: str) -> str:
    """The framework would also take a number for seconds since 1970."""
    if not _RFC3339.fullmatch(given):
        raise ValueError("a time looks like 2026-01-31T09:00:00Z")
    return given


Time = Annotated[AwareDatetime, BeforeValidator(_check_time)]
JobId = Annotated[str, Path(alias="id", description="As `POST /jobs` returned it.")]


class JobPage(BaseModel):
    data: list[Job]
    next_cursor: str | None = Field(description="Send it as `cursor`; null on the last page.")


def preferred_wait(
    prefer: Annotated[
        Annotated[list[str], WithJsonSchema({"type": "string"})] | None,  # it may come in parts
        Header(description="`wait=N` waits up to N seconds, 60 at most, for the end (RFC 7240)."),
    ] = None,
) -> int:
    """Seconds; 0 if nothing, or nothing we know, is preferred."""
    for preference in ",".join(prefer or ()).split(","):
        if match := _WAIT.fullmatch(preference.strip()):
            return min(int(match[1]), MAX_WAIT_SECONDS)
    return 0


Wait = Annotated[int, Depends(preferred_wait)]


def check_job_id(job_id: str) -> None:
    """Raises JobNotFound for what is none."""
    if not _JOB_ID.fullmatch(job_id):
        raise JobNotFound(job_id)


def visible_job(request: Request, job_id: JobId, viewer: Viewer) -> Job:
    """The job, for its owner and for admins. Raises JobNotFound."""
    check_job_id(job_id)
    desk: Desk = request.app.state.desk
    return desk.store.get(job_id, viewer=viewer)


VisibleJob = Annotated[Job, Depends(visible_job)]


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(tags=["jobs"])

    @routes.post(
        "/jobs",
        status_code=202,
        summary="Take a job",
        response_description="Taken: the job waits for a worker.",
        openapi_extra={"requestBody": JOB_BODY},
        responses={
            200: {
                "description": "It ended within the preferred wait.",
                "model": Job,
                "content": job_examples("succeeded"),
                "links": JOB_LINKS,
            },
            202: TAKEN,
            **problems(
                *TAKING_PROBLEMS,
                "unknown_model",
                "unknown_template",
                "prompt_too_long",
                "callback_url_refused",
                "too_many_callbacks",
            ),
        },
    )
    async def create_job(
        caller: Caller,
        body: Annotated[bytes, Depends(json_bytes)],
        wait: Wait,
        request: Request,
        response: Response,
        idempotency_key: Annotated[  # noqa: ARG001 - documented here, read by idempotency_of
            str | None,
            Header(
                description="Makes it safe to send the request again: within a day, the same key "
                "and body give the same job, and nothing is charged twice.",
                json_schema_extra=IDEMPOTENCY_KEY_SCHEMA,
            ),
        ] = None,
    ) -> Job:
        """Checks the request and queues it. Nothing is taken or charged unless all of it is right.

        Poll the address in `Location` until `status` is `succeeded`, `failed`, `cancelled` or
        `expired`; or wait here with `Prefer: wait=N`; or be told at `callback_url`.
        """

        def begin() -> tuple[JobRequest, Any, Admission | None]:
            data = load(body)
            wanted = check(JobRequest, data)
            return wanted, data, take(wanted, data) if wanted.callback_url is None else None

        def take(
            wanted: JobRequest, data: Any, callback: CallbackTarget | None = None
        ) -> Admission:
            return desk.submit(
                wanted,
                caller,
                request_id=request.state.request_id,
                idempotency=idempotency_of(request, data),
                callback=callback,
            )

        wanted, data, taken = await run_in_threadpool(begin)
        if taken is None:  # a name that is looked up must not hold a thread
            callback = await desk.targets.checked(wanted, caller, absolute(request, "/jobs"))
            taken = await run_in_threadpool(take, wanted, data, callback)
        job = taken.job
        root = request.scope.get("root_path", "").rstrip("/")  # where a proxy has put us
        response.headers["Location"] = f"{root}/jobs/{job.id}"
        response.headers.update(admission_headers(taken))
        if wait:
            response.headers["Preference-Applied"] = f"wait={wait}"
            if not job.status.is_terminal:
                job = await desk.ended(job.id, wait, request)
            if job.status.is_terminal:
                response.status_code = 200
        return job

    @routes.get(
        "/jobs",
        summary="List your jobs",
        response_description="A page of them, the newest first.",
        responses={**problems("unauthorised", "forbidden", "invalid_request", "store_unavailable")},
    )
    def list_jobs(
        viewer: Viewer,
        status: Annotated[
            list[JobStatus] | None, Query(description="Only these; may be repeated.")
        ] = None,
        created_after: Annotated[Time | None, Query(description="RFC 3339.")] = None,
        created_before: Annotated[Time | None, Query(description="RFC 3339.")] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 50,
        cursor: Annotated[
            str | None, Query(pattern="^[0-9]{1,16}$", description="`next_cursor` of a page.")
        ] = None,
        key: Annotated[
            str | None,
            Query(pattern="^[a-z0-9]{10}$", description="Whose; for admin keys only."),
        ] = None,
    ) -> JobPage:
        """The jobs of your key. With `status`, a page may hold few jobs and yet not be the last:
        go on until `next_cursor` is null."""
        if key not in (None, viewer.id) and not viewer.admin:
            raise Problem("forbidden", "Only admin keys see the jobs of others.")
        jobs, following = desk.store.page(
            key or viewer.id,
            statuses=status or (),
            created_after=created_after,
            created_before=created_before,
            cursor=int(cursor) if cursor else None,
            limit=limit,
        )
        return JobPage(data=jobs, next_cursor=None if following is None else str(following))

    @routes.get(
        "/jobs/{id}",
        summary="Read a job",
        response_description="The job as it stands now.",
        responses={
            200: {"content": job_examples(*JOB_EXAMPLES)},
            **problems("unauthorised", "job_not_found", "invalid_request", "store_unavailable"),
        },
    )
    async def get_job(
        job: VisibleJob,
        request: Request,
        wait: Annotated[
            int, Query(ge=0, le=MAX_WAIT_SECONDS, description="Seconds to wait for its end.")
        ] = 0,
    ) -> Job:
        """A job's record stays for a day after it ended, unless the service is set otherwise."""
        if wait and not job.status.is_terminal:
            return await desk.ended(job.id, wait, request)
        return job

    @routes.post(
        "/jobs/{id}/cancel",
        summary="Cancel a job",
        response_description="The job as it stands; a running one ends at its next decode step.",
        responses={
            200: {"content": job_examples("succeeded")},
            **problems("unauthorised", "job_not_found", "store_unavailable"),
        },
    )
    def cancel_job(job: VisibleJob) -> Job:
        """A queued job ends at once, a running one with the text it has. One that has ended stays
        as it is, so it is safe to repeat."""
        return desk.store.cancel(job.id)

    @routes.delete(
        "/jobs/{id}",
        status_code=204,
        summary="Delete an ended job",
        response_description="Its record and its texts are gone.",
        responses={
            **problems("unauthorised", "job_not_found", "job_not_ended", "store_unavailable")
        },
    )
    def delete_job(job: JobId, viewer: Viewer) -> None:
        """Cancel a job that has not ended first. No more callbacks of it are sent; to stop them is
        possible also when they have outlived its record."""
        check_job_id(job)
        if not desk.store.callbacks.of(job, viewer=viewer):
            desk.store.get(job, viewer=viewer)
        desk.store.delete(job)

    return routes
