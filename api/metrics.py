"""`/metrics`: what this process has answered, and how queues and workers stand by Redis.

Counts are of this process; with `PROMETHEUS_MULTIPROC_DIR`, a folder, they are of all processes
that have it. docs/metrics.md says what each series means.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute
from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.documentation import problems
from slm_jobs.errors import SettingsError, StoreUnavailable
from slm_jobs.fleet import FleetStand
from slm_jobs.metrics import new_registry
from slm_jobs.store import JobStore

log = logging.getLogger(__name__)

FRESH_SECONDS = 1.0  # for which a page is served again

# Of `Quota.policy`, and what else is refused until there is room.
LIMITS = (
    *("requests", "tokens", "jobs-in-flight", "queued-tokens", "batch-rows", "batch-tokens"),
    *("files", "callbacks", "queue"),
)
_UNMATCHED = "unmatched"  # the route of an address that is none of ours
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OTHER = "other"  # a method that a caller made up, a route without a name
_GONE = 499  # the caller went away without an answer
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


class ApiMetrics:
    """Methods are safe for threads."""

    def __init__(self, store: JobStore, models: Sequence[str]) -> None:
        self._own = new_registry()
        self._shown = self._own
        if several_processes():
            self._shown = CollectorRegistry()
            MultiProcessCollector(self._shown)  # type: ignore[no-untyped-call]
        self._shown.register(_Fleet(store, models))
        self._requests = Counter(
            "slm_http_requests_total",
            "HTTP requests that were answered, by route and status.",
            ["method", "route", "status"],
            registry=self._own,
        )
        self._durations = Histogram(
            "slm_http_request_duration_seconds",
            "From an HTTP request's head to that of its response.",
            ["method", "route"],
            buckets=_BUCKETS,
            registry=self._own,
        )
        self._refusals = Counter(
            "slm_rate_limit_refusals_total",
            "Requests that were refused because of a limit.",
            ["limit"],
            registry=self._own,
        )
        for limit in LIMITS:
            self._refusals.labels(limit)
        self._page = b""
        self._until = 0.0
        self._making = asyncio.Lock()

    def expect(self, routes: Iterable[BaseRoute]) -> None:
        """Makes the series of these routes, with every status that they document, at 0."""
        for route in routes:
            if isinstance(route, APIRoute):
                documented = {status for status in route.responses if isinstance(status, int)}
                for method in route.methods or ():
                    self._durations.labels(method, route.path)
                    for status in {route.status_code or 200, 500, *documented}:
                        self._requests.labels(method, route.path, status)

    def answered(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else _OTHER
        route = getattr(scope.get("route"), "path", None)
        if not route:  # files of the page at /docs, say, or nothing
            route = _OTHER if "endpoint" in scope else _UNMATCHED
        self._requests.labels(method, route, status).inc()
        self._durations.labels(method, route).observe(seconds)

    def refused(self, limit: str) -> None:
        self._refusals.labels(limit).inc()

    async def page(self) -> bytes:
        """As it was up to a second ago: whoever asks needs no key, so that asking often must cost
        neither Redis nor us much."""
        async with self._making:
            if time.monotonic() >= self._until:
                self._page = await run_in_threadpool(generate_latest, self._shown)
                self._until = time.monotonic() + FRESH_SECONDS
            return self._page


class HttpMetrics:
    """Around every request. A response counts when its head is sent: a stream may go on for long,
    as its caller wants it to."""

    def __init__(self, app: ASGIApp, metrics: ApiMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        def count(answered: int) -> None:
            nonlocal status
            status = answered
            self._metrics.answered(scope, status, time.perf_counter() - began)

        async def send_and_count(message: Message) -> None:
            if message["type"] == "http.response.start":
                count(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_and_count)
        finally:
            if not status:
                count(_GONE)


def several_processes() -> bool:
    return "PROMETHEUS_MULTIPROC_DIR" in os.environ


def check_folder() -> None:
    """Raises SettingsError unless `PROMETHEUS_MULTIPROC_DIR`, where it is set, can be used."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder is not None and not (folder and Path(folder).is_dir() and os.access(folder, os.W_OK)):
        raise SettingsError(
            f"PROMETHEUS_MULTIPROC_DIR: {folder!r} is no folder that can be written; make an empty"
            " one before each start"
        )


def router(metrics: ApiMetrics) -> APIRouter:
    routes = APIRouter(tags=["service"])

    @routes.get(
        "/metrics",
        summary="Numbers for Prometheus",
        response_class=Response,
        responses={
            200: {
                "description": "In Prometheus's text format.",
                "content": {"text/plain": {"schema": {"type": "string"}}},
            },
            **problems(),
        },
    )
    async def read_metrics() -> Response:
        """What this api has answered, and how queues, workers and callbacks stand, as it was up to
        a second ago; without Redis `slm_redis_up` is 0. Needs no key, and tells of none."""
        return Response(await metrics.page(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return routes


class _Fleet(Collector):
    """How everything stands by Redis, when somebody asks."""

    def __init__(self, store: JobStore, models: Sequence[str]) -> None:
        self._store = store
        self._models = models

    def collect(self) -> Iterator[Metric]:
        stand: FleetStand | None = None
        answered = True
        try:
            stand = self._store.fleet.read(self._models)
        except StoreUnavailable as error:
            log.debug("no gauges of Redis: %s", error)
            answered = False
        except Exception:  # what we count ourselves is still worth reading
            log.exception("the gauges of Redis cannot be read")
        yield GaugeMetricFamily(
            "slm_redis_up", "Whether Redis answered a moment ago.", int(answered)
        )
        if stand:
            yield from self._gauges(stand)
            yield self._expired(stand)

    def _expired(self, stand: FleetStand) -> Metric:
        expired = CounterMetricFamily(
            "slm_jobs_expired", "Jobs that no worker began in time.", labels=["model_name"]
        )
        for model, numbers in stand.models.items():
            expired.add_metric([model], numbers.expired)
        return expired

    def _gauges(self, stand: FleetStand) -> Iterator[Metric]:
        for field, name, about in _MODEL_GAUGES:
            gauge = GaugeMetricFamily(f"slm_{name}", about, labels=["model_name"])
            for model, numbers in stand.models.items():
                gauge.add_metric([model], getattr(numbers, field))
            yield gauge
        for field, name, about in _GAUGES:
            yield GaugeMetricFamily(f"slm_{name}", about, getattr(stand, field))


# Fields of ModelStand and FleetStand, and how they are called.
_MODEL_GAUGES = (
    ("waiting", "num_requests_waiting", "Jobs that no worker has begun."),
    ("running", "num_requests_running", "Jobs that workers hold."),
    ("rows_waiting", "num_batch_rows_waiting", "Rows of batches that no worker has begun."),
    ("rows_running", "num_batch_rows_running", "Rows of batches that workers hold."),
    ("waiting_tokens", "waiting_tokens", "Tokens that waiting jobs and rows may take at most."),
    ("oldest_seconds", "oldest_waiting_seconds", "Age of the oldest job that waits."),
    ("workers", "workers", "Workers alive that host the model."),
    ("slots", "slots", "Sequences that these decode at once, at most."),
)
_GAUGES = (
    ("dead_letters", "dead_letters", "Jobs that failed, and were not redriven or dropped."),
    ("callbacks_pending", "callbacks_pending", "Callbacks to be delivered, now or later."),
    (
        "callbacks_overdue_seconds",
        "callbacks_overdue_seconds",
        "For how long the longest due callback has waited for an attempt.",
    ),
    ("memory_used", "redis_memory_used_bytes", "Memory that Redis uses."),
    ("memory_max", "redis_memory_max_bytes", "Memory that Redis may use; 0: no limit is known."),
)
