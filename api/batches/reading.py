"""`/batches/{id}/results` and `/errors`: what has become of a batch's rows, as JSON lines."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Annotated

from anyio import BrokenResourceError
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BeforeValidator

from api.auth import Caller, still_valid
from api.batches import documentation as shown
from api.batches.lines import Lines, List
from api.batches.routes import VisibleBatch
from api.desk import Desk
from api.documentation import problems
from slm_jobs.api_keys import KeyProof
from slm_jobs.batch_schemas import Batch
from slm_jobs.errors import StoreUnavailable

_MOST_LINES = 2**40
_FLAGS = {"true": True, "false": False}

log = logging.getLogger(__name__)


def _flag(given: str) -> bool:
    """The framework would also take 1, on and yes."""
    if given not in _FLAGS:
        raise ValueError("Input should be true or false")
    return _FLAGS[given]


After = Annotated[
    int, Query(ge=0, le=_MOST_LINES, description="The `seq` of the last line that you have.")
]
Limit = Annotated[int | None, Query(ge=1, le=_MOST_LINES, description="Most lines; default: all.")]
Follow = Annotated[
    bool,
    BeforeValidator(_flag),
    Query(description="Whether to go on until the batch has ended."),
]


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(prefix="/batches", tags=["batches"])
    lines_problems = problems(
        "unauthorised", "batch_not_found", "invalid_request", "store_unavailable"
    )

    @routes.get(
        "/{id}/results",
        summary="Read what is done",
        response_class=StreamingResponse,
        responses={200: shown.RESULTS, **lines_problems},
    )
    async def read_results(
        caller: Caller,
        batch: VisibleBatch,
        request: Request,
        after: After = 0,
        limit: Limit = None,
        follow: Follow = False,
    ) -> Response:
        """JSON lines, in order of completion: the rows that have succeeded so far, or with
        `follow` until the end. `seq` counts them; go on with `after`. Blank lines keep a connection
        alive: skip them."""
        return _lines(desk, request, caller, batch, "results", after, limit, follow=follow)

    @routes.get(
        "/{id}/errors",
        summary="Read what has failed",
        response_class=StreamingResponse,
        responses={200: shown.ERRORS, **lines_problems},
    )
    async def read_errors(
        caller: Caller,
        batch: VisibleBatch,
        request: Request,
        after: After = 0,
        limit: Limit = None,
        follow: Follow = False,
    ) -> Response:
        """As the results: the rows that failed, were cancelled or have expired, with the text that
        they had; and those that were skipped as invalid. They have a `seq` of their own."""
        return _lines(desk, request, caller, batch, "failures", after, limit, follow=follow)

    return routes


def _lines(
    desk: Desk,
    request: Request,
    caller: KeyProof,
    batch: Batch,
    of: List,
    after: int,
    limit: int | None,
    *,
    follow: bool,
) -> Response:
    lines = Lines(
        desk,
        batch,
        of,
        after=after,
        limit=limit,
        still_valid=lambda: still_valid(request, caller),
    )

    async def pages() -> AsyncIterator[bytes]:
        try:
            async for page in lines.until_end() if follow else lines.now():
                yield page
        except StoreUnavailable as error:  # clients go on after the last line that they have
            extra = {"request_id": request.state.request_id, "batch_id": batch.id}
            log.warning("lines break off: %s", error, extra=extra)
            raise BrokenResourceError from error  # which ends the connection, not the answer

    return StreamingResponse(pages(), media_type="application/jsonl")
