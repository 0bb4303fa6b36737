"""A worker's dealings with the store, on a fake engine and a fake Redis."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fakeredis
import pytest

from slm_core.errors import DeviceLost, OutOfMemory
from slm_jobs.api_keys import KeyProof, KeySettings
from slm_jobs.errors import StoreUnavailable
from slm_jobs.manifest import Manifest, ModelSpec
from slm_jobs.schemas import Company, JobSpec, JobStatus
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from tests.worker.fakes import FakeEngine
from tests.worker.test_batcher import until
from worker.host import EXIT_LOST, Host
from worker.lane import SteppingEngine

MODEL, OTHER = "m", "other"


@pytest.fixture
def store() -> JobStore:
    return JobStore(fakeredis.FakeRedis(decode_responses=True))


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


def make_host(store: JobStore, engine: SteppingEngine, **settings: float) -> Host:
    """`engine` serves `MODEL`. Without its other threads: tests say when its heart beats."""
    models = {
        name: ModelSpec(name=name, checkpoint=Path("unused"), context_length=64)
        for name in (MODEL, OTHER)
    }
    values = {"slots": 4, "drain_seconds": 5.0, **settings}

    def load(spec: ModelSpec, _: Settings) -> SteppingEngine:
        return engine if spec.name == MODEL else FakeEngine()

    host = Host(Settings.model_validate(values), Manifest(models), store, load)
    host._batcher.start()
    return host


@pytest.fixture
def host(store: JobStore, engine: FakeEngine) -> Iterator[Host]:
    host = make_host(store, engine)
    yield host
    host.stop()


def submit(store: JobStore, prompt: str | list[str], model: str = MODEL, **params: object) -> str:
    prompts = [prompt] if isinstance(prompt, str) else prompt
    fields = {"model": model, "prompts": prompts, "max_tokens": 3, "seed": 7, **params}
    return store.create(JobSpec.model_validate(fields)).job.id


def serve(host: Host, model: str = MODEL) -> None:
    while works := host.claim(model):
        host.run(works)


def serving(host: Host, model: str = MODEL) -> threading.Thread:
    thread = threading.Thread(target=serve, args=(host, model), daemon=True)
    thread.start()
    return thread


def test_outputs_come_in_order_and_prompts_count_once(host: Host, store: JobStore) -> None:
    job_id = submit(store, ["a", "bb"], n=2)
    serve(host)
    job = store.get(job_id)
    assert job.status is JobStatus.SUCCEEDED
    assert [(o.index, o.text) for o in job.outputs] == [
        (0, "a#7"),
        (1, "a#8"),
        (2, "bb#9"),
        (3, "bb#10"),
    ]
    assert job.usage is not None
    assert job.usage.model_dump() == {
        "prompt_tokens": 3,
        "completion_tokens": 12,
        "total_tokens": 15,
    }


@pytest.mark.parametrize(
    ("prompt", "code"), [("boom", "engine_fault"), ("long", "invalid_request")]
)
def test_a_failing_job_fails_alone(host: Host, store: JobStore, prompt: str, code: str) -> None:
    ids = [submit(store, text) for text in ("a", prompt, "b")]
    threads = [threading.Thread(target=serve, args=(host,)) for _ in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    jobs = [store.get(job_id) for job_id in ids]
    assert [job.status.value for job in jobs] == ["succeeded", "failed", "succeeded"]
    assert jobs[1].error is not None
    assert jobs[1].error.code == code


def test_a_job_that_runs_too_long_fails(store: JobStore, engine: FakeEngine) -> None:
    host = make_host(store, engine, job_timeout_seconds=0.05)
    job_id = submit(store, "hold")
    serve(host)
    job = store.get(job_id)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error.code == "job_timeout"
    assert not engine.live
    host.stop()


def test_what_time_cut_short_keeps_its_text_and_counts(store: JobStore) -> None:
    token = store.keys.create(KeySettings(name="k", tokens_per_minute=200)).token
    owner = KeyProof.of(token)
    spec = JobSpec(model=MODEL, prompts=["short", "hold"], max_tokens=3, seed=7)
    created = store.create(spec, owner=owner, tokens=200)
    host = make_host(store, FakeEngine(step_seconds=0.01), job_timeout_seconds=0.1)
    serve(host)
    job = store.get(created.job.id)
    assert job.status is JobStatus.FAILED
    assert [(o.text, o.finish_reason) for o in job.outputs] == [
        ("short#7", "length"),
        ("hold#8", "cancelled"),
    ]
    assert job.usage is not None
    assert job.usage.prompt_tokens == 9
    assert job.usage.completion_tokens > 3
    quotas = store.create(spec, owner=owner).quotas
    [left] = [quota.remaining for quota in quotas if quota.policy == "tokens"]
    # what it did not use came back at once; the rest does by 3.3 a second
    assert 0 <= left - (200 - job.usage.total_tokens) < 10
    host.stop()


def test_a_hung_engine_fails_without_what_it_has(
    store: JobStore, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.host.ENDING_SECONDS", 0.05)
    hung, step = threading.Event(), engine.step
    monkeypatch.setattr(engine, "step", lambda: (hung.wait(10), step())[1])
    host = make_host(store, engine, job_timeout_seconds=0.05)
    job_id = submit(store, "hold")
    serve(host)
    job = store.get(job_id)
    assert job.error is not None
    assert (job.error.code, job.outputs, job.usage) == ("job_timeout", [], None)
    hung.set()
    until(lambda: not engine.live)
    host.stop()


def test_a_client_that_cancelled_before_the_deadline_wins(store: JobStore) -> None:
    engine = FakeEngine(step_seconds=0.3)
    host = make_host(store, engine, job_timeout_seconds=0.05)
    job_id = submit(store, "hold")
    host._leases.cancel(job_id, 1)
    serve(host)
    assert store.get(job_id).status is JobStatus.CANCELLED
    host.stop()


def test_what_ends_just_after_the_deadline_is_complete(store: JobStore) -> None:
    engine = FakeEngine(step_seconds=0.3)
    host = make_host(store, engine, job_timeout_seconds=0.05)
    job_id = submit(store, "a", max_tokens=1)
    serve(host)
    assert store.get(job_id).status is JobStatus.SUCCEEDED
    host.stop()


def test_a_lost_lease_cancels_the_work_and_commits_nothing(
    host: Host, store: JobStore, engine: FakeEngine
) -> None:
    job_id = submit(store, "hold")
    thread = threading.Thread(target=serve, args=(host,))
    thread.start()
    until(lambda: engine.live)
    store.clock_offset_ms = 60_000
    assert store.sweep() is not None
    assert store.claim_next(MODEL, worker="other")
    host._leases.beat()
    thread.join(5)
    until(lambda: not engine.live)
    job = store.get(job_id)
    assert (job.status, job.attempt) == (JobStatus.RUNNING, 2)


def test_heartbeats_keep_the_lease(host: Host, store: JobStore, engine: FakeEngine) -> None:
    submit(store, "hold")
    thread = threading.Thread(target=serve, args=(host,), daemon=True)
    thread.start()
    until(lambda: engine.live)
    for seconds in (10, 20, 30):
        store.clock_offset_ms = seconds * 1000
        host._leases.beat()
    report = store.sweep()
    assert report is not None
    assert report.requeued == 0
    [info] = store.workers()
    assert (info.id, info.models, info.running) == (host.id, [MODEL, OTHER], 1)
    host.stop()
    thread.join(5)
    assert store.workers() == []


def test_draining_lets_short_work_end_and_hands_long_work_back(
    store: JobStore, engine: FakeEngine
) -> None:
    host = make_host(store, engine, drain_seconds=0.5)
    short, long = submit(store, "a", max_tokens=100), submit(store, "hold")
    threads = [threading.Thread(target=serve, args=(host,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    until(lambda: len(engine.live) == 2)
    late = submit(store, "late")
    host.drain()
    for thread in threads:
        thread.join(5)
    assert store.get(short).status is JobStatus.SUCCEEDED
    until(lambda: store.get(long).status is JobStatus.QUEUED)
    assert store.get(late).status is JobStatus.QUEUED
    assert host.claim(MODEL) == []
    host.stop()
    assert store.queue_depth(MODEL) == 2
    [successor] = store.claim_next(MODEL, worker="successor")
    assert successor.id == long  # in its old place


def test_work_claimed_while_leaving_goes_back_too(store: JobStore, engine: FakeEngine) -> None:
    host = make_host(store, engine)
    job_id = submit(store, "a")
    [work] = host.claim(MODEL)
    host.stop()
    host.run([work])
    assert store.get(job_id).status is JobStatus.QUEUED


def test_redis_away_claims_nothing_and_keeps_the_outcome(
    engine: FakeEngine,
) -> None:
    server = fakeredis.FakeServer()
    store = JobStore(fakeredis.FakeRedis(server=server, decode_responses=True))
    host = make_host(store, engine)
    job_id = submit(store, "a")
    [work] = host.claim(MODEL)
    server.connected = False
    assert host.claim(MODEL) == []
    host.request_ticket(MODEL)
    thread = threading.Thread(target=host.run, args=([work],))
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    server.connected = True
    thread.join(5)
    assert store.get(job_id).status is JobStatus.SUCCEEDED
    host.stop()


def test_a_mistake_of_ours_does_not_hold_the_job_forever(
    host: Host, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(store, "a")
    [work] = host.claim(MODEL)
    monkeypatch.setattr(store, "complete", lambda *_, **__: 1 / 0)
    host.run([work])
    error = store.get(work.id).error
    assert error is not None
    assert (error.code, error.message) == (
        "internal_error",
        "the worker failed: ZeroDivisionError",
    )


def test_a_lost_job_comes_back_to_the_same_worker_when_it_was_dropped(
    host: Host, store: JobStore, engine: FakeEngine
) -> None:
    job_id = submit(store, "hold")
    thread = serving(host)
    until(lambda: engine.live)
    store.clock_offset_ms = 60_000
    store.sweep()
    assert host.claim(MODEL) == []  # it may have crashed a worker, and this one holds work
    host._leases.beat()
    until(lambda: len(engine.added) == 2 and len(engine.live) == 1)
    assert thread.is_alive()
    assert store.get(job_id).attempt == 2


def test_a_second_signal_ends_the_grace(store: JobStore, engine: FakeEngine) -> None:
    host = make_host(store, engine, drain_seconds=60.0)
    job_id = submit(store, "hold")
    thread = threading.Thread(target=serve, args=(host,))
    thread.start()
    until(lambda: engine.live)
    host.drain()
    time.sleep(0.05)
    assert store.get(job_id).status is JobStatus.RUNNING
    host.drain()
    thread.join(5)
    host.stop()
    assert store.get(job_id).status is JobStatus.QUEUED


def test_a_hung_engine_ends_the_process(
    store: JobStore, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = make_host(store, engine)
    ended = threading.Event()
    monkeypatch.setattr("worker.leases.os._exit", lambda _: ended.set())
    monkeypatch.setattr("worker.leases.logging.shutdown", lambda: None)
    monkeypatch.setattr(host._leases, "_stalled_for", lambda: 31.0)
    host._leases.start()
    assert ended.wait(5)
    host.stop()


# When the engines are lost


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    codes: list[int] = []
    monkeypatch.setattr("worker.host.os._exit", codes.append)
    monkeypatch.setattr("worker.host.logging.shutdown", lambda: None)
    return codes


def run_all(host: Host, count: int) -> None:
    threads = [serving(host) for _ in range(count)]
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_what_finds_no_memory_together_runs_in_parts(
    host: Host, store: JobStore, engine: FakeEngine
) -> None:
    engine.fits = 1
    ids = [submit(store, text) for text in ("a", "b", "c")]
    run_all(host, 3)
    assert {store.get(job_id).status for job_id in ids} == {JobStatus.SUCCEEDED}


def test_a_lost_device_fails_nothing(host: Host, store: JobStore, exits: list[int]) -> None:
    ids = [submit(store, text) for text in ("hold", "broken", "hold")]
    run_all(host, 3)
    until(lambda: bool(exits))
    assert exits == [EXIT_LOST]
    assert [store.get(job_id).status for job_id in ids] == [JobStatus.QUEUED] * 3
    assert not store.workers()
    again = store.claim_next(MODEL, worker="another")
    assert [(w.id, w.attempt, w.company) for w in again] == [(ids[0], 2, Company.SUSPECTS)]


@pytest.mark.parametrize("error", [OutOfMemory("no memory"), DeviceLost("it says nothing")])
def test_a_model_that_cannot_be_loaded_for_want_of_a_machine_fails_nothing(
    host: Host, store: JobStore, exits: list[int], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def load() -> FakeEngine:
        raise error

    monkeypatch.setattr(host._batcher._lanes[OTHER], "_load", load)
    innocent, asked = submit(store, "hold"), submit(store, "a", model=OTHER)
    threads = [serving(host), serving(host, OTHER)]
    until(lambda: bool(exits))
    for thread in threads:
        thread.join(5)
    assert exits == [EXIT_LOST]
    for job_id in (innocent, asked):
        assert store.get(job_id).status is JobStatus.QUEUED
    [suspect] = store.claim_next(OTHER, worker="another")
    assert (suspect.id, suspect.company) == (asked, Company.SUSPECTS)
    [other] = store.claim_next(MODEL, worker="a third")
    assert (other.id, other.company) == (innocent, Company.ANY)


def test_what_a_lost_reply_held_is_given_back_by_the_next_heartbeat(
    host: Host, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = submit(store, "a")
    claim_next = store.claim_next

    def lose_the_reply(*args: object, **kwargs: object) -> None:
        claim_next(*args, **kwargs)
        raise StoreUnavailable("its reply was lost")

    with monkeypatch.context() as patch:
        patch.setattr(store, "claim_next", lose_the_reply)
        assert host.claim(MODEL) == []
    assert store.get(job_id).status is JobStatus.RUNNING
    host._leases.start()
    until(lambda: store.get(job_id).status is JobStatus.QUEUED)
    [work] = host.claim(MODEL)
    assert (work.id, work.attempt, work.company) == (job_id, 2, Company.ANY)


def test_who_finds_no_memory_alone_goes_back_as_a_suspect(
    host: Host, store: JobStore, exits: list[int]
) -> None:
    huge, innocent = submit(store, "huge"), submit(store, "hold")
    run_all(host, 2)
    until(lambda: bool(exits))
    assert store.get(innocent).status is JobStatus.QUEUED
    assert store.get(huge).status is JobStatus.QUEUED
    [suspect] = store.claim_next(MODEL, worker="another")
    assert (suspect.id, suspect.company) == (huge, Company.SUSPECTS)


# Run deadlines


def test_a_job_past_its_run_deadline_fails_and_keeps_its_text(host: Host, store: JobStore) -> None:
    job_id = submit(store, ["a", "hold"], run_timeout=0.2)
    serve(host)
    job = store.get(job_id)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error.code == "deadline_exceeded"
    assert [(o.text, o.finish_reason) for o in job.outputs] == [
        ("a#7", "length"),
        ("hold#8", "cancelled"),
    ]


def test_a_job_within_its_run_deadline_succeeds(host: Host, store: JobStore) -> None:
    job_id = submit(store, "a", run_timeout=60)
    serve(host)
    assert store.get(job_id).status is JobStatus.SUCCEEDED
