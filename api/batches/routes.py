"""`/batches`: take, read, list, cancel, retry and delete batches; read their results and errors."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from pydantic import BaseModel, Field

from api.auth import Caller, Viewer
from api.batches import documentation as shown
from api.batches.retry import retry
from api.batches.submit import Submission
from api.batches.upload import Taken
from api.batches.uploads import Uploads
from api.desk import Desk
from api.documentation import BODY_PROBLEMS, problems
from api.idempotency import IDEMPOTENCY_KEY_SCHEMA, idempotency_key_of
from api.jobs import MAX_WAIT_SECONDS, Wait
from api.links import BATCH_LINKS
from slm_jobs.batch_schemas import Batch
from slm_jobs.errors import BatchNotFound

# An id of any other form is nobody's, and must not reach a Redis key.
_BATCH_ID = re.compile(r"batch_[0-9A-Za-z]{1,60}")
_TAKING_PROBLEMS = (
    "unauthorised",
    "idempotency_in_progress",
    "idempotency_conflict",
    "batch_gone",
    "exceeds_limit",
    "rate_limited",
    "queue_full",
    "store_unavailable",
)

BatchId = Annotated[str, Path(alias="id", description="As `POST /batches` returned it.")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        description="Makes it safe to send the request again: within a week, the same key and "
        "content give the same batch, and nothing is charged twice.",
        json_schema_extra=IDEMPOTENCY_KEY_SCHEMA,
    ),
]


class BatchPage(BaseModel):
    data: list[Batch]
    next_cursor: str | None = Field(description="Send it as `cursor`; null on the last page.")


def check_batch_id(batch_id: str) -> None:
    """Raises BatchNotFound for what is none."""
    if not _BATCH_ID.fullmatch(batch_id):
        raise BatchNotFound(batch_id)


def visible_batch(request: Request, batch_id: BatchId, viewer: Viewer) -> Batch:
    """The batch, for its owner and for admins. Raises BatchNotFound."""
    check_batch_id(batch_id)
    desk: Desk = request.app.state.desk
    return desk.store.batches.get(batch_id, viewer=viewer)


VisibleBatch = Annotated[Batch, Depends(visible_batch)]


def router(desk: Desk, uploads: Uploads) -> APIRouter:
    routes = APIRouter(prefix="/batches", tags=["batches"])

    @routes.post(
        "",
        status_code=202,
        summary="Take a batch",
        response_description="Taken: its rows wait for workers.",
        openapi_extra={"requestBody": shown.BODY, "parameters": shown.OPTION_PARAMETERS},
        responses={
            202: shown.TAKEN,
            **problems(
                *BODY_PROBLEMS,
                "malformed_gzip",
                "malformed_multipart",
                *_TAKING_PROBLEMS,
                "unknown_model",
                "unknown_template",
                "callback_url_refused",
                "too_many_callbacks",
                "invalid_rows",
                "empty_batch",
                "too_many_uploads",
            ),
        },
    )
    async def create_batch(
        caller: Caller,
        request: Request,
        response: Response,
        idempotency_key: IdempotencyKey = None,  # noqa: ARG001 - read by idempotency_key_of
    ) -> Batch:
        """Takes a file of rows, or a small batch as JSON, and checks every row while it comes in.
        If one is wrong none is taken, unless `on_invalid` is `skip`.

        A row is a prompt, or the variables of a template, and may have a `custom_id` and sampling
        fields of its own; the options here hold for rows that do not say otherwise. A form has
        them as fields before the file; what the body says goes before what the address says.
        Files may be gzipped.
        """
        submission = Submission(desk, request, caller, idempotency_key_of(request))
        return _answer(await submission.take(uploads), request, response)

    @routes.get(
        "",
        summary="List your batches",
        response_description="A page of them, the newest first.",
        responses={**problems("unauthorised", "invalid_request", "store_unavailable")},
    )
    def list_batches(
        viewer: Viewer,
        limit: Annotated[int, Query(ge=1, le=100)] = 50,
        cursor: Annotated[
            str | None, Query(pattern="^[0-9]{1,16}$", description="`next_cursor` of a page.")
        ] = None,
    ) -> BatchPage:
        """The batches of your key, also those that are still coming in."""
        below = int(cursor) if cursor else None
        batches, following = desk.store.batches.page(viewer.id, limit=limit, below=below)
        return BatchPage(data=batches, next_cursor=None if following is None else str(following))

    @routes.get(
        "/{id}",
        summary="Read a batch",
        response_description="The batch as it stands now.",
        responses={
            200: {"content": shown.CONTENT},
            **problems("unauthorised", "batch_not_found", "invalid_request", "store_unavailable"),
        },
    )
    async def get_batch(
        batch: VisibleBatch,
        preferred: Wait,
        request: Request,
        response: Response,
        wait: Annotated[
            int, Query(ge=0, le=MAX_WAIT_SECONDS, description="Seconds to wait for its end.")
        ] = 0,
    ) -> Batch:
        """A batch's record and its results stay for a week after it ended, unless the service is
        set otherwise."""
        if preferred:
            response.headers["Preference-Applied"] = f"wait={preferred}"
        seconds = max(wait, preferred)
        if seconds and not batch.status.is_terminal:
            return await desk.batch_ended(batch.id, seconds, request)
        return batch

    @routes.post(
        "/{id}/cancel",
        summary="Cancel a batch",
        response_description="The batch as it stands; running rows end at their next decode step.",
        responses={
            200: {"content": shown.CONTENT},
            **problems("unauthorised", "batch_not_found", "store_unavailable"),
        },
    )
    def cancel_batch(batch: VisibleBatch) -> Batch:
        """Rows that wait end at once, those that run with the text they have; results stay. One
        that has ended stays as it is, so it is safe to repeat."""
        return desk.store.batches.cancel(batch.id)

    @routes.post(
        "/{id}/retry",
        status_code=202,
        summary="Retry what has not succeeded",
        response_description="A new batch of those rows.",
        responses={
            202: {"content": shown.CONTENT, "links": BATCH_LINKS},
            **problems(
                *_TAKING_PROBLEMS,
                "invalid_request",
                "batch_not_found",
                "batch_not_ended",
                "nothing_to_retry",
                "unknown_model",
                "too_many_uploads",
            ),
        },
    )
    async def retry_batch(
        batch: VisibleBatch,
        caller: Caller,
        request: Request,
        response: Response,
        idempotency_key: IdempotencyKey = None,  # noqa: ARG001 - read by idempotency_key_of
    ) -> Batch:
        """A new batch, with `retry_of`, of the rows of an ended one that failed, were cancelled or
        have expired. They keep their `custom_id` and seed."""
        asked, request_id = idempotency_key_of(request), request.state.request_id
        taken = await uploads.run(
            caller.key, lambda turn: retry(desk, batch, caller, asked, turn, request_id)
        )
        return _answer(taken, request, response)

    @routes.delete(
        "/{id}",
        status_code=204,
        summary="Delete an ended batch",
        response_description="Its record and its results are gone.",
        responses={
            **problems("unauthorised", "batch_not_found", "batch_not_ended", "store_unavailable")
        },
    )
    def delete_batch(batch: BatchId, viewer: Viewer) -> None:
        """Cancel a batch that has not ended first. No more callbacks of it are sent; to stop them
        is possible also when they have outlived its record."""
        check_batch_id(batch)
        if not desk.store.callbacks.of(batch, viewer=viewer):
            desk.store.batches.get(batch, viewer=viewer)
        desk.store.batches.delete(batch)

    return routes


def _answer(taken: Taken, request: Request, response: Response) -> Batch:
    root = request.scope.get("root_path", "").rstrip("/")  # where a proxy has put us
    response.headers["Location"] = f"{root}/batches/{taken.batch.id}"
    if taken.replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return taken.batch
