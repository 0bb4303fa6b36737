"""A Redis that says nothing, or is a replica now: who waits for it, and how it is found again."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from redis import Redis, exceptions

from slm_client.redis_server import RedisServer, free_port
from slm_jobs import connection, events, keys
from slm_jobs.errors import StoreUnavailable
from slm_jobs.events import JobEvents
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from tests.slm_jobs.examples import create
from tests.slm_jobs.lossy_proxy import LossyProxy

TIMEOUT = 1.0


@pytest.fixture
def store(server: RedisServer) -> Iterator[JobStore]:
    settings = Settings(redis_url=server.url, redis_timeout_seconds=TIMEOUT)
    with closing(JobStore.from_settings(settings)) as store:
        yield store


def send(server: RedisServer, number: signal.Signals) -> None:
    assert server.process
    server.process.send_signal(number)


def failure(store: JobStore) -> str:
    """Why Redis cannot be reached."""
    with pytest.raises(StoreUnavailable) as caught:
        store.ping()
    return str(caught.value)


def test_after_a_silence_nobody_waits(
    server: RedisServer, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_PAUSE", 60)
    store.ping()
    send(server, signal.SIGSTOP)
    assert "Timeout" in failure(store)
    for _ in range(3):
        assert "did not answer a moment ago" in failure(store)
    with pytest.raises(StoreUnavailable, match="a moment ago"):
        store.claim_next("tiny", worker="w1")
    pipeline = store._redis.pipeline()
    with pytest.raises(exceptions.ConnectionError, match="a moment ago"):
        pipeline.ping().execute()


def test_one_at_a_time_tries_again(
    server: RedisServer, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_PAUSE", 0)
    send(server, signal.SIGSTOP)
    assert "Timeout" in failure(store)
    monkeypatch.setattr(connection, "_PAUSE", 60)
    threads = 8
    together = threading.Barrier(threads)

    def call(_: int) -> str:
        together.wait(10)
        return failure(store)

    with ThreadPoolExecutor(threads) as pool:
        failures = list(pool.map(call, range(threads)))
    assert sum("Timeout" in text for text in failures) == 1
    assert sum("a moment ago" in text for text in failures) == threads - 1


def test_the_first_answer_lets_everybody_in(
    server: RedisServer, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_PAUSE", 0)
    send(server, signal.SIGSTOP)
    assert "Timeout" in failure(store)
    send(server, signal.SIGCONT)
    store.ping()
    with ThreadPoolExecutor(8) as pool:
        assert len({job.id for job in pool.map(lambda _: create(store), range(8))}) == 8


def test_what_answers_with_an_error_is_not_silent(store: JobStore, server: RedisServer) -> None:
    server.kill()
    for _ in range(3):
        assert "Connection refused" in failure(store)
    server.start()
    store.ping()


def test_who_became_a_replica_is_left_for_the_primary(
    server: RedisServer, redis_server: RedisServer, real_redis: Redis
) -> None:
    """As behind a name or an address that moves, with connections that stay."""
    with LossyProxy(server.port).running() as proxy:
        settings = Settings(redis_url=proxy.url, redis_timeout_seconds=2)
        with closing(JobStore.from_settings(settings, max_connections=1)) as store:
            create(store)
            with Redis(port=server.port) as old:
                old.replicaof("127.0.0.1", str(free_port()))
            proxy.redis_port = redis_server.port
            with pytest.raises(StoreUnavailable, match=r"READONLY|read only"):
                create(store)
            job = create(store)
    assert JobStore(real_redis).get(job.id) == job


def test_a_script_flush_and_a_restart(server: RedisServer, store: JobStore) -> None:
    first = create(store)
    with Redis(port=server.port) as redis:
        redis.script_flush()
    second = create(store)
    server.stop()
    server.start()
    assert store.get(first.id) == first
    create(store)
    assert store.queue_depth(second.model) == 3


def test_events_leave_a_redis_that_hangs(
    server: RedisServer, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And watches are woken by the clock meanwhile."""
    monkeypatch.setattr(events, "LOOK_AGAIN", 0.2)

    async def listen(proxy: LossyProxy) -> int:
        listening = JobEvents.from_settings(Settings(redis_url=proxy.url))
        channel = f"{keys.EVENTS}job_1"
        with Redis(port=redis_server.port, decode_responses=True) as other:
            async with listening.watch("job_1") as watch:
                await asyncio.sleep(1)  # answers to its questions come
                with Redis(port=server.port, decode_responses=True) as redis:
                    assert redis.pubsub_numsub(channel) == [(channel, 1)]
                send(server, signal.SIGSTOP)
                proxy.redis_port = redis_server.port
                while other.pubsub_numsub(channel) != [(channel, 1)]:
                    await watch.wait(0.05)
        await listening.close()
        return 1

    with LossyProxy(server.port).running() as proxy:
        assert asyncio.run(asyncio.wait_for(listen(proxy), 60))
        send(server, signal.SIGCONT)  # the proxy's connection to it ends


def test_a_unix_socket(tmp_path: Path) -> None:
    class OnSocket(RedisServer):
        def command(self) -> list[str]:
            return [*super().command(), "--unixsocket", str(tmp_path / "s")]

    server = OnSocket(tmp_path / "redis", free_port())
    server.start()
    try:
        settings = Settings(redis_url=f"unix://{tmp_path / 's'}?db=1")
        with closing(JobStore.from_settings(settings)) as store:
            job = create(store)
            assert store.get(job.id) == job

        async def listen() -> None:
            listening = JobEvents.from_settings(settings)
            async with listening.watch("job_1"):
                with Redis(port=server.port) as redis:
                    assert redis.pubsub_channels() == [f"{keys.EVENTS}job_1".encode()]
            await listening.close()

        asyncio.run(listen())
    finally:
        server.stop()
