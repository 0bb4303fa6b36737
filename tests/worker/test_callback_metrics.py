"""What a callback process counts."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from slm_jobs.callback_schemas import Attempt, DueDelivery, Outcome
from slm_jobs.settings import Settings
from tests.worker.test_callback_courier import FakeStore, running, until
from worker.callbacks import delivery
from worker.callbacks.courier import Courier
from worker.callbacks.metrics import OUTCOMES, CallbackMetrics


def attempt(error: str | None, pause: float | None = 5.0, milliseconds: int = 30) -> Outcome:
    made = Attempt(at=datetime.now(UTC), duration_ms=milliseconds, error=error)
    return Outcome("job_1-succeeded", 1, made, pause if error else None, not error)


def value(metrics: CallbackMetrics, name: str, **labels: str) -> float:
    found = metrics.registry.get_sample_value(f"slm_{name}", labels)
    assert found is not None, (name, labels)
    return found


def test_every_series_is_there_from_the_start_at_0() -> None:
    metrics = CallbackMetrics(["m"])
    for outcome in OUTCOMES:
        assert value(metrics, "callback_attempts_total", outcome=outcome) == 0
    for name in ("callback_latency_seconds_count", "callbacks_given_up_total", "callbacks_running"):
        assert value(metrics, name) == 0
    assert value(metrics, "leases_recovered_total") == 0
    assert value(metrics, "dead_lettered_total", model_name="m") == 0


def test_outcomes_are_those_that_attempts_document() -> None:
    documented = {
        line.split()[0] for line in (delivery.__doc__ or "").splitlines() if line[:4] == "    "
    }
    codes = {word for word in documented if word.replace("_", "").isalpha() and "_" in word}
    codes |= {"timeout"}
    assert codes <= set(OUTCOMES) | {"none"}


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "delivered"),
        ("timeout", "timeout"),
        ("http_301", "http_3xx"),
        ("http_404", "http_4xx"),
        ("http_599", "http_5xx"),
        ("http_199", "other"),
        ("http_999", "other"),
        ("invented_later", "other"),
    ],
)
def test_a_receiver_makes_no_series(error: str | None, outcome: str) -> None:
    metrics = CallbackMetrics()
    metrics.attempted(attempt(error))
    assert value(metrics, "callback_attempts_total", outcome=outcome) == 1
    assert value(metrics, "callback_latency_seconds_sum") == pytest.approx(0.03)
    assert value(metrics, "callbacks_given_up_total") == 0


def test_what_is_not_tried_again_is_given_up() -> None:
    metrics = CallbackMetrics()
    metrics.attempted(attempt("http_410", pause=None))
    metrics.attempted(attempt(None))
    assert value(metrics, "callbacks_given_up_total") == 1


def test_the_courier_counts_its_attempts() -> None:
    metrics, free = CallbackMetrics(), asyncio.Event()

    async def send(due: DueDelivery) -> Outcome:
        await free.wait()
        return attempt("http_503" if due.lane.startswith("k bad") else None)

    async def run() -> None:
        store = FakeStore("k good:443", "k good:443", "k bad:443")
        async with running(Courier(store, send, Settings(), metrics)):  # type: ignore[arg-type]
            await until(lambda: value(metrics, "callbacks_running") == 3)
            free.set()
            await until(lambda: len(store.settled) == 3)

    asyncio.run(run())
    assert value(metrics, "callbacks_running") == 0
    assert value(metrics, "callback_attempts_total", outcome="delivered") == 2
    assert value(metrics, "callback_attempts_total", outcome="http_5xx") == 1
