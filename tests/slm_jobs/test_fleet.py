"""How everything stands together, as gauges show it."""

from __future__ import annotations

import pytest
from redis import Redis

from slm_jobs import keys
from slm_jobs.api_keys import KeyProof, KeySettings
from slm_jobs.batch_schemas import BatchDraft, BatchRow, RowEnd
from slm_jobs.callback_schemas import CallbackTarget
from slm_jobs.errors import StoreUnavailable
from slm_jobs.schemas import GenerationParams
from slm_jobs.store import JobStore
from tests.slm_jobs.conftest import MakeStore
from tests.slm_jobs.examples import ERROR, MODEL, WORKER, beat, claim, spec, sweep

OTHER = "other"


def test_nothing_there_is_all_zeros(store: JobStore) -> None:
    stand = store.fleet.read([MODEL, OTHER])
    assert list(stand.models) == [MODEL, OTHER]
    assert set(stand.models[MODEL]) == {0}
    assert stand[1:4] == (0, 0, 0.0)


def test_no_models_are_no_mistake(store: JobStore) -> None:
    assert store.fleet.read([]).models == {}


def test_jobs_are_counted_by_model(store: JobStore) -> None:
    for _ in range(3):
        store.create(spec(), tokens=100)
    claim(store)
    stand = store.fleet.read([MODEL, OTHER])
    assert stand.models[MODEL][:5] == (2, 1, 0, 0, 200)
    assert stand.models[OTHER][:5] == (0, 0, 0, 0, 0)


def test_the_oldest_is_found_behind_those_that_go_first(make_store: MakeStore) -> None:
    store = make_store()
    store.create(spec(priority=3), tokens=1)
    late = make_store(clock_offset_ms=60_000)
    late.create(spec(priority=9), tokens=1)
    late.create(spec(priority=0), tokens=1)
    stand = make_store(clock_offset_ms=90_000).fleet.read([MODEL])
    assert stand.models[MODEL].oldest_seconds == pytest.approx(90, abs=2)
    claim(store)  # that of priority 9
    claim(store)  # the oldest
    stand = make_store(clock_offset_ms=90_000).fleet.read([MODEL])
    assert stand.models[MODEL].oldest_seconds == pytest.approx(30, abs=2)


def test_what_crashed_a_worker_waits_too(make_store: MakeStore, redis: Redis) -> None:
    """Among the suspects, where rows stand as well, which are counted as rows."""
    store = make_store()
    for _ in range(2):
        store.create(spec(), tokens=100)
    for _ in range(2):
        claim(store)
    late = make_store(clock_offset_ms=60_000)
    assert sweep(late, redis).requeued == 2
    stand = late.fleet.read([MODEL]).models[MODEL]
    assert (stand.waiting, stand.running, stand.waiting_tokens) == (2, 0, 200)
    assert stand.oldest_seconds == pytest.approx(60, abs=2)
    [queue] = late.queues([MODEL])
    assert queue.waiting == 2


def test_jobs_that_expire_are_counted(make_store: MakeStore, redis: Redis) -> None:
    """By the sweep, and by a worker that meets them first."""
    store = make_store()
    for _ in range(3):
        store.create(spec(queue_timeout=10), tokens=1)
    late = make_store(clock_offset_ms=20_000)
    assert late.claim_next(MODEL, worker="w") == []
    assert late.fleet.read([MODEL, OTHER]).models[MODEL].expired == 3
    store.create(spec(queue_timeout=10), tokens=1)
    sweep(late, redis)
    assert late.fleet.read([MODEL, OTHER]).models[MODEL].expired == 4
    assert late.fleet.read([OTHER]).models[OTHER].expired == 0


def test_a_worker_that_cannot_be_read_hides_no_others(store: JobStore, redis: Redis) -> None:
    beat(store, "new")
    beat(store, "old")
    redis.hset(keys.WORKER_INFO, "new", '{"id": "new"}')
    assert store.fleet.read([MODEL]).models[MODEL].workers == 1
    assert [worker.id for worker in store.workers()] == ["old"]


def test_a_record_that_somebody_deleted_is_passed_over(store: JobStore, redis: Redis) -> None:
    job = store.create(spec(), tokens=1).job
    redis.delete(keys.job(job.id))
    assert store.fleet.read([MODEL]).models[MODEL].oldest_seconds == 0


def test_rows_cost_tokens_until_they_are_claimed_and_again_when_they_come_back(
    store: JobStore, redis: Redis
) -> None:
    owner = KeyProof.of(store.keys.create(KeySettings(name="k")).token)
    begun = store.batches.begin(BatchDraft(MODEL, GenerationParams()), owner=owner)
    store.batches.add_rows(
        begun.batch_id, [BatchRow(str(i), i, ["Once"], {}, 50, 1) for i in (1, 2, 3)]
    )
    store.batches.commit(begun.batch_id, "digest")
    beat(store, "w")

    def stand() -> tuple[float, ...]:
        return store.fleet.read([MODEL]).models[MODEL][2:5]

    assert stand() == (3, 0, 150)
    works = store.claim_next(MODEL, worker="w", rows=2)
    assert stand() == (1, 2, 50)
    store.hand_back(works[:1])
    assert stand() == (2, 1, 100)
    store.batches.finish([RowEnd(works[1], "failed", [], None, None, ERROR)])
    store.batches.cancel(begun.batch_id)
    assert stand() == (0, 0, 0)
    # what an earlier version had not counted in does not stay
    redis.hset(keys.ROW_TOKENS_WAITING, MODEL, -70)
    assert stand() == (0, 0, 0)
    begun = store.batches.begin(BatchDraft(MODEL, GenerationParams()), owner=owner)
    store.batches.add_rows(begun.batch_id, [BatchRow("1", 1, ["Once"], {}, 50, 1)])
    store.batches.abandon(begun.batch_id)
    assert not redis.exists(keys.ROW_TOKENS_WAITING)


def test_workers_bring_slots(store: JobStore) -> None:
    few = {"id": "w2", "models": [MODEL, OTHER], "model_slots": {OTHER: 4}}
    store.heartbeat(WORKER.model_copy(update={"id": "w1", "models": [MODEL]}), [])
    store.heartbeat(WORKER.model_copy(update=few), [])
    stand = store.fleet.read([MODEL, OTHER])
    assert stand.models[MODEL][7:] == (2, 2 * WORKER.slots)
    assert stand.models[OTHER][7:] == (1, 4)


def test_callbacks_and_dead_letters(make_store: MakeStore) -> None:
    store = make_store()
    owner = KeyProof.of(store.keys.create(KeySettings(name="k")).token)
    target = CallbackTarget("https://example.com/hook", ("failed", "running"))
    store.create(spec(callback=target), owner=owner, tokens=1)
    work = claim(store)
    assert store.fail(work, ERROR)
    stand = make_store(clock_offset_ms=60_000).fleet.read([MODEL])
    assert (stand.dead_letters, stand.callbacks_pending) == (1, 2)
    assert stand.callbacks_overdue_seconds == pytest.approx(60, abs=2)
    due, _ = store.callbacks.claim(8)
    assert len(due) == 2
    assert make_store(clock_offset_ms=30_000).fleet.read([MODEL]).callbacks_overdue_seconds == 0


def test_a_sweep_tells_whose_work_has_failed(make_store: MakeStore, redis: Redis) -> None:
    store = make_store(max_crashes=1)
    owner = KeyProof.of(store.keys.create(KeySettings(name="k")).token)
    begun = store.batches.begin(BatchDraft(MODEL, GenerationParams()), owner=owner)
    store.batches.add_rows(begun.batch_id, [BatchRow("1", 1, ["Once"], {}, 50, 1)])
    store.batches.commit(begun.batch_id, "digest")
    store.create(spec(), tokens=1)
    store.claim_next(MODEL, worker="w", jobs=False, rows=1)
    store.claim_next(MODEL, worker="w")
    report = sweep(make_store(max_crashes=1, clock_offset_ms=60_000), redis)
    assert (report.exhausted, report.failed_jobs, report.failed_rows) == (2, (MODEL,), (MODEL,))


def test_a_claimed_job_tells_how_long_it_has_waited(make_store: MakeStore) -> None:
    make_store().create(spec(), tokens=1)
    work = claim(make_store(clock_offset_ms=7_000))
    assert work.waited_seconds == pytest.approx(7, abs=2)


def test_without_redis(redis: Redis, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(store.fleet, "_run", away)
    with pytest.raises(StoreUnavailable):
        store.fleet.read([MODEL])
