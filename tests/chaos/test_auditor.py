"""The auditor's eyes: what was planted is found, and what is as it should be is not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from slm_client.redis_server import RedisServer, free_port
from slm_jobs import keys
from slm_jobs.store import JobStore
from slm_jobs.tickets import queue_name
from tests.chaos import keyspace
from tests.chaos.history import Event, History
from tests.chaos.stack import Death
from tests.slm_jobs.examples import LEASE_MS, MODEL, claim, complete, create


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis", free_port())
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis(server: RedisServer) -> Iterator[Redis]:
    with Redis.from_url(server.url, decode_responses=True) as redis:
        redis.config_set("appendfsync", "always")  # else a busy disk delays what is read here
        yield redis


@pytest.fixture
def store(redis: Redis) -> JobStore:
    return JobStore(redis)


def quiet(redis: Redis) -> None:
    """As if workers had taken the tickets, and a janitor had come by."""
    redis.delete(queue_name(MODEL), keys.JANITOR, keys.MODELS)


def test_every_key_has_a_rule() -> None:
    names = {value for name, value in vars(keys).items() if name.isupper()}
    channels = {keys.EVENTS, keys.COMMANDS, keys.CALLBACKS_DUE}
    assert names - channels <= set(keyspace.RULES)


def test_ended_work_leaves_no_orphans(store: JobStore, redis: Redis) -> None:
    job = create(store)
    assert keys.WAITING + MODEL in keyspace.awake(redis)
    complete(store, claim(store))
    quiet(redis)
    assert keyspace.awake(redis) == []
    assert list(keyspace.orphans(redis)) == []
    store.delete(job.id)
    assert list(keyspace.orphans(redis)) == []


@pytest.mark.parametrize(
    "plant",
    [
        "ZADD slm:leases 1 job_gone",
        "RPUSH slm:stream:job_gone 0",
        "HSET slm:running tinystories 1",
        "HSET slm:usage:somebody queued_tokens 5",
        "ZADD slm:in_flight:somebody 1 job_gone",
        "HSET slm:job:job_gone status running",
        "HSET slm:job:job_gone status succeeded",
        "HSET slm:leased:batch_gone 1 x",
        "ZADD slm:jobs_of:somebody 1 job_gone",
        "SET slm:new_thing 1",
        "SET another 1",
    ],
)
def test_a_planted_orphan_is_found(redis: Redis, plant: str) -> None:
    redis.execute_command(*plant.split())
    assert list(keyspace.orphans(redis)) == [plant.split()[1]]


def history(server: RedisServer) -> History:
    return History(server.directory, LEASE_MS)


def test_the_log_tells_who_ran_what_and_when(
    server: RedisServer, redis: Redis, store: JobStore
) -> None:
    first, second = create(store), create(store)
    work = claim(store, worker="here-7-a")
    death = Death("worker", 7, time.time() * 1000 + 1)
    store.clock_offset_ms += 3_000
    store.hand_back([work])
    work = claim(store, worker="here-8-b")
    store.clock_offset_ms += 1_000
    complete(store, work)
    found = history(server)
    assert [event.what for event in found.events[first.id]] == [
        "waits",
        "started",
        "waits",
        "started",
        "ended",
    ]
    assert found.recoveries(death) == [pytest.approx(3, abs=0.5)]
    assert found.recoveries(Death("worker", 8, death.at_ms)) == []
    assert (found.ends[first.id], found.ends[second.id], found.restarts) == (1, 0, 1)


def test_a_second_end_is_in_the_log(server: RedisServer, redis: Redis, store: JobStore) -> None:
    create(store)
    work = claim(store)
    complete(store, work)
    redis.hset(keys.job(work.id), mapping={"status": "running", "worker": "w"})  # as if it ran
    complete(store, work)
    assert history(server).ends[work.id] == 2


def test_a_log_that_breaks_off(server: RedisServer, redis: Redis, store: JobStore) -> None:
    job = create(store)
    whole = history(server).events[job.id]
    for file in [*server.directory.rglob("*.incr.aof"), *server.directory.glob("*.aof")]:
        with file.open("ab") as log:
            log.write(b"*3\r\n$4\r\nHSET\r\n$8\r\nslm:jo")
    assert history(server).events[job.id] == whole == [Event(whole[0].at_ms, "waits", "")]
