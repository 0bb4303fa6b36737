"""`/v1/batches`: the batches of `/batches`, made from files of `/v1/files`, as OpenAI has them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from api.auth import Caller, Viewer
from api.batches.content import Content, limited, unpacked
from api.batches.intake import take
from api.batches.options import BatchOptions
from api.batches.routes import VisibleBatch
from api.batches.rows import ENDPOINT
from api.batches.upload import Taken
from api.batches.uploads import Turn, Uploads
from api.body import check, json_bytes, load
from api.desk import Desk
from api.documentation import TAKING_PROBLEMS, json_body
from api.idempotency import IDEMPOTENCY_KEY_SCHEMA, idempotency_key_of
from api.links import OPENAI_BATCH_LINKS
from api.openai.batch_lines import output_files
from api.openai.batch_schemas import (
    FILE_ID,
    BatchCreateRequest,
    BatchError,
    BatchErrors,
    BatchObject,
    BatchObjectList,
    BatchUsage,
    RequestCounts,
)
from api.openai.errors import errors
from slm_jobs.batch_schemas import Batch, BatchStatus
from slm_jobs.errors import FileNotFound

_ID = "^batch_[0-9A-HJKMNP-TV-Z]{26}$"
_PAGE = 100
_EXAMPLE = {
    "summary": "A file that was uploaded",
    "value": {
        "input_file_id": "file-01K9ZX3V7Q4C8E2M5T6R0B1DAF",
        "endpoint": ENDPOINT,
        "completion_window": "24h",
        "metadata": {"night": "12"},
    },
}

IdempotencyKey = Annotated[
    str | None,
    Header(
        description="Makes it safe to send the request again: the same key, body and file give the"
        " same batch.",
        json_schema_extra=IDEMPOTENCY_KEY_SCHEMA,
    ),
]


def router(desk: Desk, uploads: Uploads) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["openai"])
    batches = desk.store.batches

    @routes.post(
        "/batches",
        summary="Run a file",
        openapi_extra={"requestBody": json_body(BatchCreateRequest, file=_EXAMPLE)},
        responses={
            200: {"links": OPENAI_BATCH_LINKS},
            **errors(
                *TAKING_PROBLEMS,
                "file_not_found",
                "unsupported_parameter",
                "malformed_gzip",
                "batch_gone",
                "idempotency_in_progress",
                "too_many_uploads",
            ),
        },
    )
    async def create_batch(
        caller: Caller,
        viewer: Viewer,
        body: Annotated[bytes, Depends(json_bytes)],
        request: Request,
        response: Response,
        idempotency_key: IdempotencyKey = None,  # noqa: ARG001 - read by idempotency_key_of
    ) -> BatchObject:
        """Checks every line of the file, and answers when that is done: with a batch that runs, or
        with a `failed` one whose `errors` name the wrong lines."""

        def make(turn: Turn) -> Taken:
            data = load(body)
            wanted = check(BatchCreateRequest, data)
            wanted.refuse_unsupported()
            if not re.fullmatch(FILE_ID, wanted.input_file_id):
                raise FileNotFound(wanted.input_file_id)
            file = desk.store.files.get(wanted.input_file_id, viewer=viewer)
            options = BatchOptions(
                completion_window=wanted.completion_window, metadata=wanted.metadata
            )
            content = turn.fetched(desk.store.files.content(file))
            chunks = limited(unpacked(content), desk.settings.max_batch_bytes)
            about = [request.scope["path"], wanted.model_dump(exclude={"input_file_id"})]
            return take(
                desk,
                options,
                Content(chunks, about=about),
                "jsonl",
                caller,
                idempotency_key=idempotency_key_of(request),
                endpoint=ENDPOINT,
                extra=wanted.model_dump(include={"input_file_id", "completion_window"}),
                reject=True,
                request_id=request.state.request_id,
            )

        taken = await uploads.run(caller.key, make)
        if taken.replayed:
            response.headers["Idempotent-Replayed"] = "true"
        return to_object(taken.batch)

    @routes.get(
        "/batches",
        summary="List your batches",
        response_description="A page of them, the newest first.",
        responses=errors("unauthorised", "invalid_request", "batch_not_found", "store_unavailable"),
    )
    def list_batches(
        viewer: Viewer,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: Annotated[
            str | None, Query(pattern=_ID, description="`last_id` of the page before.")
        ] = None,
    ) -> BatchObjectList:
        """The batches of your key, those of `POST /batches` too."""
        last = batches.get(after, viewer=viewer) if after else None
        page = list(islice(newest(desk, viewer.id, last), limit + 1))
        data = [to_object(batch) for batch in page[:limit]]
        return BatchObjectList(
            data=data,
            first_id=data[0].id if data else None,
            last_id=data[-1].id if data else None,
            has_more=len(page) > limit,
        )

    @routes.get(
        "/batches/{id}",
        summary="Read a batch",
        responses=errors("unauthorised", "batch_not_found", "store_unavailable"),
    )
    def get_batch(batch: VisibleBatch) -> BatchObject:
        """The batch as it stands now."""
        return to_object(batch)

    @routes.post(
        "/batches/{id}/cancel",
        summary="Cancel a batch",
        responses=errors("unauthorised", "batch_not_found", "store_unavailable"),
    )
    def cancel_batch(batch: VisibleBatch) -> BatchObject:
        """Rows that run end at their next decode step; what is done is kept. A batch that has ended
        stays as it is."""
        return to_object(batches.cancel(batch.id))

    return routes


def to_object(batch: Batch) -> BatchObject:
    extra = batch.extra  # of a batch of `POST /batches` there is none
    files = {file.kind: file.id for file in output_files(batch)}
    state: Any = batch.status.value  # OpenAI's names, but for what runs
    if batch.status is BatchStatus.RUNNING:
        state = "cancelling" if batch.cancel_requested else "in_progress"
    counts, usage = batch.counts, batch.usage
    ended = {f"{state}_at": _seconds(batch.finished_at)} if batch.finished_at else {}
    if batch.status is BatchStatus.COMPLETED:
        ended["finalizing_at"] = ended["completed_at"]
    return BatchObject(
        id=batch.id,
        model=batch.model,
        errors=_errors(batch),
        input_file_id=extra.get("input_file_id", ""),
        completion_window=extra.get("completion_window") or _window(batch),
        status=state,
        output_file_id=files.get("out"),
        error_file_id=files.get("err"),
        created_at=_seconds(batch.created_at),
        in_progress_at=_seconds(batch.started_at) if batch.started_at else None,
        expires_at=_seconds(batch.expires_at) if batch.expires_at else None,
        cancelling_at=_seconds(batch.cancel_requested_at) if batch.cancel_requested_at else None,
        **ended,
        request_counts=RequestCounts(
            total=counts.total,
            completed=counts.succeeded,
            failed=counts.failed + counts.cancelled + counts.expired,
        ),
        usage=BatchUsage(
            input_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
            total_tokens=usage.total_tokens,
        ),
        metadata=batch.metadata or None,
    )


def newest(desk: Desk, key: str, after: Batch | None = None) -> Iterator[Batch]:
    """A key's batches, the newest first, from the one behind `after` on."""
    below: int | None = None
    skipping = False
    if after:  # others may have been made in the same millisecond
        below = (round(after.created_at.timestamp() * 1000) + 1) * 1000
        skipping = True
    while True:
        page, below = desk.store.batches.page(key, limit=_PAGE, below=below)
        for batch in page:
            if not skipping:
                yield batch
            elif after and batch.id == after.id:
                skipping = False
        if below is None:
            return


def _errors(batch: Batch) -> BatchErrors | None:
    if not batch.errors:
        return None
    found = [BatchError(code=e.code, line=e.line, message=e.message) for e in batch.errors]
    return BatchErrors(data=found)


def _window(batch: Batch) -> str:
    """Of a batch that `POST /batches` made; it runs from when its last row had come."""
    if batch.expires_at is None:
        return "24h"
    return f"{round((batch.expires_at - batch.created_at).total_seconds())}s"


def _seconds(time: datetime) -> int:
    return int(time.timestamp())
