"""TLS and ACL users, on the way of the store and of events. `tests/worker/test_broker.py` has
Celery's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import closing

import pytest
from redis import Redis

from slm_client.redis_server import RedisServer
from slm_jobs import keys
from slm_jobs.errors import StoreUnavailable
from slm_jobs.events import JobEvents
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from tests.slm_jobs.examples import claim, complete, create
from tests.slm_jobs.tls_proxy import PEM, TlsProxy

PASSWORD = "p@ss:w/rd"  # noqa: S105
QUOTED = "p%40ss%3Aw%2Frd"


@pytest.fixture
def tls_proxy(real_redis: Redis, redis_server: RedisServer) -> Iterator[TlsProxy]:
    """In front of a Redis with the user `slm`."""
    real_redis.acl_setuser(
        "slm",
        enabled=True,
        passwords=[f"+{PASSWORD}"],
        keys=["*"],
        channels=["*"],
        categories=["+@all"],
    )
    with TlsProxy(redis_server.port).running() as proxy:
        yield proxy
    real_redis.acl_deluser("slm")


def settings_of(proxy: TlsProxy, user: str = f"slm:{QUOTED}") -> Settings:
    return Settings(redis_url=f"rediss://{user}@127.0.0.1:{proxy.port}/0?ssl_ca_certs={PEM}")


def test_the_store(tls_proxy: TlsProxy) -> None:
    with closing(JobStore.from_settings(settings_of(tls_proxy))) as store:
        create(store)
        assert complete(store, claim(store))


def test_events(tls_proxy: TlsProxy, real_redis: Redis) -> None:
    async def listeners() -> int:
        events = JobEvents.from_settings(settings_of(tls_proxy))
        async with events.watch("job_1"):
            [(_, count)] = real_redis.pubsub_numsub(f"{keys.EVENTS}job_1")
        await events.close()
        await asyncio.sleep(0.2)  # redis-py does not wait until TLS has said goodbye
        return int(count)

    assert asyncio.run(listeners()) == 1


@pytest.mark.parametrize("user", ["slm:sw0rdfish", "nobody:sw0rdfish"])
def test_a_wrong_password_is_not_told(
    tls_proxy: TlsProxy, caplog: pytest.LogCaptureFixture, user: str
) -> None:
    settings = settings_of(tls_proxy, user)
    caplog.set_level(logging.DEBUG)
    store = JobStore.from_settings(settings)
    with closing(store), pytest.raises(StoreUnavailable, match="username-password") as caught:
        store.ping()
    assert "sw0rdfish" not in str(caught.value) + caplog.text


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("rediss://127.0.0.1:{port}/0", "certificate verify failed"),  # by nobody that we trust
        ("rediss://127.0.0.1:{port}/0?ssl_ca_certs=/none.pem", "No such file"),
        ("redis://127.0.0.1:{port}/0", "closed|reset"),  # no TLS
    ],
)
def test_what_is_wrong_with_tls_is_said(tls_proxy: TlsProxy, url: str, wrong: str) -> None:
    settings = Settings(redis_url=url.format(port=tls_proxy.port))
    store = JobStore.from_settings(settings)
    with closing(store), pytest.raises(StoreUnavailable, match=wrong):
        store.ping()
