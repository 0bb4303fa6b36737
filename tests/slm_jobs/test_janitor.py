"""Sweeps, tickets and signs of life, on fakeredis and on real Redis."""

from __future__ import annotations

import json

import pytest
from redis import Redis

from slm_jobs import keys
from slm_jobs.schemas import JobStatus
from slm_jobs.store import SWEEP_MOST, JobStore, SweepReport
from slm_jobs.tickets import TICKETS_MAX, queue_name
from tests.slm_jobs.conftest import MakeStore
from tests.slm_jobs.examples import (
    LEASE_MS,
    MODEL,
    WORKER,
    claim,
    complete,
    create,
    sweep,
)

QUEUE = queue_name(MODEL)


def test_a_sweep_of_an_empty_store(store: JobStore) -> None:
    assert store.sweep() == SweepReport(requeued=0, exhausted=0, tickets=0)


def test_one_of_many_sweeps(store: JobStore, make_store: MakeStore, redis: Redis) -> None:
    assert store.sweep() is not None
    assert store.sweep() is None
    assert make_store().sweep() is None
    assert 0 < redis.pttl(keys.JANITOR) <= 900


def test_an_expired_lease_goes_back_to_its_place(store: JobStore, redis: Redis) -> None:
    jobs = [create(store) for _ in range(2)]
    silent = claim(store)
    store.clock_offset_ms += LEASE_MS - 1_000
    assert sweep(store, redis).requeued == 0

    store.clock_offset_ms += 1_001
    assert sweep(store, redis).requeued == 1

    assert redis.hget(keys.job(silent.id), "crashes") == "1"
    assert store.get(silent.id).started_at is None
    assert [claim(store).id for _ in range(2)] == [job.id for job in jobs]
    assert complete(store, silent) is False


@pytest.mark.parametrize("max_crashes", [1, 3])
def test_attempts_exhausted(make_store: MakeStore, redis: Redis, max_crashes: int) -> None:
    store = make_store(max_crashes=max_crashes)
    job = create(store)
    reports = []
    for _ in range(max_crashes):
        store.hand_back([claim(store)])  # counts as no crash
        claim(store)
        store.clock_offset_ms += LEASE_MS + 1
        reports.append(sweep(store, redis))

    assert [report.exhausted for report in reports] == [0] * (max_crashes - 1) + [1]
    failed = store.get(job.id)
    assert failed.status is JobStatus.FAILED
    assert failed.error is not None
    assert failed.error.code == "attempts_exhausted"
    assert failed.finished_at is not None
    assert redis.ttl(keys.job(job.id)) > 0
    assert (store.queue_depth(MODEL), redis.zcard(keys.LEASES)) == (0, 0)


def test_a_sweep_is_bounded(store: JobStore, redis: Redis) -> None:
    for _ in range(SWEEP_MOST + 4):
        create(store)
        claim(store)
    store.clock_offset_ms += LEASE_MS + 1

    assert sweep(store, redis).requeued == SWEEP_MOST
    assert sweep(store, redis).requeued == 4
    assert sweep(store, redis).requeued == 0


def test_a_lease_without_a_record_is_dropped(store: JobStore, redis: Redis) -> None:
    job = create(store)
    claim(store)
    redis.delete(keys.job(job.id))
    store.clock_offset_ms += LEASE_MS + 1

    assert sweep(store, redis) == SweepReport(requeued=0, exhausted=0, tickets=0)
    assert redis.zcard(keys.LEASES) == 0


def test_every_waiting_job_has_a_ticket_up_to_a_bound(store: JobStore, redis: Redis) -> None:
    for _ in range(3):
        create(store)
    assert redis.llen(QUEUE) == 3

    for _ in range(TICKETS_MAX):
        create(store)
    assert redis.llen(QUEUE) == TICKETS_MAX
    tickets = [json.loads(ticket) for ticket in redis.lrange(QUEUE, 0, -1)]
    assert len({ticket["headers"]["id"] for ticket in tickets}) == TICKETS_MAX


def test_returned_work_brings_tickets(store: JobStore, redis: Redis) -> None:
    for _ in range(2):
        create(store)
    works = [claim(store) for _ in range(2)]
    redis.delete(QUEUE)

    store.hand_back(works)
    assert redis.llen(QUEUE) == 2

    works = [claim(store) for _ in range(2)]
    redis.delete(QUEUE)
    store.clock_offset_ms += LEASE_MS + 1
    sweep(store, redis)
    assert redis.llen(QUEUE) == 2


def test_a_sweep_replaces_lost_tickets(store: JobStore, redis: Redis) -> None:
    for _ in range(3):
        create(store)
    redis.ltrim(QUEUE, 1, 1)
    assert sweep(store, redis).tickets == 2
    assert redis.llen(QUEUE) == 3
    assert sweep(store, redis).tickets == 0

    claim(store)  # a ticket too many stands now: harmless, and no reason for another
    assert sweep(store, redis).tickets == 0
    assert redis.llen(QUEUE) == 3


def test_a_sweep_looks_only_at_models_with_work(store: JobStore, redis: Redis) -> None:
    create(store)
    claim(store)
    redis.delete(QUEUE)
    sweep(store, redis)
    assert redis.smembers(keys.MODELS) == set()

    create(store)
    redis.delete(QUEUE)
    assert sweep(store, redis).tickets == 1


def test_a_ticket_on_request(store: JobStore, redis: Redis) -> None:
    store.request_ticket(MODEL)
    assert redis.llen(QUEUE) == 0

    create(store)
    redis.delete(QUEUE)
    store.request_ticket(MODEL)
    store.request_ticket(MODEL)
    assert redis.llen(QUEUE) == 1


def test_workers_are_alive_for_one_lease(store: JobStore, redis: Redis) -> None:
    other = WORKER.model_copy(update={"id": "w0", "running": 0})
    assert store.workers() == []
    store.heartbeat(WORKER, [])
    store.clock_offset_ms += LEASE_MS - 1_000
    store.heartbeat(other, [])
    assert store.workers() == [other, WORKER]

    store.clock_offset_ms += 1_001
    assert store.workers() == [other]
    sweep(store, redis)
    assert redis.hkeys(keys.WORKER_INFO) == ["w0"]

    store.forget_worker("w0")
    store.forget_worker("w0")
    assert store.workers() == []
    assert not redis.exists(keys.WORKERS, keys.WORKER_INFO)


def test_a_sign_of_life_updates_the_worker(store: JobStore) -> None:
    store.heartbeat(WORKER, [])
    busier = WORKER.model_copy(update={"running": 9})
    store.heartbeat(busier, [])
    assert store.workers() == [busier]
