"""Cancelling, deleting, listing and following jobs, on fakeredis and on real Redis."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest
import redis.asyncio
from redis import Redis

from slm_client.redis_server import free_port
from slm_jobs import keys
from slm_jobs.api_keys import ApiKey, KeyProof, KeySettings
from slm_jobs.errors import JobNotEnded, JobNotFound
from slm_jobs.events import JobEvents
from slm_jobs.schemas import JobStatus, Piece, Usage
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from tests.slm_jobs.examples import (
    ERROR,
    MODEL,
    OUTPUTS,
    WORKER,
    claim,
    complete,
    create,
    spec,
    sweep,
)

PARTIAL = Usage(prompt_tokens=2, completion_tokens=1, total_tokens=3)


def make_key(store: JobStore, *, admin: bool = False) -> tuple[KeyProof, ApiKey]:
    made = store.keys.create(KeySettings(name="test", admin=admin))
    proof = KeyProof.of(made.token)
    return proof, store.keys.authorise(proof)


# Cancelling


def test_a_queued_job_is_cancelled_at_once(store: JobStore, redis: Redis) -> None:
    jobs = [create(store) for _ in range(2)]
    cancelled = store.cancel(jobs[0].id)
    assert cancelled.status is JobStatus.CANCELLED
    assert cancelled.finished_at is not None
    assert store.cancel(jobs[0].id) == cancelled
    assert claim(store).id == jobs[1].id
    assert store.claim_next(MODEL, worker="w1") == []
    assert redis.ttl(keys.job(jobs[0].id)) > 0


def test_a_running_job_ends_when_its_worker_says_so(store: JobStore) -> None:
    job = create(store)
    with store.commands("w1") as commands, store.commands("w2") as others:
        work = claim(store, "w1")
        asked = store.cancel(job.id)
        assert (asked.status, asked.cancel_requested) == (JobStatus.RUNNING, True)
        assert commands.get(1.0) == [(job.id, 1)]
        assert others.get(0.01) == []
    assert store.heartbeat(WORKER, [work]) == (set(), {job.id})
    assert store.cancelled(work, OUTPUTS, PARTIAL, fingerprint="f")
    ended = store.get(job.id)
    assert (ended.status, ended.outputs, ended.usage) == (JobStatus.CANCELLED, OUTPUTS, PARTIAL)
    assert not ended.cancel_requested
    assert store.cancel(job.id) == ended


def test_a_job_that_ends_before_it_is_cancelled_has_ended(store: JobStore) -> None:
    job = create(store)
    work = claim(store)
    store.cancel(job.id)
    assert complete(store, work)
    assert store.cancel(job.id).status is JobStatus.SUCCEEDED


def test_a_cancelled_job_does_not_run_again(store: JobStore, redis: Redis) -> None:
    lost, returned = create(store), create(store)
    works = [claim(store) for _ in range(2)]
    for job in (lost, returned):
        store.cancel(job.id)
    assert store.hand_back([works[1]]) == 1
    assert store.get(returned.id).status is JobStatus.CANCELLED
    store.clock_offset_ms += 15_001
    sweep(store, redis)
    assert store.get(lost.id).status is JobStatus.CANCELLED
    assert store.queue_depth(MODEL) == 0
    assert not store.cancelled(works[0], OUTPUTS, PARTIAL, fingerprint="f")


def test_nothing_to_cancel(store: JobStore) -> None:
    with pytest.raises(JobNotFound):
        store.cancel("job_nope")


# Deleting, and what is forgotten


def test_only_ended_jobs_are_deleted(store: JobStore, redis: Redis) -> None:
    job = create(store, stream=True)
    with pytest.raises(JobNotEnded):
        store.delete(job.id)
    work = claim(store)
    store.append(work, "f", [Piece(0, 0, 1, "a")])
    with pytest.raises(JobNotEnded):
        store.delete(job.id)
    complete(store, work)
    store.delete(job.id)
    store.delete(job.id)
    with pytest.raises(JobNotFound):
        store.get(job.id)
    assert not [name for name in redis.keys("*") if job.id in name]
    assert redis.zcard(keys.ENDED) == redis.zcard(keys.JOBS_OF) == 0


def test_lists_forget_what_has_expired(store: JobStore, redis: Redis) -> None:
    owner, viewer = make_key(store)
    store.create(spec(), owner=owner)
    complete(store, claim(store))
    sweep(store, redis)
    assert len(store.page(viewer.id)[0]) == 1
    store.clock_offset_ms += 86_400_000 + 1
    sweep(store, redis)
    assert redis.zcard(keys.JOBS_OF + viewer.id) == redis.zcard(keys.ENDED) == 0


def test_the_texts_of_an_ended_job_are_not_kept_twice(store: JobStore, redis: Redis) -> None:
    done, failed = create(store, "x" * 10_000), create(store, "y" * 10_000)
    complete(store, claim(store))
    store.fail(claim(store), ERROR)
    assert "x" * 10_000 not in str(redis.hgetall(keys.job(done.id)))
    assert redis.hexists(keys.job(failed.id), "request")  # to be run again


# Reading


def test_a_job_is_seen_by_its_key_and_by_admins(store: JobStore) -> None:
    owner, viewer = make_key(store)
    _, stranger = make_key(store)
    _, admin = make_key(store, admin=True)
    job = store.create(spec(), owner=owner).job
    for who in (viewer, admin, None):
        assert store.get(job.id, viewer=who).id == job.id
    with pytest.raises(JobNotFound):
        store.get(job.id, viewer=stranger)
    assert store.page(stranger.id) == ([], None)


def test_a_page_after_the_other(store: JobStore) -> None:
    owner, viewer = make_key(store)
    made = [store.create(spec(), owner=owner).job.id for _ in range(7)]
    pages, cursor = [], None
    while True:
        jobs, cursor = store.page(viewer.id, cursor=cursor, limit=3)
        pages.append([job.id for job in jobs])
        if cursor is None:
            break
    assert [job for page in pages for job in page] == made[::-1]
    assert [len(page) for page in pages] == [3, 3, 1]


def test_a_list_of_some(store: JobStore) -> None:
    owner, viewer = make_key(store)
    begun = datetime.now(UTC)
    made = []
    for hour in range(4):
        store.clock_offset_ms = hour * 3_600_000
        made.append(store.create(spec(), owner=owner).job.id)
    store.cancel(made[2])

    def ids(**filters: object) -> list[str]:
        return [job.id for job in store.page(viewer.id, **filters)[0]]  # type: ignore[arg-type]

    hours = [begun + timedelta(hours=hour, minutes=-30) for hour in range(5)]
    assert ids(statuses=[JobStatus.CANCELLED]) == [made[2]]
    assert ids(statuses=[JobStatus.QUEUED, JobStatus.CANCELLED]) == made[::-1]
    assert ids(created_after=hours[1], created_before=hours[3]) == [made[2], made[1]]
    assert ids(created_before=hours[1]) == [made[0]]


def test_the_place_in_the_queue(store: JobStore) -> None:
    jobs = [store.create(spec(), tokens=600).job for _ in range(3)]
    position = store.get(jobs[2].id).queue
    assert position is not None
    assert (position.ahead, position.estimated_wait_seconds) == (2, None)

    rate = WORKER.model_copy(update={"tokens_per_second": {MODEL: 100.0}})
    store.heartbeat(rate, [])
    fresh = JobStore(store._redis)
    position = fresh.get(jobs[2].id).queue
    assert position is not None
    assert (position.ahead, position.estimated_wait_seconds) == (2, 12.0)
    claim(store)
    assert store.get(jobs[0].id).queue is None
    [queue] = store.queues([MODEL])
    assert (queue.waiting, queue.running, queue.workers, queue.slots) == (2, 1, 1, 64)
    assert queue.estimated_wait_seconds == 12.0
    complete_all(store)
    [queue] = store.queues([MODEL])
    assert (queue.waiting, queue.running) == (0, 1)


def test_slots_are_counted_by_model(store: JobStore) -> None:
    told = {
        "models": [MODEL, "slow"],
        "model_slots": {"slow": 4},
        "slots_in_use": {MODEL: 9, "slow": 3},
    }
    for worker in ("w1", "w2"):
        store.heartbeat(WORKER.model_copy(update={**told, "id": worker}), [])
    other = {"id": "w3", "slots_in_use": {}}  # idle, and of one model
    store.heartbeat(WORKER.model_copy(update=other), [])
    fast, slow, nobodys = store.queues([MODEL, "slow", "nobodys"])
    assert (fast.workers, fast.slots, fast.slots_in_use) == (3, 3 * 64, 18)
    assert (slow.workers, slow.slots, slow.slots_in_use) == (2, 8, 6)
    assert (nobodys.workers, nobodys.slots, nobodys.slots_in_use) == (0, 0, 0)


def test_a_worker_of_another_version_is_understood(store: JobStore, redis: Redis) -> None:
    store.heartbeat(WORKER, [])
    for info in ({"told_by_newer_ones": 1}, {}):  # an older one tells no slots in use
        told = {"id": "w1", "models": [MODEL], "slots": 8, "pid": 7, "host": "here", **info}
        redis.hset(keys.WORKER_INFO, "w1", json.dumps(told))
        [queue] = store.queues([MODEL])
        assert (queue.slots, queue.slots_in_use) == (8, 0)


def complete_all(store: JobStore) -> None:
    while works := store.claim_next(MODEL, worker="w1"):
        assert store.fail(works[0], ERROR)


# Streams


def test_a_stream_takes_each_token_once(store: JobStore) -> None:
    job = create(store, stream=True, n=2)
    work = claim(store)
    assert store.append(work, "f", [Piece(0, 0, 2, "one two"), Piece(1, 0, 1, " 1")]) == {
        0: 2,
        1: 1,
    }
    assert store.append(work, "f", [Piece(0, 0, 2, "one two"), Piece(1, 1, 3, "\n")]) == {
        0: 2,
        1: 3,
    }
    assert store.append(work, "f", [Piece(0, 3, 4, "a gap")]) == {0: 2, 1: 3}
    said = [Piece(0, 0, 2, "one two"), Piece(1, 0, 1, " 1"), Piece(1, 0, 3, "\n")]
    assert store.read_stream(job.id) == said
    assert store.read_stream(job.id, 2) == said[2:]


def test_a_later_attempt_goes_on(store: JobStore) -> None:
    job = create(store, stream=True)
    stale = claim(store)
    store.append(stale, "f", [Piece(0, 0, 2, "a")])
    store.hand_back([stale])
    work = claim(store)
    assert store.append(stale, "f", [Piece(0, 2, 3, "b")]) is None
    assert store.append(work, "f", []) == {0: 2}
    store.append(work, "f", [Piece(0, 2, 3, "b")])
    store.hand_back([work])
    other = claim(store)
    assert store.append(other, "g", []) == {}
    store.append(other, "g", [Piece(0, 0, 1, "c")])
    assert store.read_stream(job.id) == [
        Piece(0, 0, 2, "a"),
        Piece(0, 0, 3, "b"),
        None,
        Piece(0, 0, 1, "c"),
    ]


# Events


@pytest.fixture
def real_store(real_redis: Redis) -> JobStore:
    return JobStore(real_redis)


def test_watchers_are_woken(real_store: JobStore, real_redis: Redis) -> None:
    port = real_redis.connection_pool.connection_kwargs["port"]
    jobs = [create(real_store) for _ in range(2)]

    async def scenario() -> None:
        events = JobEvents(redis.asyncio.Redis(port=port, decode_responses=True))
        loop = asyncio.get_running_loop()
        try:
            async with events.watch(jobs[0].id) as one, events.watch(jobs[0].id) as two:
                started = loop.time()
                claim(real_store)
                await asyncio.gather(one.wait(4.0), two.wait(4.0))
                assert loop.time() - started < 1.0
                real_store.cancel(jobs[1].id)  # somebody else's
                started = loop.time()
                await one.wait(0.2)
                assert loop.time() - started >= 0.19
            async with events.watch(jobs[0].id) as again:  # listened to anew
                started = loop.time()
                real_redis.publish(keys.EVENTS + jobs[0].id, "x")
                await again.wait(4.0)
                assert loop.time() - started < 1.0
            real_redis.client_kill_filter(_type="pubsub")
            async with events.watch(jobs[1].id) as after:
                await asyncio.sleep(1.0)  # it connects again
                started = loop.time()
                real_redis.publish(keys.EVENTS + jobs[1].id, "x")
                await after.wait(4.0)
                assert loop.time() - started < 1.0
        finally:
            await events.close()

    asyncio.run(scenario())


def test_a_cancelled_watcher_leaves_nothing_behind(real_store: JobStore, real_redis: Redis) -> None:
    port = real_redis.connection_pool.connection_kwargs["port"]
    job = create(real_store)

    async def scenario() -> None:
        events = JobEvents(redis.asyncio.Redis(port=port, decode_responses=True))

        async def watch(seconds: float) -> None:
            async with events.watch(job.id) as watch:
                await watch.wait(seconds)

        try:
            tasks = [asyncio.create_task(watch(60)) for _ in range(20)]
            for n, task in enumerate(tasks):  # at any place, also before Redis has answered
                await asyncio.sleep(0.0005 * n)
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for _ in range(100):
                if not real_redis.pubsub_channels(keys.EVENTS + "*"):
                    break
                await asyncio.sleep(0.02)
            assert real_redis.pubsub_channels(keys.EVENTS + "*") == []
            waiting = asyncio.create_task(watch(4))
            await asyncio.sleep(0.2)
            real_redis.publish(keys.EVENTS + job.id, "x")
            await asyncio.wait_for(waiting, 1)
        finally:
            await events.close()

    asyncio.run(scenario())


def test_an_outage_piles_nothing_up() -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"

    async def scenario() -> None:
        events = JobEvents.from_settings(Settings(redis_url=url))

        async def watch(n: int) -> None:
            async with events.watch(f"job_{n}") as watch:
                await watch.wait(60)

        tasks = [asyncio.create_task(watch(n)) for n in range(200)]
        await asyncio.sleep(1.7)  # some tries
        assert len(events._unsettled) <= 200
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.7)
        assert not events._channels
        await asyncio.wait_for(events.close(), 2)

    asyncio.run(scenario())


def test_a_watch_without_redis_wakes_by_the_clock() -> None:
    async def scenario() -> None:
        events = JobEvents(redis.asyncio.Redis(port=1, decode_responses=True))
        try:
            async with events.watch("job_1") as watch:
                await watch.wait(0.1)
        finally:
            await events.close()

    asyncio.run(scenario())
