"""A job's life in the store, on fakeredis and on real Redis."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from redis import Redis
from ulid import ULID

from slm_jobs import keys
from slm_jobs.errors import JobNotFound
from slm_jobs.records import new_job_id
from slm_jobs.schemas import SEED_LIMIT, JobStatus
from slm_jobs.store import JobStore
from tests.slm_jobs.conftest import MakeStore
from tests.slm_jobs.examples import (
    ERROR,
    LEASE_MS,
    MODEL,
    OUTPUTS,
    USAGE,
    WORKER,
    claim,
    complete,
    create,
    spec,
    sweep,
)


def test_ping(store: JobStore) -> None:
    store.ping()


def test_a_new_job_is_queued(store: JobStore) -> None:
    job = create(store, metadata={"page": "7"})

    assert job.id.startswith("job_")
    ULID.from_str(job.id.removeprefix("job_"))
    assert (job.status, job.model, job.attempt) == (JobStatus.QUEUED, MODEL, 0)
    assert (job.started_at, job.finished_at, job.outputs, job.error) == (None, None, [], None)
    assert job.metadata == {"page": "7"}
    assert abs(datetime.now(UTC) - job.created_at) < timedelta(minutes=1)
    assert store.get(job.id) == job
    assert store.queue_depth(MODEL) == 1


def test_a_seed_is_kept_and_a_missing_one_drawn(store: JobStore) -> None:
    largest = SEED_LIMIT - 65
    assert create(store, seed=largest).seed == largest
    assert claim(store).spec.seed == largest

    drawn = {create(store).seed for _ in range(8)}
    assert len(drawn) == 8
    assert {claim(store).spec.seed for _ in range(8)} == drawn


def test_create_again_returns_the_same_job(store: JobStore, redis: Redis) -> None:
    job_id = new_job_id()
    first = store.create(spec(), job_id=job_id)
    assert not first.replayed
    assert store.create(spec(), job_id=job_id) == (first.job, False, [])

    work = claim(store)
    running = store.create(spec(), job_id=job_id).job
    assert (running.status, running.seed) == (JobStatus.RUNNING, first.job.seed)

    complete(store, work)
    assert store.create(spec(), job_id=job_id).job == store.get(job_id)
    assert store.queue_depth(MODEL) == 0
    assert redis.get(keys.SEQUENCE) == "1"


def test_an_unknown_job_is_not_found(store: JobStore) -> None:
    with pytest.raises(JobNotFound, match="job_nope"):
        store.get("job_nope")


def test_a_claim_leases_the_oldest_job(store: JobStore) -> None:
    prompts = [f"{n} 100% \\1 {{{{id}}}} é\n\0" for n in range(3)]
    jobs = [create(store, prompt, n=2, stop=["."]) for prompt in prompts]

    works = [claim(store) for _ in jobs]

    assert [work.id for work in works] == [job.id for job in jobs]
    assert [work.spec.prompts for work in works] == [[prompt] for prompt in prompts]
    assert {(work.attempt, work.model, work.spec.model) for work in works} == {(1, MODEL, MODEL)}
    assert (works[0].spec.n, works[0].spec.stop) == (2, ["."])
    running = store.get(jobs[0].id)
    assert (running.status, running.attempt) == (JobStatus.RUNNING, 1)
    assert running.started_at is not None
    assert running.started_at >= running.created_at


def test_a_claim_finds_nothing(store: JobStore) -> None:
    create(store)
    assert store.claim_next("another", worker="w1") == []
    claim(store)
    assert store.claim_next(MODEL, worker="w1") == []


def test_a_claim_drops_ids_without_a_record(store: JobStore, redis: Redis) -> None:
    gone, there = create(store), create(store)
    redis.delete(keys.job(gone.id))

    assert claim(store).id == there.id
    assert store.queue_depth(MODEL) == 0


def test_complete(store: JobStore, redis: Redis) -> None:
    create(store)
    work = claim(store)
    assert complete(store, work) is True

    job = store.get(work.id)
    assert (job.status, job.outputs, job.usage) == (JobStatus.SUCCEEDED, OUTPUTS, USAGE)
    assert job.finished_at is not None
    assert job.started_at is not None
    assert job.finished_at >= job.started_at
    assert redis.hget(keys.job(work.id), "fingerprint") == "fp32-avx2"
    assert redis.zcard(keys.LEASES) == 0


def test_fail(store: JobStore) -> None:
    create(store)
    work = claim(store)
    assert store.fail(work, ERROR) is True

    job = store.get(work.id)
    assert (job.status, job.error, job.outputs) == (JobStatus.FAILED, ERROR, [])
    assert job.finished_at is not None


def test_only_an_ended_job_expires(make_store: MakeStore, redis: Redis) -> None:
    store = make_store(job_ttl_seconds=77)
    job = create(store)
    assert redis.ttl(keys.job(job.id)) == -1
    work = claim(store)
    assert redis.ttl(keys.job(job.id)) == -1
    store.hand_back([work])
    assert redis.ttl(keys.job(job.id)) == -1

    complete(store, claim(store))
    assert 70 < redis.ttl(keys.job(job.id)) <= 77


def test_hand_back_returns_work_to_its_place(store: JobStore, redis: Redis) -> None:
    jobs = [create(store) for _ in range(4)]
    works = [claim(store) for _ in range(3)]

    assert store.hand_back([works[2], works[0]]) == 2

    returned = store.get(jobs[0].id)
    assert (returned.status, returned.attempt, returned.started_at) == (JobStatus.QUEUED, 1, None)
    assert redis.hget(keys.job(returned.id), "crashes") == "0"
    again = [claim(store) for _ in range(3)]
    assert [(work.id, work.attempt) for work in again] == [
        (jobs[0].id, 2),
        (jobs[2].id, 2),
        (jobs[3].id, 1),
    ]


def test_nothing_to_hand_back(store: JobStore) -> None:
    assert store.hand_back([]) == 0


def test_a_stale_attempt_changes_nothing(store: JobStore, redis: Redis) -> None:
    create(store)
    stale = claim(store)
    store.hand_back([stale])
    for state in (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.SUCCEEDED):
        if state is JobStatus.RUNNING:
            current = claim(store)
        elif state is JobStatus.SUCCEEDED:
            complete(store, current)
        before = redis.hgetall(keys.job(stale.id)), redis.zrange(keys.LEASES, 0, -1)
        assert store.get(stale.id).status is state

        assert complete(store, stale) is False
        assert store.fail(stale, ERROR) is False
        assert store.hand_back([stale]) == 0
        assert store.heartbeat(WORKER, [stale]) == ({stale.id}, set())

        after = redis.hgetall(keys.job(stale.id)), redis.zrange(keys.LEASES, 0, -1)
        assert after == before


def test_an_ended_job_cannot_end_again(store: JobStore) -> None:
    create(store)
    work = claim(store)
    assert complete(store, work) is True
    job = store.get(work.id)

    assert complete(store, work) is False  # as after a lost reply
    assert store.fail(work, ERROR) is False
    assert store.hand_back([work]) == 0
    assert store.get(work.id) == job


def test_an_expired_lease_that_nobody_took_back_completes(store: JobStore) -> None:
    create(store)
    work = claim(store)
    store.clock_offset_ms += 2 * LEASE_MS
    assert complete(store, work) is True


def test_a_heartbeat_extends_the_leases_of_owned_work(store: JobStore, redis: Redis) -> None:
    for _ in range(3):
        create(store)
    kept, done, silent = (claim(store) for _ in range(3))
    complete(store, done)
    never = kept.model_copy(update={"id": "job_never"})

    store.clock_offset_ms += LEASE_MS - 1_000
    assert store.heartbeat(WORKER, [kept, done, never]) == ({done.id, never.id}, set())
    store.clock_offset_ms += LEASE_MS - 1_000

    assert sweep(store, redis).requeued == 1
    assert store.get(kept.id).status is JobStatus.RUNNING
    assert store.get(silent.id).status is JobStatus.QUEUED


def test_a_worker_that_takes_its_own_lost_job_again_owns_it(store: JobStore, redis: Redis) -> None:
    create(store)
    lost = claim(store)
    store.clock_offset_ms += LEASE_MS + 1
    sweep(store, redis)
    again = claim(store)

    assert store.heartbeat(WORKER, [again, lost]) == (set(), set())
    assert store.heartbeat(WORKER, [lost, again]) == (set(), set())
    assert store.heartbeat(WORKER, [lost]) == ({lost.id}, set())
