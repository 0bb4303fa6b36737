"""Deadlines of jobs, and what becomes of jobs that failed."""

from __future__ import annotations

import json

import pytest
from redis import Redis

from slm_jobs import keys
from slm_jobs.api_keys import KeyProof, KeySettings
from slm_jobs.callback_schemas import CallbackTarget
from slm_jobs.errors import DeadLetterNotFound
from slm_jobs.records import new_job_id
from slm_jobs.schemas import JobStatus
from slm_jobs.store import JobStore
from tests.slm_jobs.conftest import MakeStore
from tests.slm_jobs.examples import ERROR, LEASE_MS, MODEL, claim, complete, create, spec, sweep


def test_a_job_that_nobody_starts_expires(store: JobStore, redis: Redis) -> None:
    job = create(store, queue_timeout=10)
    in_time = create(store, queue_timeout=60)
    store.clock_offset_ms += 10_000
    sweep(store, redis)
    assert store.get(job.id).status is JobStatus.EXPIRED
    assert claim(store).id == in_time.id


def test_it_expires_rather_than_starts_also_before_a_sweep(store: JobStore) -> None:
    job = create(store, queue_timeout=10)
    store.clock_offset_ms += 10_000
    assert store.claim_next(MODEL, worker="w1") == []
    assert store.get(job.id).status is JobStatus.EXPIRED
    assert store.queues([MODEL])[0].waiting == 0


def test_a_job_that_has_started_expires_no_more(store: JobStore, redis: Redis) -> None:
    job = create(store, queue_timeout=10)
    store.hand_back([claim(store)])
    store.clock_offset_ms += 3_600_000
    sweep(store, redis)
    assert claim(store).id == job.id


def test_the_run_deadline_counts_from_the_first_start(store: JobStore, redis: Redis) -> None:
    create(store, run_timeout=60)
    store.clock_offset_ms += 3_600_000  # waiting does not count
    first = claim(store)
    assert first.seconds_left == 60
    store.clock_offset_ms += LEASE_MS + 1
    sweep(store, redis)
    again = claim(store)
    assert again.seconds_left is not None
    assert 44 < again.seconds_left <= 45
    store.hand_back([again])
    store.clock_offset_ms += 3_600_000
    assert claim(store).seconds_left == 0


def test_a_job_without_deadlines_has_no_end(store: JobStore) -> None:
    create(store)
    assert claim(store).seconds_left is None


# Dead letters


def test_what_failed_can_be_run_again_as_it_was(store: JobStore, redis: Redis) -> None:
    request = spec("Once", seed=7, n=2, run_timeout=5, metadata={"a": "b"}).model_copy(
        update={"callback": CallbackTarget("https://hooks.example/", ("succeeded",))}
    )
    failed_id = new_job_id()
    link = CallbackTarget(*request.callback[:3], f"https://slm.example/jobs/{failed_id}")
    failed = store.create(request.model_copy(update={"callback": link}), job_id=failed_id).job
    store.fail(claim(store), ERROR)
    [dead], following = store.dead_letters.page()
    assert (dead, following) == (store.get(failed.id), None)
    assert 86_400 < redis.ttl(keys.job(failed.id)) <= 604_800

    again = store.dead_letters.redrive(failed.id)
    assert (again.status, again.retry_of) == (JobStatus.QUEUED, failed.id)
    assert store.dead_letters.redrive(failed.id).id == again.id  # as if the reply had been lost
    assert store.dead_letters.page() == ([], None)
    assert store.get(failed.id).status is JobStatus.FAILED
    work = claim(store)
    assert (work.id, work.seconds_left) == (again.id, 5)
    assert work.spec == request.model_copy(update={"callback": None, "run_timeout": None})
    complete(store, work)
    [told], _ = store.callbacks.claim(1)
    assert told.id == f"{again.id}-succeeded"
    assert json.loads(told.payload)["data"]["url"] == f"https://slm.example/jobs/{again.id}"
    assert store.get(again.id).metadata == {"a": "b"}


def test_what_is_redriven_costs_nothing_and_gives_nothing_back(store: JobStore) -> None:
    limits = KeySettings(name="k", tokens_per_minute=60_000, queued_tokens=None)
    owner = KeyProof.of(store.keys.create(limits).token)

    def remaining() -> int:
        made = store.create(spec(), owner=owner, tokens=1)
        store.cancel(made.job.id)
        return next(quota.remaining for quota in made.quotas if quota.policy == "tokens")

    failed = store.create(spec(), owner=owner, tokens=50_000).job
    store.fail(claim(store), ERROR)
    store.create(spec(), owner=owner, tokens=50_000)
    assert claim(store).attempt == 1
    before = remaining()
    store.dead_letters.redrive(failed.id)
    complete(store, claim(store))
    assert remaining() - before < 40_000  # what the meter lets out meanwhile


def test_a_dead_letter_whose_record_expired_is_gone(store: JobStore, redis: Redis) -> None:
    job = create(store)
    store.fail(claim(store), ERROR)
    redis.delete(keys.job(job.id))  # nobody has swept yet
    with pytest.raises(DeadLetterNotFound):
        store.dead_letters.redrive(job.id)


def test_pages_of_dead_letters(store: JobStore) -> None:
    jobs = []
    for _ in range(5):
        jobs.append(create(store).id)
        store.fail(claim(store), ERROR)
        store.clock_offset_ms += 1
    first, cursor = store.dead_letters.page(limit=3)
    second, end = store.dead_letters.page(limit=3, cursor=cursor)
    assert [job.id for job in first + second] == jobs[::-1]
    assert end is None


def test_other_jobs_are_no_dead_letters(store: JobStore) -> None:
    waiting = create(store)
    create(store)
    complete(store, claim(store))
    for job_id in (waiting.id, "job_unknown"):
        with pytest.raises(DeadLetterNotFound):
            store.dead_letters.redrive(job_id)
    assert store.dead_letters.page() == ([], None)


def test_one_with_what_it_was_asked(store: JobStore) -> None:
    request = spec("Once", seed=7, stop=["."]).model_copy(
        update={"queue_timeout": 90.0, "run_timeout": 0.5}
    )
    job = store.create(request).job
    with pytest.raises(DeadLetterNotFound):
        store.dead_letters.get(job.id)
    store.fail(claim(store), ERROR)
    assert store.dead_letters.get(job.id) == (store.get(job.id), "", request)
    assert store.dead_letters.count() == 1
    store.dead_letters.redrive(job.id)
    with pytest.raises(DeadLetterNotFound):
        store.dead_letters.get(job.id)
    assert store.dead_letters.count() == 0


def test_the_oldest_are_redriven_first(store: JobStore, redis: Redis) -> None:
    made = []
    for _ in range(4):
        made.append(create(store).id)
        store.fail(claim(store), ERROR)
        store.clock_offset_ms += 1
    redis.delete(keys.job(made[0]))  # its time was over, and nobody has swept
    assert [job.retry_of for job in store.dead_letters.redrive_oldest(2)] == made[1:3]
    assert store.dead_letters.count() == 1
    assert [job.retry_of for job in store.dead_letters.redrive_oldest(2)] == made[3:]
    assert store.dead_letters.redrive_oldest(2) == []


def test_only_dead_letters_are_dropped(store: JobStore) -> None:
    ended = create(store)
    complete(store, claim(store))
    dead = create(store)
    store.fail(claim(store), ERROR)
    store.dead_letters.drop(dead.id)
    for job_id in (ended.id, dead.id, "job_unknown"):
        with pytest.raises(DeadLetterNotFound):
            store.dead_letters.drop(job_id)
    assert store.get(ended.id)


def test_a_dead_letter_goes_with_its_record(store: JobStore, make_store: MakeStore) -> None:
    dropped = create(store)
    store.fail(claim(store), ERROR)
    store.delete(dropped.id)
    assert store.dead_letters.page() == ([], None)
    short = make_store(dead_letter_ttl_seconds=60)
    create(short)
    short.fail(claim(short), ERROR)
    short.clock_offset_ms += 60_001
    short.sweep()
    assert short.dead_letters.page() == ([], None)
