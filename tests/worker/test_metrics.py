"""What a worker counts, on a fake engine and a fake Redis."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import fakeredis
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from slm_jobs.schemas import JobStatus
from slm_jobs.store import JobStore
from tests.worker.fakes import FakeEngine
from tests.worker.test_batcher import until
from tests.worker.test_feeder import add_batch
from tests.worker.test_host import MODEL, OTHER, make_host, serve, serving, submit
from worker.host import Host
from worker.metrics import ERROR_CODES, REASONS
from worker.step_stats import STEP_BUCKETS, Histogram, StepStats

LATENCIES = ("time_to_first_token", "e2e_request_latency", "request_queue_time")
LATENCIES += ("request_prefill_time", "request_decode_time")


@pytest.fixture
def store() -> JobStore:
    return JobStore(fakeredis.FakeRedis(decode_responses=True))


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def host(store: JobStore, engine: FakeEngine) -> Iterator[Host]:
    host = make_host(store, engine)
    yield host
    host.stop()


def value(host: Host, name: str, **labels: str) -> float:
    if "model" in labels:
        labels["model_name"] = labels.pop("model")
    elif "leases" not in name:
        labels["model_name"] = MODEL
    found = host.metrics.registry.get_sample_value(f"slm_{name}", labels)
    assert found is not None, (name, labels)
    return found


def counts(host: Host, *names: str) -> list[float]:
    return [value(host, f"{name}_seconds_count") for name in names]


def test_every_series_is_there_from_the_start_at_0(host: Host) -> None:
    page = generate_latest(host.metrics.registry).decode()
    found = set()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if family.name.startswith("slm_") and family.name != "slm_engine_slots":
                assert sample.value == 0, sample
                found.add((sample.name, *sorted(sample.labels.items())))
    for model in (("model_name", MODEL), ("model_name", OTHER)):
        for reason in REASONS:
            assert ("slm_request_success_total", ("finished_reason", reason), model) in found
        for code in ERROR_CODES:
            assert ("slm_request_failure_total", ("code", code), model) in found
        for latency in LATENCIES:
            assert (f"slm_{latency}_seconds_count", model) in found
    assert not any("_created" in name for name, *_ in found)


def test_a_job_takes_its_time(host: Host, store: JobStore) -> None:
    submit(store, "a", max_tokens=5)
    store.clock_offset_ms = 3_000
    serve(host)
    assert counts(host, *LATENCIES) == [1] * 5
    queue = value(host, "request_queue_time_seconds_sum")
    first = value(host, "time_to_first_token_seconds_sum")
    whole = value(host, "e2e_request_latency_seconds_sum")
    assert 2.9 < queue < first < whole
    spent = value(host, "request_prefill_time_seconds_sum")
    assert first == pytest.approx(queue + spent)
    spent += value(host, "request_decode_time_seconds_sum")
    assert queue + spent <= whole
    assert value(host, "request_decode_time_seconds_sum") >= 4 * 0.001  # steps of the fake engine
    assert value(host, "request_success_total", finished_reason="length") == 1
    assert value(host, "generation_tokens_total") == 5
    assert value(host, "generation_tokens_total", model=OTHER) == 0


def test_tokens_of_a_step_share_their_latency(host: Host, store: JobStore) -> None:
    submit(store, ["a", "b"], n=2, max_tokens=4)
    serve(host)
    assert value(host, "generation_tokens_total") == 16
    assert value(host, "inter_token_latency_seconds_count") == 12  # not the first ones
    assert value(host, "engine_step_seconds_count", phase="decode") == 4
    assert value(host, "request_success_total", finished_reason="length") == 1  # one job


def test_rows_count_but_not_their_times(host: Host, store: JobStore) -> None:
    add_batch(store, ["a", "long", "boom", "b"])
    serve(host)
    assert value(host, "request_success_total", finished_reason="length") == 2
    assert value(host, "request_failure_total", code="invalid_request") == 1
    assert value(host, "request_failure_total", code="engine_fault") == 1
    assert counts(host, *LATENCIES) == [0] * 5
    assert value(host, "dead_lettered_total") == 0
    assert value(host, "inter_token_latency_seconds_count") > 0


@pytest.mark.parametrize(
    ("prompt", "code"), [("boom", "engine_fault"), ("long", "invalid_request")]
)
def test_a_job_that_fails(host: Host, store: JobStore, prompt: str, code: str) -> None:
    submit(store, prompt)
    serve(host)
    assert value(host, "request_failure_total", code=code) == 1
    assert value(host, "dead_lettered_total") == 1
    assert counts(host, *LATENCIES) == [0] * 5


def test_a_job_that_is_cut_short(host: Host, store: JobStore, engine: FakeEngine) -> None:
    job_id = submit(store, "hold")
    thread = serving(host)
    until(lambda: engine.live)
    host._leases.cancel(job_id, 1)
    thread.join(5)
    assert store.get(job_id).status is JobStatus.CANCELLED
    assert value(host, "request_success_total", finished_reason="cancelled") == 1
    assert counts(host, "time_to_first_token", "e2e_request_latency") == [1, 0]


def test_a_job_without_a_token_has_no_time_to_its_first(
    host: Host, store: JobStore, engine: FakeEngine
) -> None:
    """It was cut short while it waited for a slot."""
    engine._slots = 1
    first = submit(store, "hold")
    threads = [serving(host)]
    until(lambda: engine.live)
    second = submit(store, "hold")
    threads.append(serving(host))
    until(lambda: engine.waiting)
    host._leases.cancel(second, 1)
    threads[1].join(5)
    assert store.get(second).status is JobStatus.CANCELLED
    assert counts(host, *LATENCIES) == [0, 0, 1, 0, 0]
    host._leases.cancel(first, 1)
    threads[0].join(5)
    assert counts(host, *LATENCIES) == [1, 0, 2, 1, 0]


def test_time_that_is_up_is_a_failure(store: JobStore, engine: FakeEngine) -> None:
    host = make_host(store, engine, job_timeout_seconds=0.05)
    submit(store, "hold")
    serve(host)
    assert value(host, "request_failure_total", code="job_timeout") == 1
    assert counts(host, "time_to_first_token", "e2e_request_latency") == [1, 0]
    host.stop()


def test_results_that_come_too_late(host: Host, store: JobStore, engine: FakeEngine) -> None:
    """Of a job and of a row whose lease somebody else has, which the worker has not heard yet."""
    engine.step_seconds = 0.01
    submit(store, "a", max_tokens=30)
    add_batch(store, ["b"], max_tokens=30)
    threads = [serving(host), serving(host)]
    until(lambda: len(engine.live) == 2)
    host._claims.close()  # or it would take them again
    store.clock_offset_ms = 60_000
    assert store.sweep() is not None
    for thread in threads:
        thread.join(10)
    until(lambda: value(host, "fence_rejections_total") == 2)
    assert value(host, "request_success_total", finished_reason="length") == 0
    assert counts(host, *LATENCIES) == [0] * 5


def test_a_sweep_is_counted_by_who_makes_it(store: JobStore, engine: FakeEngine) -> None:
    store._max_crashes = 1
    host = make_host(store, engine)
    job_id = submit(store, "a")
    store.claim_next(MODEL, worker="dead")
    store.clock_offset_ms = 60_000
    host._leases.start()
    until(lambda: store.get(job_id).status is JobStatus.FAILED)
    until(lambda: value(host, "leases_recovered_total") == 1)
    assert value(host, "request_failure_total", code="attempts_exhausted") == 1
    assert value(host, "dead_lettered_total") == 1
    host.stop()


def test_gauges_show_the_engine_as_it_is(host: Host, store: JobStore, engine: FakeEngine) -> None:
    assert value(host, "engine_slots") == 4
    engine.stats.kv_tokens, engine.stats.computed_tokens = 250, 40
    engine.stats.prefill_tokens, engine.stats.decode_tokens = 10, 20
    job_id = submit(store, ["hold", "hold"])
    thread = serving(host)
    until(lambda: value(host, "slots_in_use") == 2)
    assert value(host, "kv_cache_usage_ratio") == 0.25
    assert value(host, "kv_cache_usage_ratio", model=OTHER) == 0  # not loaded yet
    assert value(host, "prompt_tokens_total") == 10
    assert value(host, "engine_tokens_needed_total") == 30
    assert value(host, "engine_tokens_computed_total") == 40
    host._leases.cancel(job_id, 1)
    thread.join(5)
    until(lambda: value(host, "slots_in_use") == 0)


def test_a_step_that_takes_prompts_in_is_told_apart(
    host: Host, store: JobStore, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, seen = engine.step, threading.Event()

    def takes_in_once() -> object:
        if not seen.is_set():
            seen.set()
            engine.stats.prefill_tokens += 3
        return step()

    monkeypatch.setattr(engine, "step", takes_in_once)
    submit(store, "a", max_tokens=4)
    serve(host)
    assert value(host, "engine_step_seconds_count", phase="prefill") == 1
    assert value(host, "engine_step_seconds_count", phase="decode") == 3


def test_buckets_hold_what_lies_up_to_their_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for number, weight in ((0.5, 1), (1.0, 2), (1.5, 3), (9.0, 4), (0.1, 0)):
        histogram.observe(number, weight)
    assert histogram.counts == [3, 3, 4]
    assert histogram.total == pytest.approx(0.5 + 2 + 4.5 + 36)
    assert list(STEP_BUCKETS) == sorted(STEP_BUCKETS)


def test_the_wait_for_a_token_counts_what_the_thread_did_in_between() -> None:
    steps = StepStats()
    steps.note(10.0, 10.1, 3, 3, prefill=True)
    steps.note(10.5, 10.6, 3, 0, prefill=False)  # another model had a step of its own
    steps.note(20.0, 20.1, 1, 1, prefill=True)  # nothing ran before: nobody waited
    assert sum(steps.inter_token.counts) == 3
    assert steps.inter_token.total == pytest.approx(3 * 0.5)
    assert steps.generated_tokens == 7
    assert 0 < steps.tokens_per_second < 7 / 0.2


def test_a_scrape_meets_an_engine_that_moves_on(host: Host, store: JobStore) -> None:
    """Pages that are made while steps go on are each whole: buckets only ever grow."""
    submit(store, ["a"] * 4, max_tokens=200)
    thread = serving(host)
    before = 0.0
    while thread.is_alive():
        page = generate_latest(host.metrics.registry).decode()
        [family] = (
            family
            for family in text_string_to_metric_families(page)
            if family.name == "slm_inter_token_latency_seconds"
        )
        buckets = [
            s.value for s in family.samples if "le" in s.labels and MODEL in s.labels.values()
        ]
        assert buckets == sorted(buckets)
        assert buckets[-1] >= before
        before = buckets[-1]
    thread.join(5)
    assert value(host, "inter_token_latency_seconds_count") == 4 * 199
