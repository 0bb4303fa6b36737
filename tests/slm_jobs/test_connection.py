"""What only a real Redis and a real network can show."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from redis import Redis, exceptions

from slm_client.redis_server import RedisServer, free_port
from slm_jobs import keys
from slm_jobs.connection import connect, store_errors
from slm_jobs.errors import StoreUnavailable
from slm_jobs.records import new_job_id
from slm_jobs.schemas import JobStatus
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from tests.slm_jobs.examples import LEASE_MS, MODEL, WORKER, claim, complete, create, spec, sweep
from tests.slm_jobs.lossy_proxy import LossyProxy


@pytest.fixture
def settings(redis_server: RedisServer) -> Settings:
    return Settings(redis_url=redis_server.url)


@pytest.fixture
def real_store(real_redis: Redis, settings: Settings) -> Iterator[JobStore]:
    with closing(JobStore.from_settings(settings)) as store:
        yield store


@pytest.fixture
def proxy(real_redis: Redis, redis_server: RedisServer) -> Iterator[LossyProxy]:
    with LossyProxy(redis_server.port).running() as proxy:
        yield proxy


@pytest.fixture
def far_store(proxy: LossyProxy) -> Iterator[JobStore]:
    """A store behind the lossy network. It has called each script once, so they are loaded."""
    settings = Settings(redis_url=proxy.url, redis_timeout_seconds=0.3)
    with closing(JobStore.from_settings(settings, max_connections=1)) as store:
        create(store)
        assert complete(store, claim(store))
        yield store


def test_every_job_is_claimed_exactly_once(real_store: JobStore) -> None:
    threads, jobs = 32, 200
    ids = [create(real_store).id for _ in range(jobs)]
    together = threading.Barrier(threads)

    def claim_all(worker: int) -> list[str]:
        together.wait(10)
        claimed = []
        while works := real_store.claim_next(MODEL, worker=f"w{worker}"):
            claimed.append(works[0].id)
        return claimed

    with ThreadPoolExecutor(threads) as pool:
        claimed = [job_id for ids in pool.map(claim_all, range(threads)) for job_id in ids]

    assert sorted(claimed) == sorted(ids)


def test_concurrent_creates_of_one_id_make_one_job(real_store: JobStore) -> None:
    job_id = new_job_id()

    def create_it(n: int) -> int:
        return real_store.create(spec(f"{n}"), job_id=job_id).job.seed

    with ThreadPoolExecutor(8) as pool:
        seeds = set(pool.map(create_it, range(32)))

    assert len(seeds) == 1
    assert real_store.queue_depth(MODEL) == 1


@pytest.mark.parametrize("protocol", [2, 3])
def test_both_protocols(real_redis: Redis, redis_server: RedisServer, protocol: int) -> None:
    url = redis_server.url
    with Redis.from_url(url, decode_responses=True, protocol=protocol) as redis:
        store = JobStore(redis)
        first, second = create(store), create(store)
        assert (store.get(first.id), store.queue_depth(MODEL)) == (first, 2)
        work = claim(store)
        assert store.heartbeat(WORKER, [work]) == (set(), set())
        assert store.workers() == [WORKER]
        assert store.hand_back([work]) == 1
        assert complete(store, claim(store))
        claim(store)
        store.clock_offset_ms += LEASE_MS + 1
        assert sweep(store, redis).requeued == 1
        assert store.get(second.id).status is JobStatus.QUEUED


def test_scripts_load_again_after_a_flush(real_store: JobStore, real_redis: Redis) -> None:
    create(real_store)
    real_redis.script_flush()
    work = claim(real_store)
    real_redis.script_flush()
    assert complete(real_store, work)


def test_closed_connections_are_replaced(redis_server: RedisServer, real_redis: Redis) -> None:
    settings = Settings(redis_url=redis_server.url)
    with closing(JobStore.from_settings(settings)) as store:
        job = create(store)
        real_redis.client_kill_filter(_type="normal", skipme=True)
        assert store.get(job.id) == job


def test_nothing_listens() -> None:
    settings = Settings(redis_url=f"redis://127.0.0.1:{free_port()}/0")
    with closing(JobStore.from_settings(settings)) as store:
        with pytest.raises(StoreUnavailable) as caught:
            store.ping()
        assert isinstance(caught.value.__cause__, exceptions.ConnectionError)
        for call in (
            lambda: create(store),
            lambda: store.get("job_1"),
            lambda: store.queue_depth(MODEL),
            lambda: store.claim_next(MODEL, worker="w1"),
            lambda: store.heartbeat(WORKER, []),
            store.sweep,
            store.workers,
        ):
            with pytest.raises(StoreUnavailable):
                call()


def test_a_claim_without_a_reply_is_not_repeated(far_store: JobStore, proxy: LossyProxy) -> None:
    for _ in range(2):
        create(far_store)
    proxy.lose = b"EVALSHA"
    with pytest.raises(StoreUnavailable):
        far_store.claim_next(MODEL, worker="w1")
    proxy.lose = None

    assert proxy.lost == 1
    assert far_store.queue_depth(MODEL) == 1


def test_a_silent_redis_is_given_up(far_store: JobStore, proxy: LossyProxy) -> None:
    proxy.lose, proxy.hang = b"EVALSHA", True
    before = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        create(far_store)
    assert isinstance(caught.value.__cause__, exceptions.TimeoutError)
    assert time.monotonic() - before < 3  # redis-py alone would wait for 5 s, or for ever


def test_a_thread_does_not_wait_long_for_a_connection(redis_server: RedisServer) -> None:
    settings = Settings(redis_url=redis_server.url, redis_timeout_seconds=0.1)
    with connect(settings, max_connections=1) as redis:
        busy = redis.connection_pool.get_connection()
        before = time.monotonic()
        with pytest.raises(StoreUnavailable):
            JobStore(redis).ping()
        assert time.monotonic() - before < 3
        redis.connection_pool.release(busy)
        JobStore(redis).ping()


def test_what_got_no_reply_can_be_asked_again(far_store: JobStore, proxy: LossyProxy) -> None:
    job_id = new_job_id()
    proxy.lose = b"EVALSHA"
    with pytest.raises(StoreUnavailable):
        far_store.create(spec(), job_id=job_id)
    proxy.lose = None
    assert far_store.create(spec(), job_id=job_id).job == far_store.get(job_id)
    assert far_store.queue_depth(MODEL) == 1

    work = claim(far_store)
    proxy.lose = b"EVALSHA"
    with pytest.raises(StoreUnavailable):
        complete(far_store, work)
    proxy.lose = None
    assert complete(far_store, work) is False
    assert far_store.get(job_id).status is JobStatus.SUCCEEDED


def test_more_threads_than_connections(settings: Settings, real_redis: Redis) -> None:
    with closing(JobStore.from_settings(settings, max_connections=2)) as store:
        with ThreadPoolExecutor(16) as pool:
            jobs = list(pool.map(lambda _: create(store), range(64)))
        assert store.queue_depth(MODEL) == len(jobs)


def test_a_full_redis_refuses_new_jobs_and_lets_running_ones_end(
    real_store: JobStore, real_redis: Redis
) -> None:
    for _ in range(4):
        create(real_store)
    returned, silent, done = (claim(real_store) for _ in range(3))
    real_redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreUnavailable):
            create(real_store)
        assert real_store.heartbeat(WORKER, [returned, silent, done]) == (set(), set())
        assert complete(real_store, done)
        assert complete(real_store, claim(real_store))
        assert real_store.hand_back([returned]) == 1
        real_store.clock_offset_ms += LEASE_MS + 1
        assert sweep(real_store, real_redis).requeued == 1
    finally:
        real_redis.config_set("maxmemory", 0)
    assert real_store.get(silent.id).status is JobStatus.QUEUED
    assert real_redis.get(keys.SEQUENCE) == "4"


def test_a_replica_refuses(real_store: JobStore, real_redis: Redis) -> None:
    create(real_store)
    real_redis.replicaof("127.0.0.1", str(free_port()))
    try:
        with pytest.raises(StoreUnavailable):
            real_store.claim_next(MODEL, worker="w1")
    finally:
        real_redis.replicaof("NO", "ONE")


@pytest.mark.parametrize(
    "error",
    [
        exceptions.ConnectionError("Connection closed by server."),
        exceptions.TimeoutError("Timeout reading from socket"),
        exceptions.BusyLoadingError("Redis is loading the dataset in memory"),
        exceptions.ReadOnlyError("You can't write against a read only replica."),
        exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        exceptions.ResponseError("MISCONF Errors writing to the AOF file: No space left on device"),
        exceptions.ResponseError("BUSY Redis is busy running a script."),
        exceptions.ResponseError(
            "Error running script (call to f_ab): @user_script:9: @user_script: 9: "
            "-OOM command not allowed when used memory > 'maxmemory'."
        ),
    ],
)
def test_what_redis_cannot_do_now(error: exceptions.RedisError) -> None:
    with pytest.raises(StoreUnavailable) as caught, store_errors():
        raise error
    assert caught.value.__cause__ is error


def test_a_bug_in_a_script_is_not_hidden(real_redis: Redis) -> None:
    with pytest.raises(exceptions.ResponseError), store_errors():
        real_redis.eval("return nobody_defined_this()", 0)
    real_redis.set("slm:leases", "not a sorted set")
    with pytest.raises(exceptions.ResponseError, match="WRONGTYPE"):
        create_and_claim(JobStore(real_redis))


def create_and_claim(store: JobStore) -> None:
    create(store)
    claim(store)
