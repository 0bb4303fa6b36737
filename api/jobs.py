"""`/jobs`: take a job, and tell how it stands. Knows neither its life nor where it waits."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response

from api.admission import admit
from api.body import json_bytes, parse
from api.documentation import JOB_BODY, JOB_EXAMPLES, TAKEN, job_examples, problems
from slm_core.tokenizer import Tokenizer
from slm_jobs.errors import JobNotFound, StoreUnavailable
from slm_jobs.manifest import Manifest
from slm_jobs.schemas import Job, JobRequest
from slm_jobs.store import JobStore, new_job_id

# An id of any other form is nobody's, and must not reach a Redis key.
_JOB_ID = re.compile(r"job_[0-9A-Za-z]{1,60}")


def router(store: JobStore, manifest: Manifest, tokenizer: Tokenizer) -> APIRouter:
    routes = APIRouter(tags=["jobs"])

    @routes.post(
        "/jobs",
        status_code=202,
        summary="Take a job",
        response_description="Taken: the job waits for a worker.",
        openapi_extra={"requestBody": JOB_BODY},
        responses={
            202: TAKEN,
            **problems(
                "malformed_json",
                "body_too_large",
                "unsupported_media_type",
                "invalid_request",
                "unknown_model",
                "prompt_too_long",
                "store_unavailable",
            ),
        },
    )
    def create_job(
        body: Annotated[bytes, Depends(json_bytes)], request: Request, response: Response
    ) -> Job:
        """Checks the request and queues it. Nothing is taken unless all of it is right.

        Poll the address in `Location` until `status` is `succeeded`, `failed`, `cancelled` or
        `expired`.
        """
        wanted = parse(JobRequest, body)
        model = admit(wanted, manifest, tokenizer)
        job = _create(store, wanted, model.name)
        root = request.scope.get("root_path", "").rstrip("/")  # where a proxy has put us
        response.headers["Location"] = f"{root}/jobs/{job.id}"
        return job

    @routes.get(
        "/jobs/{id}",
        summary="Read a job",
        response_description="The job as it stands now.",
        responses={
            200: {"content": job_examples(*JOB_EXAMPLES)},
            **problems("job_not_found", "store_unavailable"),
        },
    )
    def get_job(id: Annotated[str, Path(description="As `POST /jobs` returned it.")]) -> Job:  # noqa: A002
        """A job's record stays for a day after it ended, unless the service is set otherwise."""
        if not _JOB_ID.fullmatch(id):
            raise JobNotFound(id)
        return store.get(id)

    return routes


def _create(store: JobStore, request: JobRequest, model: str) -> Job:
    """A lost reply does not tell whether the job was taken. The id makes asking again safe: it
    cannot make two jobs."""
    job_id = new_job_id()
    try:
        return store.create(request, model=model, job_id=job_id)
    except StoreUnavailable:
        return store.create(request, model=model, job_id=job_id)
