"""`GET /jobs/{id}/stream`: a job as server-sent events."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from typing import Annotated

from fastapi import APIRouter, Header, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from api.auth import Caller, still_valid
from api.desk import Desk
from api.documentation import STREAM, problems
from api.follow import Ended, JobEvent, Restarted, StatusChanged, TextAdded
from api.jobs import VisibleJob
from slm_jobs.errors import StoreUnavailable

_KEY_SECONDS = 1.0  # after which an open stream's key is looked at again

log = logging.getLogger(__name__)


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(tags=["jobs"])

    @routes.get(
        "/jobs/{id}/stream",
        summary="Follow a job",
        response_class=EventSourceResponse,
        responses={
            200: STREAM,
            **problems("unauthorised", "job_not_found", "invalid_request", "store_unavailable"),
        },
    )
    async def stream_job(
        caller: Caller,
        job: VisibleJob,
        request: Request,
        last_event_id: Annotated[
            str | None,
            Header(
                pattern="^[0-9]{1,4}:([0-9]{1,8}|end)$",
                description="Where to go on, as browsers send it when they connect again.",
            ),
        ] = None,
    ) -> AsyncIterator[ServerSentEvent]:
        """Server-sent events, until the job has ended; also for one that has.

        `status` when it starts or waits again; `token` with the text that an output (`index`)
        gained; `restart` if all text so far is void; `done` with the whole job. Text comes while
        the job runs if it was made with `"stream": true`, else at its end. Comments keep idle
        connections open.
        """
        checked = time.monotonic()
        try:
            async with aclosing(desk.follow(job.id, last_event_id)) as events:
                async for event in events:
                    if time.monotonic() - checked > _KEY_SECONDS:
                        with suppress(StoreUnavailable):  # asked again, with the next event
                            if not await still_valid(request, caller):
                                return
                            checked = time.monotonic()
                    yield _to_sse(event)
        except StoreUnavailable as error:  # clients connect again, and go on where they were
            extra = {"request_id": request.state.request_id, "job_id": job.id}
            log.warning("a stream breaks off: %s", error, extra=extra)

    return routes


def _to_sse(event: JobEvent) -> ServerSentEvent:
    match event:
        case StatusChanged(status, attempt):
            data = {"status": status.value, "attempt": attempt}
            return ServerSentEvent(event="status", data=data)
        case TextAdded(index, text, event_id):
            return ServerSentEvent(event="token", data={"index": index, "text": text}, id=event_id)
        case Restarted():
            return ServerSentEvent(event="restart", data={})
        case Ended(job):
            return ServerSentEvent(event="done", data=job.model_dump(mode="json"))
