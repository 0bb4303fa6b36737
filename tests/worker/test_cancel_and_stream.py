"""Cancelling and streaming through a host and its store, on real Redis where channels matter."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from redis import Redis

from slm_client.redis_server import RedisServer, free_port
from slm_core import GPT, Engine, GPTConfig
from slm_jobs import keys
from slm_jobs.batch_schemas import BatchStatus
from slm_jobs.schemas import JobStatus, Work
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from tests.slm_core.conftest import random_model
from tests.worker.fakes import FakeEngine
from tests.worker.test_batcher import until
from tests.worker.test_feeder import add_batch
from tests.worker.test_host import MODEL, OTHER, make_host, serving, submit
from worker.host import Host
from worker.listener import Listener

MakeHost = Callable[..., Host]


@pytest.fixture
def store(redis_server: RedisServer) -> Iterator[JobStore]:
    with Redis.from_url(redis_server.url) as redis:
        redis.flushall()
    store = JobStore.from_settings(Settings(redis_url=redis_server.url))
    yield store
    store.close()


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def started(store: JobStore) -> Iterator[MakeHost]:
    """Makes hosts with all their threads."""
    hosts = []

    def make(engine: FakeEngine | Engine, **settings: float) -> Host:
        host = make_host(store, engine, **settings)
        hosts.append(host)
        for thread in (host._listener, host._streamer, host._leases):
            thread.start()
        until(lambda: store.workers())
        return host

    yield make
    for host in hosts:
        host.stop()


@pytest.fixture(scope="module")
def model() -> GPT:
    return random_model(GPTConfig(n_layer=2, n_head=2, n_embd=64, context_length=512))


def stream_of(store: JobStore, job_id: str, output: int = 0) -> str:
    """The text in a job's stream since its last restart."""
    text = ""
    for entry in store._redis.lrange(keys.STREAM + job_id, 0, -1):
        if entry == "restart":
            text = ""
        else:
            whose, _, piece = entry.split(" ", 2)
            text += piece if int(whose) == output else ""
    return text


def test_a_cancel_takes_effect_at_once(
    started: MakeHost, store: JobStore, engine: FakeEngine
) -> None:
    host = started(engine, lease_seconds=60.0)  # so that no heartbeat helps
    seconds = []
    for _ in range(10):
        job_id = submit(store, ["hold", "hold"])
        thread = serving(host)
        steps = engine.steps
        until(lambda steps=steps: engine.steps > steps + 5)
        began = time.monotonic()
        store.cancel(job_id)
        thread.join(5)
        seconds.append(time.monotonic() - began)
        job = store.get(job_id)
        assert job.status is JobStatus.CANCELLED
        assert [output.finish_reason for output in job.outputs] == ["cancelled"] * 2
        assert job.usage is not None
        assert job.usage.completion_tokens > 2
    assert sorted(seconds)[5] < 0.1


def test_a_cancelled_batch_ends_at_once(
    started: MakeHost, store: JobStore, engine: FakeEngine
) -> None:
    host = started(engine, lease_seconds=60.0)  # so that no heartbeat helps
    for _ in range(3):
        batch_id = add_batch(store, ["a", *["hold"] * 20])
        thread = serving(host)
        until(lambda batch_id=batch_id: store.batches.get(batch_id).counts.succeeded)
        store.batches.cancel(batch_id)
        thread.join(5)
        batch = store.batches.get(batch_id)
        assert batch.status is BatchStatus.CANCELLED
        assert (batch.counts.succeeded, batch.counts.cancelled) == (1, 20)
        assert len(host._leases) == 0


def test_what_ended_by_itself_keeps_its_reason(
    started: MakeHost, store: JobStore, engine: FakeEngine
) -> None:
    host = started(engine)
    job_id = submit(store, ["short", "hold"])
    thread = serving(host)
    until(lambda: engine.steps > 5)
    store.cancel(job_id)
    thread.join(5)
    job = store.get(job_id)
    assert job.status is JobStatus.CANCELLED
    assert [(o.text, o.finish_reason) for o in job.outputs] == [
        ("short#7", "length"),
        ("hold#8", "cancelled"),
    ]


def test_the_heartbeat_is_the_fallback(store: JobStore, engine: FakeEngine) -> None:
    host = make_host(store, engine)  # nobody listens
    job_id = submit(store, "hold")
    thread = serving(host)
    until(lambda: engine.live)
    store.cancel(job_id)
    assert store.get(job_id).status is JobStatus.RUNNING
    host._leases.beat()
    thread.join(5)
    assert store.get(job_id).status is JobStatus.CANCELLED
    host.stop()


@pytest.mark.parametrize("when", ["before it is held", "before it is submitted"])
def test_a_cancel_between_claim_and_start_is_not_missed(
    store: JobStore, engine: FakeEngine, when: str
) -> None:
    host = make_host(store, engine)
    job_id = submit(store, "hold")
    if when == "before it is held":
        host._leases.cancel(job_id, 1)
    [work] = host.claim(MODEL)
    store.cancel(job_id)
    if when == "before it is submitted":
        host._leases.cancel(job_id, 1)
    host._leases.cancel("job_of_nobody", 1)
    host.run([work])
    assert store.get(job_id).status is JobStatus.CANCELLED
    host.stop()


def test_the_cancel_of_another_attempt_is_ignored(store: JobStore, engine: FakeEngine) -> None:
    host = make_host(store, engine)
    job_id = submit(store, "a", max_tokens=20)
    [work] = host.claim(MODEL)
    host._leases.cancel(job_id, work.attempt + 1)
    host.run([work])
    assert store.get(job_id).status is JobStatus.SUCCEEDED
    host.stop()


def test_listening_goes_on_after_an_outage(
    tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    server = RedisServer(tmp_path_factory.mktemp("redis"), free_port())
    server.start()
    store = JobStore.from_settings(Settings(redis_url=server.url, redis_timeout_seconds=0.5))
    heard: list[tuple[str, int]] = []
    listener = Listener(store, "w", lambda job_id, attempt: heard.append((job_id, attempt)))
    listener.start()

    def publish(text: str) -> bool:
        with Redis.from_url(server.url) as redis:
            return bool(redis.publish(keys.COMMANDS + "w", text))

    until(lambda: publish("job_a 1"))
    until(lambda: heard == [("job_a", 1)])
    server.stop()
    until(lambda: "cannot hear of cancelled jobs" in caplog.text)
    server.start()
    until(lambda: publish("job_b 2"), timeout=10)
    until(lambda: heard[-1] == ("job_b", 2))
    listener.stop(5)
    server.stop()


def test_a_stream_is_whole_when_its_job_has_ended(
    started: MakeHost, store: JobStore, model: GPT
) -> None:
    host = started(Engine(model, slots=4))
    prompts, stop = ["Once upon", "One day"], ["e", "zz"]
    jobs = {
        submit(store, prompts, n=2, max_tokens=tokens, stream=True, stop=stop[:stops]): tokens
        for tokens in (1, 30, 200)
        for stops in (0, 1, 2)
    }
    threads = [serving(host) for _ in range(4)]
    for thread in threads:
        thread.join(60)
    for job_id in jobs:
        job = store.get(job_id)
        assert job.status is JobStatus.SUCCEEDED
        assert [stream_of(store, job_id, o.index) for o in job.outputs] == [
            o.text for o in job.outputs
        ]


def test_text_is_there_while_the_job_runs_and_a_cancel_keeps_it(
    started: MakeHost, store: JobStore, model: GPT
) -> None:
    host = started(Engine(model, slots=4))
    job_id = submit(store, "Once", max_tokens=500, stream=True, ignore_eos=True)
    thread = serving(host)
    until(lambda: stream_of(store, job_id))
    assert store.get(job_id).status is JobStatus.RUNNING
    store.cancel(job_id)
    thread.join(10)
    job = store.get(job_id)
    assert job.status is JobStatus.CANCELLED
    assert 0 < len(job.outputs[0].text) == len(stream_of(store, job_id))
    assert job.outputs[0].text == stream_of(store, job_id)


def test_a_job_that_time_cut_short_has_all_its_text_in_its_stream(
    started: MakeHost, store: JobStore, model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, slots=4)
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda: (time.sleep(0.004), step())[1])
    host = started(engine, job_timeout_seconds=0.5)
    job_id = submit(store, "Once", max_tokens=500, stream=True, ignore_eos=True)
    serving(host).join(10)
    job = store.get(job_id)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error.code == "job_timeout"
    assert job.outputs[0].finish_reason == "cancelled"
    assert stream_of(store, job_id) == job.outputs[0].text != ""


def test_a_redelivered_job_goes_on_where_its_stream_ends(
    started: MakeHost, store: JobStore, model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, slots=4)
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda: (time.sleep(0.004), step())[1])
    monkeypatch.setattr(store, "_lease_ms", 60_000)
    host = started(engine, lease_seconds=60.0)
    job_id = submit(store, "Once", max_tokens=400, stream=True, ignore_eos=True)
    thread = serving(host)
    until(lambda: len(stream_of(store, job_id)) > 20)
    before = stream_of(store, job_id)
    store.clock_offset_ms = 100_000  # the lease ends
    until(lambda: store.sweep() or store.get(job_id).status is JobStatus.QUEUED)
    host._leases.beat()  # it hears so, and takes the job again, as a suspect
    serving(host).join(30)
    thread.join(30)
    job = store.get(job_id)
    assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 2)
    assert stream_of(store, job_id) == job.outputs[0].text
    assert job.outputs[0].text.startswith(before)
    assert "restart" not in store._redis.lrange(keys.STREAM + job_id, 0, -1)


def test_one_models_flood_starves_no_other(store: JobStore) -> None:
    engine = FakeEngine()
    host = make_host(store, engine, slots=3)
    assert host.concurrency == 8
    for _ in range(10):
        submit(store, "hold")
    floods = [serving(host) for _ in range(5)]
    until(lambda: len(engine.live) == 3)
    until(lambda: sum(thread.is_alive() for thread in floods) == 3)  # the others found no place
    job_id = submit(store, "a", model=OTHER)
    serving(host, OTHER).join(5)
    assert store.get(job_id).status is JobStatus.SUCCEEDED
    assert len(host._leases) == 3
    host.stop()


def test_token_ids_go_to_the_engine_as_they_are(
    started: MakeHost, store: JobStore, model: GPT
) -> None:
    engine = Engine(model, slots=2)
    host = started(engine)
    ids = engine.tokenizer.encode("Once upon a time")
    by_text = submit(store, "Once upon a time", max_tokens=8)
    by_ids = submit(store, [ids], max_tokens=8)  # type: ignore[list-item]
    serving(host).join(10)
    assert store.get(by_ids).outputs == store.get(by_text).outputs
    assert store.get(by_ids).usage == store.get(by_text).usage


def test_rates_and_request_ids_are_told(
    started: MakeHost, store: JobStore, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    host = started(engine)
    job_id = submit(store, "boom", request_id="req-1 %s")
    submit(store, "a", max_tokens=50, priority=5)
    serving(host).join(5)
    host._leases.beat()
    [info] = store.workers()
    assert info.tokens_per_second.keys() == {MODEL}
    assert 50 < info.tokens_per_second[MODEL] < 1100  # a token in each ms at most
    assert 5 in engine.priorities
    [record] = [r for r in caplog.records if "engine_fault" in r.getMessage()]
    assert record.levelno == logging.WARNING
    assert f"{job_id} attempt 1 (request req-1 %s): failed" in record.getMessage()
    assert record.__dict__["request_id"] == "req-1 %s"


def test_slots_in_use_are_told(started: MakeHost, store: JobStore, engine: FakeEngine) -> None:
    host = started(engine)
    job_id = submit(store, ["hold", "hold"])
    thread = serving(host)
    until(lambda: len(engine.live) == 2)
    host._leases.beat()
    [info] = store.workers()
    assert (info.slots, info.model_slots, info.slots_in_use) == (4, {}, {MODEL: 2})
    store.cancel(job_id)
    thread.join(5)
    host._leases.beat()
    [info] = store.workers()
    assert info.slots_in_use == {}


def test_a_slow_stream_slows_no_decoding(
    started: MakeHost, store: JobStore, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = store.append
    hanging = threading.Event()

    def slow(work: Work, fingerprint: str, pieces: object) -> dict[int, int] | None:
        hanging.wait(1.0)
        return append(work, fingerprint, pieces)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "append", slow)
    host = started(engine)
    submit(store, "a", max_tokens=300, stream=True)
    thread = serving(host)
    until(lambda: engine.steps == 300, timeout=0.9)
    hanging.set()
    thread.join(5)
