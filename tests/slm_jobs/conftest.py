"""A store on fakeredis and on real Redis. Tests move time with `store.clock_offset_ms`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import fakeredis
import pytest
from hypothesis import settings
from redis import Redis

from slm_client.redis_server import RedisServer, free_port
from slm_jobs.store import JobStore

# The same examples in every run, so that CI is stable. To search for new ones instead:
#   SLM_HYPOTHESIS=slm-search .venv/bin/pytest --timeout 0 tests/slm_jobs/test_machine.py
settings.register_profile("slm-stable", derandomize=True, deadline=None, database=None)
settings.register_profile("slm-search", deadline=None, max_examples=2_000, print_blob=True)

MakeStore = Callable[..., JobStore]


@pytest.fixture
def real_redis(redis_server: RedisServer) -> Iterator[Redis]:
    with Redis.from_url(redis_server.url, decode_responses=True) as redis:
        redis.flushall()
        yield redis


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of one test's own, which may be stopped, also when the test ends."""
    server = RedisServer(tmp_path / "redis", free_port())
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["fakeredis", "redis"])
def redis(request: pytest.FixtureRequest) -> Iterator[Redis]:
    if request.param == "redis":
        yield request.getfixturevalue("real_redis")
    else:
        with fakeredis.FakeRedis(decode_responses=True) as fake:
            yield fake


@pytest.fixture
def make_store(redis: Redis) -> MakeStore:
    """Further stores on the same Redis, as other processes have them."""
    return lambda **options: JobStore(redis, **options)


@pytest.fixture
def store(make_store: MakeStore) -> JobStore:
    return make_store()
