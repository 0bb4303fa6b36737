"""What SLM_REDIS_URL says: the one place that reads it, for redis-py and for Celery alike.

    redis://[user:password@]host[:port][/db]                  rediss:// for TLS
    redis+sentinel://[user:password@]host[:port],…/name[/db]  rediss+sentinel:// for TLS
    unix://[user:password@]/path[?db=0]

User, password and db are those of Redis. Options after `?`: `ssl_*` as redis-py names them, for
TLS; `sentinel_username` and `sentinel_password`, where the Sentinels ask for them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from redis.connection import parse_url

SENTINEL_PORT = 26379
TLS_OPTIONS = (
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_keyfile",
)
_CERT_REQS = ("none", "optional", "required")
_SENTINEL_OPTIONS = ("sentinel_password", "sentinel_username")
_EXAMPLES = (
    "must look like redis://127.0.0.1:6379/0,"
    " rediss://user:password@host:6379/0?ssl_ca_certs=/ca.pem,"
    " or redis+sentinel://host:26379,host:26379/name/0"
)


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """Where Redis is, and how to speak to it. Its `repr` tells no password."""

    host: str = ""  # none with `path` or `sentinels`
    port: int = 6379
    path: str = ""  # of a unix socket
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: dict[str, Any] | None = None  # redis-py's `ssl_*` options; None: no TLS
    master: str = ""  # by this name the Sentinels know it
    sentinels: tuple[tuple[str, int], ...] = ()
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> RedisUrl:
        """Raises ValueError, which quotes nothing of the URL: there may be a password in it."""
        try:
            return cls(**_parts(url))
        except (ValueError, TypeError):
            raise ValueError(_EXAMPLES) from None

    def credentials(self) -> dict[str, str]:
        """`username` and `password`, as far as there are any."""
        pairs = (("username", self.username), ("password", self.password))
        return {name: value for name, value in pairs if value is not None}

    def sentinel_credentials(self) -> dict[str, str]:
        pairs = (("username", self.sentinel_username), ("password", self.sentinel_password))
        return {name: value for name, value in pairs if value is not None}


def _parts(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    transport, _, sentinel = parts.scheme.partition("+")
    if transport not in ("redis", "rediss", "unix") or sentinel not in ("", "sentinel"):
        raise ValueError
    user, _, hosts = parts.netloc.rpartition("@")
    path = parts.path
    found: dict[str, Any] = {}
    if sentinel:
        name, _, path = path.removeprefix("/").partition("/")
        found["master"] = unquote(name)
        found["sentinels"] = tuple(_address(host, SENTINEL_PORT) for host in hosts.split(","))
        if transport == "unix" or not name:
            raise ValueError
    elif transport != "unix":
        found["host"], found["port"] = _address(hosts or "127.0.0.1", 6379)
    if transport != "unix":
        path = path.strip("/")
        found["db"] = int(path) if path else 0
    elif hosts or not path:
        raise ValueError
    # redis-py reads what is the same everywhere
    place = path if transport == "unix" else ""
    said: dict[str, Any] = parse_url(f"{transport}://{user}@{place}?{parts.query}")  # type: ignore[no-untyped-call]
    said.pop("connection_class", None)
    tls = {name: said.pop(name) for name in TLS_OPTIONS if name in said}
    if transport == "rediss":
        found["tls"] = {"ssl_cert_reqs": "required", **tls}
    known = (*TLS_OPTIONS, "db", *(_SENTINEL_OPTIONS if sentinel else ()))
    if (
        (tls and transport != "rediss")
        or not set(parse_qs(parts.query)) <= set(known)
        or parts.fragment
    ):
        raise ValueError
    found |= said
    if found.get("db", 0) < 0 or tls.get("ssl_cert_reqs", "none") not in _CERT_REQS:
        raise ValueError
    return found


def _address(host: str, default_port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{host}")
    if not parts.hostname or parts.port == 0 or "@" in host or "," in host:
        raise ValueError
    return unquote(parts.hostname), parts.port or default_port
