"""Celery's way to the Redis of the store. Knows how kombu wants to be told of it."""

from __future__ import annotations

from functools import cache
from typing import Any, Self
from urllib.parse import quote

from kombu import Connection
from kombu.transport import virtual
from redis.backoff import NoBackoff
from redis.retry import Retry

from slm_jobs.connection import KEEPALIVE, sentinel_options
from slm_jobs.redis_url import RedisUrl

_TIMEOUT = 5  # seconds; without it a connection that fell silent would hold the consumer for ever
_LOOK_AGAIN = 2  # seconds after which a Redis that is away is looked for, always


def broker_settings(address: RedisUrl) -> dict[str, Any]:
    """Celery's settings `broker_*`. Kombu never sees our URL: of its query it would make arguments,
    and without one it would speak no TLS."""
    options: dict[str, Any] = {
        "socket_timeout": _TIMEOUT,
        "socket_connect_timeout": _TIMEOUT,
        **KEEPALIVE,
        "health_check_interval": _TIMEOUT,
        "retry_on_timeout": True,
        "unacked_key": "slm:celery:unacked",
        "unacked_index_key": "slm:celery:unacked_index",
        "unacked_mutex_key": "slm:celery:unacked_mutex",
    }
    if address.sentinels:
        options["master_name"] = address.master
        options["sentinel_kwargs"] = {
            **sentinel_options(address, _TIMEOUT),
            "retry": Retry(NoBackoff(), 0),
        }
    return {
        "broker_url": _url(address),
        "broker_use_ssl": address.tls or False,
        "broker_transport_options": options,
        "broker_connection_max_retries": None,
        "broker_connection_retry_on_startup": True,
    }


def _url(address: RedisUrl) -> str:
    given = [quote(text or "", safe="") for text in (address.username, address.password)]
    user = f"{':'.join(given)}@" if any(given) else ""
    if address.path:
        return f"redis+socket://{user}{address.path}?virtual_host={address.db}"
    if address.sentinels:
        return ";".join(
            f"sentinel://{user}{_at(host, port)}/{address.db}" for host, port in address.sentinels
        )
    scheme = "redis" if address.tls is None else "rediss"
    return f"{scheme}://{user}{_at(address.host, address.port)}/{address.db}"


def _at(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Broker(Connection):
    """Looks for a Redis that is away as often after an hour as at first; Celery alone would wait
    for up to 30 s. And a lost connection never ends the worker, see `_Channel`."""

    def ensure_connection(self, *args: Any, **options: Any) -> Self:
        options["interval_max"] = _LOOK_AGAIN
        return super().ensure_connection(*args, **options)

    def get_transport_cls(self) -> Any:
        kombus: Any = super().get_transport_cls()
        return _transport(kombus)


class _Channel(virtual.Channel):
    """A ticket that is done after its connection was lost cannot be acknowledged. Kombu's channel
    raises AttributeError then, which Celery's loop does not expect: the worker would end."""

    def basic_ack(self, *args: Any, **options: Any) -> None:
        self._check_open()
        super().basic_ack(*args, **options)

    def basic_reject(self, *args: Any, **options: Any) -> None:
        self._check_open()
        super().basic_reject(*args, **options)

    def _check_open(self) -> None:
        if self.connection is None:
            raise ConnectionResetError("the connection that brought the ticket is closed")


@cache
def _transport(kombus: Any) -> Any:
    """Kombu's transport, with our channels."""
    channel = type(kombus.Channel.__name__, (_Channel, kombus.Channel), {})
    return type(kombus.__name__, (kombus,), {"Channel": channel})
