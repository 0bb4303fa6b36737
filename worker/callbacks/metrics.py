"""What a callback process tells Prometheus; docs/metrics.md says what each series means."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Counter, Gauge, Histogram

from slm_jobs.callback_schemas import Outcome
from slm_jobs.metrics import EndMetrics, new_registry

# `delivered`, or what the error of an attempt says (see `delivery`), of which statuses are grouped.
OUTCOMES = (
    "delivered",
    "address_refused",
    "dns_failed",
    "connect_failed",
    "tls_failed",
    "timeout",
    "connection_lost",
    "bad_response",
    "http_3xx",
    "http_4xx",
    "http_5xx",
    "key_revoked",
    "internal_error",
    "other",
)
_STATUS = "http_"
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0)


class CallbackMetrics:
    """Every series is there from the start, at 0. `models` are those of the manifest, if this
    process has one."""

    def __init__(self, models: Iterable[str] = ()) -> None:
        self.registry = new_registry()
        self.ends = EndMetrics(self.registry, models)
        self._attempts = Counter(
            "slm_callback_attempts_total",
            "Attempts to deliver a callback, by outcome.",
            ["outcome"],
            registry=self.registry,
        )
        self._given_up = Counter(
            "slm_callbacks_given_up_total",
            "Callbacks that were not delivered, and are not tried again.",
            registry=self.registry,
        )
        self._latency = Histogram(
            "slm_callback_latency_seconds",
            "How long attempts to deliver a callback took.",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.running = Gauge(
            "slm_callbacks_running", "Attempts that are being made.", registry=self.registry
        )
        for outcome in OUTCOMES:
            self._attempts.labels(outcome)

    def attempted(self, outcome: Outcome) -> None:
        self._attempts.labels(_name(outcome.attempt.error)).inc()
        self._latency.observe(outcome.attempt.duration_ms / 1000)
        if not outcome.delivered and outcome.next is None:
            self._given_up.inc()


def _name(error: str | None) -> str:
    """One of OUTCOMES: a receiver chooses its statuses, and must not make series."""
    if error is None:
        return "delivered"
    name = f"{error[: len(_STATUS) + 1]}xx" if error.startswith(_STATUS) else error
    return name if name in OUTCOMES else "other"
