"""What worker and callback processes measure alike, and the page on which Prometheus finds it.

The api has a page of its own (`api.metrics`): several of its processes may share a port.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)

from slm_jobs.settings import Settings
from slm_jobs.store import SweepReport

log = logging.getLogger(__name__)

EXHAUSTED = "attempts_exhausted"


def new_registry() -> CollectorRegistry:
    """One that has this process's memory, processor time and open files, as Linux tells them."""
    # A time beside each count would double the page.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


class EndMetrics:
    """Counts work that ended without success, and what sweeps did, here in this process.

    Sweeps are made by whichever worker or callback process comes first, so both count them.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        models: Iterable[str],
        codes: Sequence[str] = (EXHAUSTED,),
    ) -> None:
        self._failures = Counter(
            "slm_request_failure_total",
            "Jobs and rows that failed, by error code.",
            ["model_name", "code"],
            registry=registry,
        )
        self._dead_letters = Counter(
            "slm_dead_lettered_total",
            "Jobs that became dead letters.",
            ["model_name"],
            registry=registry,
        )
        self._recovered = Counter(
            "slm_leases_recovered_total",
            "Leases of jobs and rows that had expired and were taken back.",
            registry=registry,
        )
        for model in models:
            self._dead_letters.labels(model)
            for code in codes:
                self._failures.labels(model, code)

    def failed(self, model: str, code: str, *, job: bool) -> None:
        self._failures.labels(model, code).inc()
        if job:
            self._dead_letters.labels(model).inc()

    def swept(self, report: SweepReport) -> None:
        self._recovered.inc(report.requeued + report.exhausted)
        for model in report.failed_jobs:
            self.failed(model, EXHAUSTED, job=True)
        for model in report.failed_rows:
            self.failed(model, EXHAUSTED, job=False)


class MetricsServer:
    """Serves `registry` at `SLM_METRICS_PORT`; nowhere where there is no such port."""

    def __init__(self, settings: Settings, registry: CollectorRegistry) -> None:
        self._address = (settings.metrics_host, settings.metrics_port)
        self._registry = registry
        self._server: WSGIServer | None = None

    def start(self) -> None:
        """Where the port cannot be opened it says so, and this process goes on without."""
        host, port = self._address
        if port is None:
            return
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            log.warning(
                "PROMETHEUS_MULTIPROC_DIR is for the api alone, which would count this process too;"
                " unset it here"
            )
        try:
            self._server, _ = start_http_server(port, host, self._registry)
        except OSError as error:
            log.warning(
                "no /metrics at %s port %d (%s), all else goes on: give each process of a machine"
                " its own SLM_METRICS_PORT",
                host,
                port,
                error.strerror or error,
            )
            return
        log.info("serving /metrics at %s port %d", host, port)

    def stop(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
