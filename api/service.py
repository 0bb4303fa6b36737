"""What is served, and whether it works: models, health, readiness."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Literal

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field

from api.auth import Viewer
from api.documentation import problems
from api.problems import Problem
from slm_jobs.errors import StoreUnavailable
from slm_jobs.manifest import Manifest, Template
from slm_jobs.schemas import QueueInfo
from slm_jobs.store import JobStore

READY_SECONDS = 1.0  # for which an answer of `/readyz` holds


class Model(BaseModel):
    name: str
    context_length: int = Field(description="Most tokens of prompt and output together.")
    default: bool = Field(description="Whether it serves requests that name no model.")
    kv_cache: bool = Field(description="Without it every token costs the whole text again.")
    trained: bool = Field(description="Whether its weights were learnt, or are random.")
    templates: dict[str, Template] = Field(description="What `template` may name.")
    workers: int = Field(description="Workers alive now that host it.")


class Models(BaseModel):
    data: list[Model]


class Queues(BaseModel):
    data: list[QueueInfo]


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    status: Literal["ready"] = "ready"
    workers: int = Field(description="Workers alive now that host any model of ours.")


class _Crew:
    """The workers alive for our models, as they were a moment ago: whoever asks needs no key, so
    that asking often must cost no thread and no call of Redis each time."""

    def __init__(self, store: JobStore, models: set[str]) -> None:
        self._store = store
        self._models = models
        self._seen: int | StoreUnavailable = 0
        self._until = 0.0
        self._looking = asyncio.Lock()

    async def size(self) -> int:
        """Raises StoreUnavailable."""
        async with self._looking:
            if time.monotonic() >= self._until:
                self._seen = await run_in_threadpool(self._look)
                self._until = time.monotonic() + READY_SECONDS
            seen = self._seen
        if isinstance(seen, StoreUnavailable):
            raise StoreUnavailable(*seen.args)
        return seen

    def _look(self) -> int | StoreUnavailable:
        try:
            workers = self._store.workers()
        except StoreUnavailable as error:
            return error
        return sum(1 for worker in workers if self._models.intersection(worker.models))


def router(store: JobStore, manifest: Manifest) -> APIRouter:
    routes = APIRouter(tags=["service"])
    crew = _Crew(store, set(manifest.models))

    @routes.get(
        "/models",
        summary="List the models",
        responses={**problems("unauthorised", "store_unavailable")},
    )
    def list_models(viewer: Viewer) -> Models:  # noqa: ARG001
        """The models that a job may ask for, and how many workers host each of them now."""
        hosting = Counter(name for worker in store.workers() for name in set(worker.models))
        return Models(
            data=[
                Model(
                    name=spec.name,
                    context_length=spec.context_length,
                    default=spec is manifest.default,
                    kv_cache=spec.kv_cache,
                    trained=not spec.untrained,
                    templates=dict(spec.templates),
                    workers=hosting[spec.name],
                )
                for spec in manifest.models.values()
            ]
        )

    @routes.get(
        "/queue",
        summary="How much waits",
        responses={**problems("unauthorised", "store_unavailable")},
    )
    def read_queue(viewer: Viewer) -> Queues:  # noqa: ARG001
        """How many jobs of each model wait and run, and how long a new one would wait."""
        return Queues(data=store.queues(list(manifest.models)))

    @routes.get("/healthz", summary="Is the process up?", responses={**problems()})
    async def healthz() -> Health:
        """Says that this process answers, and nothing about Redis or workers: restarting the api
        would not help them. No thread is needed, so a full thread pool does not hide it."""
        return Health()

    @routes.get(
        "/readyz",
        summary="Can jobs run?",
        responses={**problems("not_ready", "store_unavailable")},
    )
    async def readyz() -> Readiness:
        """Whether Redis answers and at least one worker is alive for any model that is served;
        as it was up to a second ago."""
        workers = await crew.size()
        if not workers:
            names = ", ".join(manifest.models)
            detail = f"Redis answers, but no worker is alive for any of: {names}."
            raise Problem("not_ready", detail)
        return Readiness(workers=workers)

    return routes
