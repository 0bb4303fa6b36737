"""`/admin/dead-letters`: jobs that failed, of all keys; for admin keys."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, RootModel, StringConstraints

from api.auth import Admin
from api.body import json_bytes, parse
from api.desk import Desk
from api.documentation import (
    BODY_PROBLEMS,
    JOB_EXAMPLES,
    TAKEN,
    json_body,
    named_examples,
    problems,
)
from api.jobs import check_job_id
from api.links import DEAD_LETTER_LINKS
from slm_jobs.errors import DeadLetterNotFound, JobNotFound
from slm_jobs.schemas import GenerationParams, Job

MOST_REDRIVEN = 100  # of one request
_DENIED = ("unauthorised", "forbidden", "store_unavailable")

DeadLetterId = Annotated[str, Path(alias="id", description="That of the job that failed.")]
_GivenId = Annotated[str, StringConstraints(max_length=64)]


class DeadLetterPage(BaseModel):
    data: list[Job]
    next_cursor: str | None = Field(description="Send it as `cursor`; null on the last page.")
    total: int = Field(description="Dead letters on all pages.")


class DeadLetterRequest(GenerationParams):
    """What runs again."""

    model: str
    prompts: list[str | list[int]] = Field(description="Texts, or token ids.")
    priority: int
    queue_timeout: float | None
    run_timeout: float | None
    stream: bool
    metadata: dict[str, str]
    request_id: str = Field(description="Of the request that made it, as logs have it.")


class DeadLetter(BaseModel):
    job: Job
    key: str = Field(description="The API key whose it is.")
    request: DeadLetterRequest = Field(description="Without its callback.")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RedriveThese(_Strict):
    ids: list[_GivenId] = Field(
        min_length=1, max_length=MOST_REDRIVEN, description="Of dead letters."
    )


def _check_true(value: bool) -> bool:
    if not value:
        raise ValueError("Input should be true")
    return value


class RedriveAll(_Strict):
    all: Annotated[bool, AfterValidator(_check_true)] = Field(  # Literal[True] would take a 1
        description="The oldest of all.", json_schema_extra={"const": True}
    )
    limit: int = Field(MOST_REDRIVEN, ge=1, le=MOST_REDRIVEN, description="How many at most.")


class Redrive(RootModel[RedriveThese | RedriveAll]):
    """The body of `POST /admin/dead-letters/redrive`."""


class Redriven(BaseModel):
    data: list[Job] = Field(description="The new jobs; `retry_of` tells of which dead letter.")
    not_found: list[str] = Field(description="Of the `ids`, those that are no dead letters.")
    left: int = Field(description="Dead letters that there are now.")


_FAILED = JOB_EXAMPLES["failed"]["value"]
_AGAIN = {
    **JOB_EXAMPLES["queued"]["value"],
    "id": "job_01K9ZX9M2D4Z8R6W1Y3H5N7KQB",
    "queue": None,
    "retry_of": _FAILED["id"],
}
EXAMPLES: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "dead_letters": (DeadLetterPage, {"data": [_FAILED], "next_cursor": None, "total": 1}),
    "dead_letter": (
        DeadLetter,
        {
            "job": _FAILED,
            "key": "x7k2m9q4ab",
            "request": {
                "max_tokens": 200,
                "temperature": 0.8,
                "top_k": 40,
                "top_p": 1.0,
                "seed": 7,
                "stop": [],
                "ignore_eos": False,
                "n": 1,
                "model": "tinystories",
                "prompts": ["Once upon a time"],
                "priority": 0,
                "queue_timeout": None,
                "run_timeout": 60.0,
                "stream": False,
                "metadata": {},
                "request_id": "5b1f6c0e9a3d4e7f8a2b",
            },
        },
    ),
    "redriven": (Redriven, {"data": [_AGAIN], "not_found": [], "left": 0}),
}
_REDRIVE = json_body(
    Redrive,
    these={"summary": "Some", "value": {"ids": [_FAILED["id"]]}},
    all={"summary": "All, bit by bit", "value": {"all": True}},
)


def _example(name: str) -> dict[str, Any]:
    model, value = EXAMPLES[name]
    return {"content": named_examples({name: {"summary": model.__name__, "value": value}})}


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(prefix="/admin/dead-letters", tags=["admin"])
    letters = desk.store.dead_letters

    @routes.get(
        "",
        summary="List dead letters",
        response_description="A page of them, the latest first.",
        responses={200: _example("dead_letters"), **problems(*_DENIED, "invalid_request")},
    )
    def list_dead_letters(
        admin: Admin,  # noqa: ARG001
        limit: Annotated[int, Query(ge=1, le=100)] = 50,
        cursor: Annotated[
            str | None, Query(pattern="^[0-9]{1,16}$", description="`next_cursor` of a page.")
        ] = None,
    ) -> DeadLetterPage:
        """The jobs that failed, of all keys; `error` says why. Each stays for a week after its end,
        unless the service is set otherwise, or it is redriven or dropped."""
        jobs, following = letters.page(limit=limit, cursor=int(cursor) if cursor else None)
        return DeadLetterPage(
            data=jobs,
            next_cursor=None if following is None else str(following),
            total=letters.count(),
        )

    @routes.get(
        "/{id}",
        summary="Read a dead letter",
        response_description="The job, with the text that it had, and what it was asked.",
        responses={
            200: {**_example("dead_letter"), "links": DEAD_LETTER_LINKS},
            **problems(*_DENIED, "dead_letter_not_found"),
        },
    )
    def read_dead_letter(admin: Admin, job_id: DeadLetterId) -> DeadLetter:  # noqa: ARG001
        """Prompts are of whoever made the job: read them only to find out why it failed."""
        _check(job_id)
        job, key, spec = letters.get(job_id)
        asked = {name: getattr(spec, name) for name in DeadLetterRequest.model_fields}
        return DeadLetter(job=job, key=key, request=DeadLetterRequest.model_construct(**asked))

    @routes.post(
        "/redrive",
        status_code=202,
        summary="Redrive dead letters",
        response_description="They wait for a worker again, as new jobs.",
        openapi_extra={"requestBody": _REDRIVE},
        responses={202: _example("redriven"), **problems(*_DENIED, *BODY_PROBLEMS)},
    )
    def redrive_dead_letters(
        admin: Admin,  # noqa: ARG001
        body: Annotated[bytes, Depends(json_bytes)],
    ) -> Redriven:
        """As redriving one by one. With `all`, repeat it while some are `left`, but count: a job
        that fails again is a new dead letter, behind the others."""
        wanted = parse(Redrive, body).root
        if isinstance(wanted, RedriveAll):
            jobs = letters.redrive_oldest(wanted.limit)
            return Redriven(data=jobs, not_found=[], left=letters.count())
        redriven = Redriven(data=[], not_found=[], left=0)
        for job_id in dict.fromkeys(wanted.ids):
            try:
                _check(job_id)
                redriven.data.append(letters.redrive(job_id))
            except DeadLetterNotFound:
                redriven.not_found.append(job_id)
        redriven.left = letters.count()
        return redriven

    @routes.post(
        "/{id}/redrive",
        status_code=202,
        summary="Redrive a dead letter",
        response_description="Its request waits for a worker again, as a new job.",
        responses={202: TAKEN, **problems(*_DENIED, "dead_letter_not_found")},
    )
    def redrive_dead_letter(
        admin: Admin,  # noqa: ARG001
        job_id: DeadLetterId,
        request: Request,
        response: Response,
    ) -> Job:
        """The new job is of the same key, with the same seed, deadlines and callback, and is not
        charged. It is safe to repeat: a dead letter becomes one job, which is told again."""
        _check(job_id)
        job = letters.redrive(job_id)
        root = request.scope.get("root_path", "").rstrip("/")  # where a proxy has put us
        response.headers["Location"] = f"{root}/jobs/{job.id}"
        return job

    @routes.delete(
        "/{id}",
        status_code=204,
        summary="Drop a dead letter",
        response_description="The job, its texts and its callbacks are gone.",
        responses={**problems(*_DENIED, "dead_letter_not_found")},
    )
    def drop_dead_letter(admin: Admin, job_id: DeadLetterId) -> None:  # noqa: ARG001
        """For ever."""
        _check(job_id)
        letters.drop(job_id)

    return routes


def _check(job_id: str) -> None:
    """Raises DeadLetterNotFound for what is no job's id."""
    try:
        check_job_id(job_id)
    except JobNotFound:
        raise DeadLetterNotFound(job_id) from None
