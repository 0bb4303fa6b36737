"""Work that a dead worker held: it runs apart from other work, and neither starves."""

from __future__ import annotations

import json

import pytest
from redis import Redis

from slm_jobs import keys
from slm_jobs.schemas import Company, JobStatus, Work
from slm_jobs.store import JobStore
from tests.slm_jobs.examples import (
    LEASE_MS,
    MODEL,
    beat,
    claim,
    complete,
    create,
    spec,
    sweep,
)

HELD_WORK = Company.ANY  # what a worker says that holds ordinary work


def crash(store: JobStore, redis: Redis, *, times: int = 1, model: str = MODEL) -> None:
    """Everything that waits is claimed by a worker that dies; so many times."""
    for _ in range(times):
        while store.claim_next(model, worker="dead", company=Company.SUSPECTS) or store.claim_next(
            model, worker="dead"
        ):
            pass
        store.clock_offset_ms += LEASE_MS + 1
        sweep(store, redis)
        redis.delete(keys.TURN, keys.TURN_JOBS, keys.APART)


def ask(store: JobStore, worker: str, company: Company | None = None, model: str = MODEL) -> str:
    """What it is given: an id, and what may run beside it."""
    works = store.claim_next(model, worker=worker, company=company)
    return f"{works[0].id} {works[0].company}" if works else ""


def test_idle_workers_take_suspects_whoever_empties_itself(store: JobStore, redis: Redis) -> None:
    first, second, third = (create(store).id for _ in range(3))
    crash(store, redis)
    beat(store, "busy", "idle", "other")
    assert ask(store, "busy", HELD_WORK) == ""  # it empties itself now
    job = create(store).id
    assert ask(store, "idle") == f"{job} any"
    assert ask(store, "idle", HELD_WORK) == ""
    assert ask(store, "idle") == f"{first} suspects"
    assert ask(store, "other") == f"{second} suspects"
    assert ask(store, "busy") == f"{third} suspects"


def test_one_worker_stays_for_jobs(store: JobStore, redis: Redis) -> None:
    for _ in range(3):
        create(store)
    crash(store, redis, times=2)
    beat(store, "w1", "w2", "w3")
    assert ask(store, "w1").endswith("none")
    assert ask(store, "w2").endswith("none")
    assert ask(store, "w3") == ""
    job = create(store).id
    assert ask(store, "w3") == f"{job} any"


def test_the_turn_of_a_dead_worker_is_over(store: JobStore, redis: Redis) -> None:
    create(store), create(store)
    crash(store, redis)
    beat(store, "w2")
    assert ask(store, "w2")  # takes the turn, and dies
    store.clock_offset_ms += LEASE_MS + 1
    beat(store, "w3")
    sweep(store, redis)
    assert redis.get(keys.TURN) is None
    assert redis.zrange(keys.APART, 0, -1) == []
    assert ask(store, "w3", HELD_WORK) == ""  # it empties itself now
    assert ask(store, "w3")


def test_a_turn_ends_with_its_suspects_also_for_other_models(store: JobStore, redis: Redis) -> None:
    suspect = store.create(spec(model="a")).job.id
    crash(store, redis, model="a")
    beat(store, "w1", "w2", "w3")
    assert ask(store, "w1", HELD_WORK, "a") == ""
    job = store.create(spec(model="b")).job.id
    assert ask(store, "w1", None, "b") == ""  # it waits for the suspect
    [work] = store.claim_next("a", worker="w2")
    assert work.id == suspect
    assert ask(store, "w1", None, "b") == f"{job} any"
    assert redis.get(keys.TURN) is None


def test_jobs_come_between_suspects_however_long_these_run(store: JobStore, redis: Redis) -> None:
    suspects = [create(store).id for _ in range(2)]
    crash(store, redis, times=2)
    jobs = [create(store).id for _ in range(2)]
    beat(store, "w1")
    assert ask(store, "w1") == f"{suspects[0]} none"
    assert redis.pttl(keys.TURN_JOBS) > 1000 * 900
    redis.delete(keys.TURN)  # which ran out meanwhile
    assert ask(store, "w1") == f"{jobs[0]} any"


def test_jobs_come_also_where_suspects_never_end(store: JobStore, redis: Redis) -> None:
    suspects = [create(store).id for _ in range(3)]
    crash(store, redis)
    job = create(store).id
    assert ask(store, "w1") == f"{suspects[0]} suspects"
    assert ask(store, "w1", Company.SUSPECTS) == f"{suspects[1]} suspects"
    store.clock_offset_ms += 1_000
    assert ask(store, "w1", Company.SUSPECTS) == ""  # so that it comes to an end with these
    assert ask(store, "w1") == f"{job} any"


def test_a_suspect_whose_record_was_deleted_by_hand_is_dropped(
    store: JobStore, redis: Redis
) -> None:
    gone, left = create(store).id, create(store).id
    crash(store, redis)
    redis.delete(keys.job(gone))
    assert ask(store, "w1") == f"{left} suspects"
    assert ask(store, "w1", Company.SUSPECTS) == ""


def test_a_job_that_nobody_wants_any_more_is_no_dead_letter(store: JobStore, redis: Redis) -> None:
    job = create(store)
    crash(store, redis, times=2)
    claim(store)
    store.cancel(job.id)
    store.clock_offset_ms += LEASE_MS
    assert sweep(store, redis).exhausted == 0
    assert store.get(job.id).status is JobStatus.CANCELLED
    assert store.dead_letters.count() == 0


@pytest.mark.parametrize("cancelled", [False, True])
def test_what_a_crashed_worker_hands_back_is_suspect(
    store: JobStore, redis: Redis, cancelled: bool
) -> None:
    job = create(store)
    for crashes in range(1, 4):
        works = store.claim_next(MODEL, worker="w1")
        if cancelled:
            store.cancel(job.id)
        assert store.hand_back(works, crashed=True) == 1
        assert store.hand_back(works, crashed=True) == 0
        assert redis.hget(keys.job(job.id), "crashes") == str(crashes)
        if cancelled:
            break
    ended = store.get(job.id)
    assert ended.status is (JobStatus.CANCELLED if cancelled else JobStatus.FAILED)
    assert cancelled or (ended.error and ended.error.code == "attempts_exhausted")


# Claims whose replies were lost


def numbered(store: JobStore, number: int, answered: int | None = None) -> list[Work]:
    return store.claim_next(MODEL, worker="w1", claim=number, answered=answered)


def test_a_claim_that_comes_late_changes_nothing(store: JobStore) -> None:
    create(store)
    [work] = numbered(store, 2)  # the first one timed out, and is still on its way
    assert numbered(store, 1) == []
    assert complete(store, work)


def test_what_a_lost_reply_held_goes_back_without_another_claim_for_work(
    store: JobStore, redis: Redis
) -> None:
    job = create(store)
    assert numbered(store, 1)  # its reply was lost
    nothing = store.claim_next(MODEL, worker="w1", jobs=False, claim=2)
    assert nothing == []
    assert store.get(job.id).status is JobStatus.QUEUED
    assert redis.hget(keys.job(job.id), "crashes") == "0"
    assert numbered(store, 3, answered=2)


def test_what_cannot_be_read_holds_up_nothing(
    store: JobStore, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """As a newer api may have written it."""
    strange, good = create(store), create(store)
    request = json.loads(redis.hget(keys.job(strange.id), "request") or "")
    redis.hset(keys.job(strange.id), "request", json.dumps({**request, "max_tokens": 10**9}))
    assert numbered(store, 1) == []
    assert f"{strange.id} cannot be read" in caplog.text
    assert [work.id for work in numbered(store, 2, answered=1)] == [good.id]
    assert store.get(strange.id).status is JobStatus.RUNNING
    store.clock_offset_ms += LEASE_MS
    sweep(store, redis)
    assert redis.hget(keys.job(strange.id), "crashes") == "1"
