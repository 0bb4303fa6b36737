"""Callbacks over HTTP: what became of them, sending them again, and what they are signed with."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from api.auth import Viewer
from api.batches.routes import BatchId, check_batch_id
from api.body import json_bytes, parse
from api.desk import Desk
from api.documentation import BODY_PROBLEMS, json_body, named_examples, problems
from api.jobs import JobId, check_job_id
from api.problems import Problem
from slm_jobs.api_keys import ApiKey
from slm_jobs.callback_schemas import CallbackSecret, Delivery, DeliveryStatus

DAY_SECONDS = 86_400


class Deliveries(BaseModel):
    data: list[Delivery]


class DeliveryPage(BaseModel):
    data: list[Delivery]
    next_cursor: str | None = Field(description="Send it as `cursor`; null on the last page.")


class Replayed(BaseModel):
    replayed: int = Field(description="Callbacks that are sent again.")
    data: list[Delivery] = Field(description="All of the job or batch.")


class CallbackSecrets(BaseModel):
    secrets: list[CallbackSecret] = Field(description="The newest first; every one signs.")


class Rotation(BaseModel):
    """The body of `POST /callbacks/secret/rotate`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    overlap_seconds: int = Field(
        DAY_SECONDS,
        ge=0,
        le=7 * DAY_SECONDS,
        description="For how long the one before signs too.",
    )


_DELIVERED: dict[str, Any] = {
    "id": "job_01K9ZX3V7Q4C8E2M5T6R0B1DAF-succeeded",
    "type": "job.succeeded",
    "of": "job_01K9ZX3V7Q4C8E2M5T6R0B1DAF",
    "url": "https://example.com/hooks/slm",
    "status": "delivered",
    "created_at": "2026-01-31T09:00:01.004000Z",
    "next_attempt_at": None,
    "attempts": [
        {
            "at": "2026-01-31T09:00:01.012000Z",
            "duration_ms": 37,
            "status": 502,
            "error": "http_502",
            "response": "Bad Gateway",
        },
        {
            "at": "2026-01-31T09:00:06.240000Z",
            "duration_ms": 25,
            "status": 204,
            "error": None,
            "response": "",
        },
    ],
}
_PENDING = {
    **_DELIVERED,
    "status": "pending",
    "next_attempt_at": "2026-01-31T09:00:06.240000Z",
    "attempts": _DELIVERED["attempts"][:1],
}
_GIVEN_UP = {**_DELIVERED, "status": "failed", "attempts": _DELIVERED["attempts"][:1]}
EXAMPLES: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "callbacks": (Deliveries, {"data": [_DELIVERED]}),
    "callbacks_given_up": (DeliveryPage, {"data": [_GIVEN_UP], "next_cursor": None}),
    "callbacks_replayed": (Replayed, {"replayed": 1, "data": [_PENDING]}),
    "callback_secrets": (
        CallbackSecrets,
        {
            "secrets": [
                {"secret": "whsec_" + "bmV3" * 10 + "bmU=", "expires_at": None},
                {
                    "secret": "whsec_" + "b2xk" * 10 + "b2w=",
                    "expires_at": "2026-02-01T09:00:00Z",
                },
            ]
        },
    ),
}
_ROTATION = json_body(
    Rotation,
    a_day={"summary": "Both sign for a day", "value": {"overlap_seconds": DAY_SECONDS}},
    leaked={"summary": "The old one is known to others", "value": {"overlap_seconds": 0}},
)


def _example(name: str) -> dict[str, Any]:
    model, value = EXAMPLES[name]
    return {"content": named_examples({name: {"summary": model.__name__, "value": value}})}


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(tags=["callbacks"])
    callbacks = desk.store.callbacks

    def of_job(job: str, viewer: ApiKey) -> list[Delivery]:
        """Raises JobNotFound."""
        check_job_id(job)
        found = callbacks.of(job, viewer=viewer)
        if not found:  # there are none, or it is somebody else's
            desk.store.get(job, viewer=viewer)
        return found

    def of_batch(batch: str, viewer: ApiKey) -> list[Delivery]:
        """Raises BatchNotFound."""
        check_batch_id(batch)
        found = callbacks.of(batch, viewer=viewer)
        if not found:
            desk.store.batches.get(batch, viewer=viewer)
        return found

    @routes.get(
        "/jobs/{id}/callbacks",
        summary="See a job's callbacks",
        responses={
            200: _example("callbacks"),
            **problems("unauthorised", "job_not_found", "store_unavailable"),
        },
    )
    def list_job_callbacks(job: JobId, viewer: Viewer) -> Deliveries:
        """The oldest first, each with its attempts: when, how long, and what the receiver said.
        They stay for a week after the last attempt, also when the job's record is gone."""
        return Deliveries(data=of_job(job, viewer))

    @routes.get(
        "/batches/{id}/callbacks",
        summary="See a batch's callbacks",
        responses={
            200: _example("callbacks"),
            **problems("unauthorised", "batch_not_found", "store_unavailable"),
        },
    )
    def list_batch_callbacks(batch: BatchId, viewer: Viewer) -> Deliveries:
        """The oldest first, each with its attempts: when, how long, and what the receiver said.
        They stay for a week after the last attempt, also when the batch's record is gone."""
        return Deliveries(data=of_batch(batch, viewer))

    def replay(work_id: str, found: list[Delivery]) -> Replayed:
        ended = [one.id for one in found if one.status is not DeliveryStatus.PENDING]
        if not (replayed := callbacks.replay(ended)):
            raise Problem("nothing_to_replay", _why_nothing(work_id, found))
        return Replayed(replayed=replayed, data=callbacks.of(work_id))

    @routes.post(
        "/jobs/{id}/callbacks/replay",
        status_code=202,
        summary="Send a job's callbacks again",
        response_description="They are due now.",
        responses={
            202: _example("callbacks_replayed"),
            **problems("unauthorised", "job_not_found", "nothing_to_replay", "store_unavailable"),
        },
    )
    def replay_job_callbacks(job: JobId, viewer: Viewer) -> Replayed:
        """All that were delivered or given up, with the ids and contents that they had, on a fresh
        schedule. Those that are pending stay as they are."""
        return replay(job, of_job(job, viewer))

    @routes.post(
        "/batches/{id}/callbacks/replay",
        status_code=202,
        summary="Send a batch's callbacks again",
        response_description="They are due now.",
        responses={
            202: _example("callbacks_replayed"),
            **problems("unauthorised", "batch_not_found", "nothing_to_replay", "store_unavailable"),
        },
    )
    def replay_batch_callbacks(batch: BatchId, viewer: Viewer) -> Replayed:
        """All that were delivered or given up, with the ids and contents that they had, on a fresh
        schedule. Those that are pending stay as they are."""
        return replay(batch, of_batch(batch, viewer))

    @routes.get(
        "/callbacks",
        summary="List callbacks that were given up",
        response_description="A page of them, the newest first.",
        responses={
            200: _example("callbacks_given_up"),
            **problems("unauthorised", "forbidden", "invalid_request", "store_unavailable"),
        },
    )
    def list_failed_callbacks(
        viewer: Viewer,
        limit: Annotated[int, Query(ge=1, le=100)] = 50,
        cursor: Annotated[
            str | None, Query(pattern="^[0-9]{1,16}$", description="`next_cursor` of a page.")
        ] = None,
        key: Annotated[
            str | None,
            Query(pattern="^[a-z0-9]{10}$", description="Whose; for admin keys only."),
        ] = None,
    ) -> DeliveryPage:
        """The dead letters of your key: their receiver failed at every attempt, or answered 410.
        Once it is mended, replay the callbacks of the job or batch that each is `of`."""
        if key not in (None, viewer.id) and not viewer.admin:
            raise Problem("forbidden", "Only admin keys see the callbacks of others.")
        found, following = callbacks.failed(
            key or viewer.id, limit=limit, cursor=int(cursor) if cursor else None
        )
        return DeliveryPage(data=found, next_cursor=None if following is None else str(following))

    @routes.get(
        "/callbacks/secret",
        summary="Read what callbacks are signed with",
        responses={
            200: _example("callback_secrets"),
            **problems("unauthorised", "store_unavailable"),
        },
    )
    def read_callback_secrets(viewer: Viewer) -> CallbackSecrets:
        """The secrets of your key. Receivers verify with the first, or with any of them while one
        is replaced."""
        return CallbackSecrets(secrets=callbacks.secrets(viewer.id))

    @routes.post(
        "/callbacks/secret/rotate",
        summary="Change what callbacks are signed with",
        openapi_extra={"requestBody": _ROTATION},
        responses={
            200: _example("callback_secrets"),
            **problems("unauthorised", *BODY_PROBLEMS, "store_unavailable"),
        },
    )
    def rotate_callback_secret(
        viewer: Viewer, body: Annotated[bytes, Depends(json_bytes)]
    ) -> CallbackSecrets:
        """A new secret signs from now on; the one before signs too for `overlap_seconds`, in which
        receivers change over."""
        overlap = parse(Rotation, body).overlap_seconds
        return CallbackSecrets(secrets=callbacks.rotate_secret(viewer.id, overlap_seconds=overlap))

    return routes


def _why_nothing(work_id: str, found: list[Delivery]) -> str:
    if found:
        return f"The callbacks of {work_id!r} are pending: they are sent anyway."
    return (
        f"{work_id!r} has no callbacks yet: its request names no callback_url, or nothing of its "
        "callback_events has happened."
    )
