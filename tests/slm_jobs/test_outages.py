"""Redis was away: whoever lives could not extend its leases, and keeps them."""

from __future__ import annotations

import signal
import time

import pytest
from redis import Redis

from slm_client.redis_server import RedisServer
from slm_jobs import keys
from slm_jobs.schemas import JobStatus
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from tests.slm_jobs.examples import LEASE_MS, MODEL, WORKER, claim, create, sweep
from worker.leases import Leases


def test_after_long_silence_no_lease_is_taken_back_for_one(store: JobStore, redis: Redis) -> None:
    job = create(store)
    claim(store)
    sweep(store, redis)
    redis.incrby(keys.SWEPT_AT, -LEASE_MS // 2 - 1)
    store.clock_offset_ms += LEASE_MS
    assert sweep(store, redis).requeued == 0
    assert sweep(store, redis).requeued == 0
    assert LEASE_MS - 5_000 < redis.pttl(keys.QUIET) <= LEASE_MS
    redis.delete(keys.QUIET)  # it is over
    assert sweep(store, redis).requeued == 1
    assert store.get(job.id).status is JobStatus.QUEUED


@pytest.mark.parametrize("silence_ms", [0, LEASE_MS // 2 - 1_000])
def test_after_short_silence_leases_are_as_good_as_before(
    store: JobStore, redis: Redis, silence_ms: int
) -> None:
    create(store)
    claim(store)
    sweep(store, redis)
    redis.incrby(keys.SWEPT_AT, -silence_ms)
    store.clock_offset_ms += LEASE_MS
    assert sweep(store, redis).requeued == 1


LEASE_S = 3.0
WORKERS = 3


def test_what_lives_keeps_its_leases_when_redis_was_stopped(server: RedisServer) -> None:
    """A sweep that was sent meanwhile stands in the socket, and runs before any heartbeat."""
    settings = Settings(redis_url=server.url, lease_seconds=LEASE_S, redis_timeout_seconds=0.5)
    stores = [JobStore.from_settings(settings) for _ in range(WORKERS)]
    keepers = []
    for number, store in enumerate(stores):
        info = WORKER.model_copy(update={"id": f"w{number}"})
        create(store)
        [work] = store.claim_next(MODEL, worker=info.id)
        keeper = Leases(
            store,
            describe=lambda _, info=info: info,
            heartbeat_seconds=settings.heartbeat_seconds,
            stalled_for=lambda: 0.0,
            recover=lambda: None,
            swept=lambda _: None,
        )
        keeper.hold(work)
        keeper.start()
        keepers.append(keeper)
    with Redis.from_url(server.url, decode_responses=True) as redis:
        assert server.process
        swept_at = redis.get(keys.SWEPT_AT)
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(LEASE_S + 1.5)
        server.process.send_signal(signal.SIGCONT)
        until = time.monotonic() + 30
        while (
            redis.zcount(keys.LEASES, 0, time.time() * 1000) or redis.get(keys.SWEPT_AT) == swept_at
        ):
            assert time.monotonic() < until
            time.sleep(0.01)
        found = [redis.hget(keys.JOB + job, "crashes") for job in redis.zrange(keys.LEASES, 0, -1)]
        assert found == ["0"] * WORKERS
    for keeper, store in zip(keepers, stores, strict=True):
        keeper.stop(2)
        store.close()
