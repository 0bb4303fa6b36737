"""The store and the events follow a failover: real Redis, a real replica, real Sentinels."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import exceptions

from slm_client.redis_server import free_port
from slm_jobs import keys
from slm_jobs.connection import connect
from slm_jobs.errors import StoreUnavailable
from slm_jobs.events import JobEvents
from slm_jobs.schemas import Job, JobStatus
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from tests.slm_jobs.examples import MODEL, claim, complete, create
from tests.slm_jobs.replicated_redis import ReplicatedRedis


@contextmanager
def replicated(folder: Path, sentinels: int = 3) -> Iterator[ReplicatedRedis]:
    redis = ReplicatedRedis(folder, sentinels)
    try:
        redis.start()
        yield redis
    finally:
        redis.stop()


def kill(redis: ReplicatedRedis) -> None:
    redis.primary.kill()


def hang(redis: ReplicatedRedis) -> None:
    assert redis.primary.process
    redis.primary.process.send_signal(signal.SIGSTOP)


def wake(redis: ReplicatedRedis) -> None:
    assert redis.primary.process
    redis.primary.process.send_signal(signal.SIGCONT)


def insist(store: JobStore, call: Callable[[], Any]) -> Any:
    """What `call` returns once Redis is there."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return call()
        except StoreUnavailable:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize(("sentinels", "end"), [(3, kill), (1, kill), (3, hang)])
def test_a_failover(tmp_path: Path, sentinels: int, end: Callable[[ReplicatedRedis], None]) -> None:
    with replicated(tmp_path, sentinels) as redis:
        settings = Settings(redis_url=redis.url)
        with closing(JobStore.from_settings(settings)) as store:
            before = [create(store) for _ in range(3)]
            running = claim(store)
            redis.wait_for_replica()
            end(redis)
            started = time.monotonic()
            after: Job = insist(store, lambda: create(store))
            print(f"\n{end.__name__}, {sentinels} Sentinels: ", end="")  # noqa: T201
            print(f"accepts again after {time.monotonic() - started:.1f} s")  # noqa: T201
            assert redis.promoted()
            assert insist(store, lambda: complete(store, running))
            for _ in range(3):
                assert complete(store, claim(store))
            jobs = [store.get(job.id) for job in [*before, after]]
            assert {job.status for job in jobs} == {JobStatus.SUCCEEDED}
            assert {job.attempt for job in jobs} == {1}


def test_a_primary_that_wakes_up_takes_nothing(tmp_path: Path) -> None:
    with replicated(tmp_path) as redis:
        settings = Settings(redis_url=redis.url, redis_timeout_seconds=0.5)
        with closing(JobStore.from_settings(settings)) as store:
            create(store)
            redis.wait_for_replica()
            hang(redis)
            insist(store, lambda: create(store))
            wake(redis)
            for _ in range(20):
                insist(store, lambda: create(store))
            assert store.queue_depth(MODEL) == 22
            with redis.replica.client() as client:
                assert client.zcard(keys.waiting(MODEL)) == 22


def test_events_follow(tmp_path: Path) -> None:
    async def listen_on_both(redis: ReplicatedRedis) -> None:
        events = JobEvents.from_settings(Settings(redis_url=redis.url))
        channel = f"{keys.EVENTS}job_1"
        async with events.watch("job_1") as watch:
            with redis.primary.client() as client:
                assert client.pubsub_numsub(channel) == [(channel, 1)]
            kill(redis)
            with redis.replica.client() as client:
                while client.pubsub_numsub(channel) != [(channel, 1)]:
                    await asyncio.sleep(0.05)
                await watch.wait(5)  # woken by what it may have missed
                client.publish(channel, "")
                await asyncio.wait_for(watch._changed.wait(), 30)
        await events.close()

    with replicated(tmp_path) as redis:
        asyncio.run(listen_on_both(redis))


def test_without_a_primary_nothing_grows_and_no_password_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hosts = ",".join(f"127.0.0.1:{free_port()}" for _ in range(3))
    url = f"redis+sentinel://slm:sw0rd@{hosts}/name?sentinel_password=passw0rd"
    with connect(Settings(redis_url=url), max_connections=2) as redis:
        pool: Any = redis.connection_pool
        with caplog.at_level(logging.DEBUG):
            for _ in range(20):
                with pytest.raises(exceptions.ConnectionError, match="No master found") as caught:
                    pool.get_connection()
        assert len(pool._connections) <= 2
    assert "w0rd" not in str(caught.value) + caplog.text


def test_sentinels_that_hang_are_given_half_of_the_time() -> None:
    with ExitStack() as stack:
        ports = []
        for _ in range(3):
            silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            ports.append(silent.getsockname()[1])
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        settings = Settings(redis_url=f"redis+sentinel://{hosts}/name", redis_timeout_seconds=1)
        with closing(JobStore.from_settings(settings)) as store:
            started = time.monotonic()
            with pytest.raises(StoreUnavailable, match="No master found"):
                store.ping()
            assert time.monotonic() - started < 2.5  # one after the other they would take 3 s
