"""`GET /jobs/{id}/stream`: a job as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent

from api.desk import Desk
from api.documentation import STREAM, problems
from api.follow import Ended, Restarted, StatusChanged, TextAdded
from api.jobs import VisibleJob


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
        job: VisibleJob,
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
        async for event in desk.follow(job.id, last_event_id):
            match event:
                case StatusChanged(status, attempt):
                    data = {"status": status.value, "attempt": attempt}
                    yield ServerSentEvent(event="status", data=data)
                case TextAdded(index, text, event_id):
                    data = {"index": index, "text": text}
                    yield ServerSentEvent(event="token", data=data, id=event_id)
                case Restarted():
                    yield ServerSentEvent(event="restart", data={})
                case Ended(ended):
                    yield ServerSentEvent(event="done", data=ended.model_dump(mode="json"))

    return routes
