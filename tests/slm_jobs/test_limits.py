"""What a key may do: limits, idempotency, priority, back-pressure."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from unittest import mock

import fakeredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from slm_jobs import keys
from slm_jobs.admission import Admission, Idempotency
from slm_jobs.api_keys import KeyProof, KeySettings
from slm_jobs.errors import (
    IdempotencyConflict,
    JobGone,
    KeyRejected,
    PriorityTooHigh,
    QueueFull,
    Quota,
    RateLimited,
)
from slm_jobs.schemas import JobStatus, Usage
from slm_jobs.store import JobStore
from tests.slm_jobs.conftest import MakeStore
from tests.slm_jobs.examples import ERROR, MODEL, OUTPUTS, WORKER, claim, spec, sweep

Create = Callable[..., Admission]


def owner_of(store: JobStore, **limits: object) -> KeyProof:
    """A key that has these limits and no others."""
    none = dict.fromkeys(
        ("requests_per_minute", "tokens_per_minute", "jobs_in_flight", "queued_tokens")
    )
    made = store.keys.create(KeySettings.model_validate({"name": "test", **none, **limits}))
    return KeyProof.of(made.token)


def quotas(admission: Admission) -> dict[str, Quota]:
    return {quota.policy: quota for quota in admission.quotas}


def refused(create: Create) -> RateLimited:
    with pytest.raises(RateLimited) as caught:
        create()
    return caught.value


def test_requests_a_minute(store: JobStore) -> None:
    create = partial(store.create, spec(), owner=owner_of(store, requests_per_minute=3))
    assert [quotas(create())["requests"].remaining for _ in range(3)] == [2, 1, 0]
    error = refused(create)
    assert [quota.policy for quota in error.violated] == ["requests"]
    assert error.retry_after == 20
    assert store.queue_depth(MODEL) == 3

    store.clock_offset_ms += 20_000
    create()
    refused(create)
    store.clock_offset_ms += 3_600_000  # no more than a minute's worth is saved up
    assert [quotas(create())["requests"].remaining for _ in range(3)] == [2, 1, 0]
    refused(create)


def test_tokens_a_minute_and_what_was_not_used(store: JobStore) -> None:
    create = partial(
        store.create, spec(), owner=owner_of(store, tokens_per_minute=1_000), tokens=400
    )
    assert quotas(create())["tokens"].remaining == 600
    create()
    error = refused(create)
    assert error.retry_after in (11, 12)  # 200 tokens at 1000 a minute

    used = Usage(prompt_tokens=20, completion_tokens=30, total_tokens=50)
    assert store.complete(claim(store), OUTPUTS, used, fingerprint="f")
    assert quotas(create())["tokens"].remaining in range(150, 190)  # 200 + 350 - 400


def test_more_tokens_than_there_ever_are(store: JobStore) -> None:
    owner = owner_of(store, tokens_per_minute=100, requests_per_minute=1)
    error = refused(partial(store.create, spec(), owner=owner, tokens=101))
    assert error.retry_after is None
    store.create(spec(), owner=owner, tokens=100)  # the refused request did not count


def test_jobs_in_flight(store: JobStore, redis: Redis) -> None:
    owner = owner_of(store, jobs_in_flight=2)
    create = partial(store.create, spec(), owner=owner)
    create()
    lost = create().job.id
    refused(create)
    assert store.fail(claim(store), ERROR)
    create()
    refused(create)

    redis.delete(keys.job(lost))  # by hand: its place is given back when its lease is over
    refused(create)
    store.clock_offset_ms += 60_000
    create()
    refused(create)


def test_queued_tokens(store: JobStore) -> None:
    create = partial(store.create, spec(), owner=owner_of(store, queued_tokens=100), tokens=60)
    create()
    refused(create)
    work = claim(store)
    create()
    refused(create)
    assert store.hand_back([work])  # 120 tokens wait now: more than may come, but none is lost
    refused(create)
    claim(store)
    refused(create)
    claim(store)
    create()


def test_all_limits_or_none(store: JobStore) -> None:
    owner = owner_of(store, requests_per_minute=10, tokens_per_minute=100, jobs_in_flight=5)
    store.create(spec(), owner=owner, tokens=90)
    for _ in range(3):
        error = refused(partial(store.create, spec(), owner=owner, tokens=20))
        assert [quota.policy for quota in error.violated] == ["tokens"]
    left = quotas(store.create(spec(), owner=owner, tokens=10))
    assert (left["requests"].remaining, left["jobs-in-flight"].remaining) == (8, 3)


def test_keys_do_not_share_limits(store: JobStore) -> None:
    for _ in range(3):
        store.create(spec(), owner=owner_of(store, requests_per_minute=1))


@pytest.mark.parametrize("end", ["fail", "cancel", "exhaust"])
def test_what_ends_without_text_costs_no_tokens(
    end: str, make_store: MakeStore, redis: Redis
) -> None:
    store = make_store(max_crashes=1)
    owner = owner_of(store, tokens_per_minute=100, jobs_in_flight=1, queued_tokens=100)
    job = store.create(spec(), owner=owner, tokens=100).job
    if end == "cancel":
        assert store.cancel(job.id).status is JobStatus.CANCELLED
    elif end == "fail":
        store.fail(claim(store), ERROR)
    else:
        claim(store)
        store.clock_offset_ms += 15_001
        assert sweep(store, redis).exhausted == 1
    store.create(spec(), owner=owner, tokens=100)


def test_priority(store: JobStore) -> None:
    owner = owner_of(store, max_priority=5)
    with pytest.raises(PriorityTooHigh, match="5 at most"):
        store.create(spec(priority=6), owner=owner)
    made = [store.create(spec(priority=p), owner=owner).job.id for p in (0, 5, 3, 5)]
    assert [claim(store).id for _ in made] == [made[1], made[3], made[2], made[0]]


def test_a_full_queue_takes_nothing(make_store: MakeStore) -> None:
    store = make_store(max_waiting_jobs=2)
    owner = owner_of(store, requests_per_minute=3)
    again = Idempotency("k", "b")
    store.create(spec(), owner=owner, idempotency=again)
    store.create(spec(), owner=owner)
    with pytest.raises(QueueFull, match="2 jobs"):
        store.create(spec(), owner=owner)
    assert store.create(spec(), owner=owner, idempotency=again).replayed
    claim(store)
    assert quotas(store.create(spec(), owner=owner))["requests"].remaining == 0


@pytest.mark.parametrize(("rate", "seconds"), [(None, 1), (1_000, 1), (100, 5), (1, 60)])
def test_who_finds_the_queue_full_is_told_when_there_may_be_room(
    make_store: MakeStore, rate: float | None, seconds: int
) -> None:
    store = make_store(max_waiting_jobs=2)
    if rate:
        store.heartbeat(WORKER.model_copy(update={"tokens_per_second": {MODEL: rate}}), [])
    for _ in range(2):
        store.create(spec(), tokens=5_000)
    with pytest.raises(QueueFull) as caught:
        store.create(spec())
    assert caught.value.retry_after == seconds


def test_redis_without_memory_takes_nothing(real_redis: Redis) -> None:
    owner = owner_of(JobStore(real_redis))
    again = Idempotency("k", "b")
    first = JobStore(real_redis).create(spec(), owner=owner, idempotency=again).job
    store = JobStore(real_redis)
    real_redis.config_set("maxmemory", int(real_redis.info("memory")["used_memory"] * 1.05))
    try:
        with pytest.raises(QueueFull, match="memory"):
            store.create(spec())
        assert store.create(spec(), owner=owner, idempotency=again).job.id == first.id
    finally:
        real_redis.config_set("maxmemory", 0)
    JobStore(real_redis).create(spec())


def test_a_key_is_stopped_even_when_redis_is_full(real_redis: Redis) -> None:
    store = JobStore(real_redis)
    owner, other = owner_of(store), owner_of(store)
    real_redis.config_set("maxmemory", 1)
    try:
        store.keys.rotate(other.key)
        store.keys.revoke(owner.key)
    finally:
        real_redis.config_set("maxmemory", 0)
    for proof in (owner, other):
        with pytest.raises(KeyRejected):
            store.keys.authorise(proof)


# Idempotency


def test_the_same_request_is_the_same_job(store: JobStore) -> None:
    owner = owner_of(store, requests_per_minute=1, tokens_per_minute=10)
    create = partial(
        store.create, spec(), owner=owner, tokens=10, idempotency=Idempotency("k", "b")
    )
    first = create()
    assert not first.replayed
    again = create()
    assert (again.job, again.replayed) == (first.job, True)
    assert quotas(again)["requests"].remaining == 0
    store.complete(
        claim(store),
        OUTPUTS,
        Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2),
        fingerprint="f",
    )
    assert create().job.status is JobStatus.SUCCEEDED
    assert store.queue_depth(MODEL) == 0


def test_another_body_conflicts(store: JobStore) -> None:
    owner = owner_of(store)
    store.create(spec(), owner=owner, idempotency=Idempotency("k", "b"))
    with pytest.raises(IdempotencyConflict):
        store.create(spec(), owner=owner, idempotency=Idempotency("k", "c"))


def test_a_refused_request_may_come_again(store: JobStore) -> None:
    owner = owner_of(store, requests_per_minute=1)
    store.create(spec(), owner=owner)
    create = partial(store.create, spec(), owner=owner, idempotency=Idempotency("k", "b"))
    refused(create)
    store.clock_offset_ms += 60_000
    assert not create().replayed


def test_keys_do_not_share_idempotency(store: JobStore) -> None:
    same = Idempotency("k", "b")
    made = {store.create(spec(), owner=owner_of(store), idempotency=same).job.id for _ in range(3)}
    assert len(made) == 3


def test_a_deleted_job_is_not_made_again(store: JobStore, redis: Redis) -> None:
    owner = owner_of(store)
    create = partial(store.create, spec(), owner=owner, idempotency=Idempotency("k", "b"))
    job = create().job
    store.cancel(job.id)
    store.delete(job.id)
    with pytest.raises(JobGone, match=job.id):
        create()
    [name] = redis.keys(keys.IDEMPOTENCY + "*")
    assert redis.ttl(name) >= 86_400


# Many at once


def test_a_hundred_threads_against_a_limit_of_five(real_redis: Redis) -> None:
    stores = [JobStore(real_redis) for _ in range(4)]
    owner = owner_of(stores[0], requests_per_minute=5)

    def attempt(n: int) -> bool:
        try:
            stores[n % 4].create(spec(), owner=owner)
        except RateLimited:
            return False
        return True

    with ThreadPoolExecutor(100) as pool:
        assert sum(pool.map(attempt, range(100))) == 5
    assert stores[0].queue_depth(MODEL) == 5


def test_limits_survive_a_flush_of_the_scripts(real_redis: Redis) -> None:
    store = JobStore(real_redis)
    create = partial(store.create, spec(), owner=owner_of(store, requests_per_minute=2))
    create()
    real_redis.script_flush()
    create()
    refused(create)


# Accounting


@dataclass
class Meter:
    """The same limit in whole numbers of Python: what the store's must show."""

    limit: int
    level: int = 0  # tokens x 60,000
    at: int = 0  # ms
    jobs: list[tuple[str, int]] = field(default_factory=list)

    def drain(self, now: int) -> None:
        self.level = max(0, self.level - (now - self.at) * self.limit)
        self.at = now


steps = st.lists(
    st.tuples(
        st.sampled_from(["create", "end", "wait"]),
        st.integers(1, 2_000),  # tokens charged, or ms
        st.floats(0, 1),  # the share of them that is used
    ),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([7, 1_000, 999_983, 2**36]), steps)
def test_a_million_tokens_are_accounted_for_exactly(
    limit: int, steps: list[tuple[str, int, float]]
) -> None:
    clock = 1_800_000_000_000  # ms; Redis's, which stands still
    with (
        mock.patch("time.time", side_effect=lambda: clock / 1000),
        fakeredis.FakeRedis(decode_responses=True) as redis,
    ):
        store = JobStore(redis)
        owner = owner_of(store, tokens_per_minute=limit)
        meter = Meter(limit)
        for step, amount, share in steps:
            meter.drain(clock)
            if step == "wait":
                clock += amount
            elif step == "create":
                fits = meter.level + amount * 60_000 <= limit * 60_000
                try:
                    made = store.create(spec(), owner=owner, tokens=amount)
                except RateLimited:
                    assert not fits
                    continue
                assert fits
                meter.level += amount * 60_000
                meter.jobs.append((made.job.id, amount))
                left = (limit * 60_000 - meter.level) // 60_000
                assert quotas(made)["tokens"].remaining == left
            elif meter.jobs:
                _, charged = meter.jobs.pop(0)
                used = round(charged * share)
                usage = Usage(prompt_tokens=0, completion_tokens=used, total_tokens=used)
                assert store.complete(claim(store), OUTPUTS, usage, fingerprint="f")
                meter.level = max(0, meter.level - (charged - used) * 60_000)
        usage_of_key = redis.hgetall(keys.USAGE + owner.key)
        queued = sum(tokens for _, tokens in meter.jobs)
        assert int(usage_of_key.get("queued_tokens", 0)) == queued
        for name in ("tokens", "queued_tokens"):
            assert usage_of_key.get(name, "0").isdigit()
