"""What SLM_REDIS_URL may say, and that its password is told to nobody."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from slm_jobs.redis_url import RedisUrl
from slm_jobs.settings import Settings


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("redis://", {"host": "127.0.0.1", "port": 6379, "db": 0}),
        ("redis://h/", {"host": "h", "db": 0}),
        ("redis://:p%40w@h:1/2", {"host": "h", "port": 1, "db": 2, "password": "p@w"}),
        ("redis://u:p@[::1]:99?db=7", {"host": "::1", "port": 99, "db": 7, "username": "u"}),
        ("rediss://h", {"host": "h", "tls": {"ssl_cert_reqs": "required"}}),
        (
            "rediss://u:p@h/1?ssl_ca_certs=/ca%20s.pem&ssl_check_hostname=false",
            {
                "db": 1,
                "tls": {
                    "ssl_cert_reqs": "required",
                    "ssl_ca_certs": "/ca s.pem",
                    "ssl_check_hostname": False,
                },
            },
        ),
        (
            "redis+sentinel://u:p@a:1,b,[::1]:3/my%20name/4?sentinel_password=q%26",
            {
                "sentinels": (("a", 1), ("b", 26379), ("::1", 3)),
                "master": "my name",
                "db": 4,
                "username": "u",
                "password": "p",
                "sentinel_password": "q&",
                "tls": None,
            },
        ),
        ("rediss+sentinel://a/m", {"master": "m", "tls": {"ssl_cert_reqs": "required"}}),
        ("unix://u:p@/run/redis.sock?db=3", {"path": "/run/redis.sock", "db": 3, "password": "p"}),
    ],
)
def test_what_is_read(url: str, parts: dict[str, Any]) -> None:
    found = RedisUrl.parse(url)
    assert {name: getattr(found, name) for name in parts} == parts


@pytest.mark.parametrize(
    "url",
    [
        "sw0rdfish",
        "http://:sw0rdfish@h",
        "redis://:sw0rd/fish@h",
        "redis://:sw0rd?fish@h",
        "redis://:sw0rd#fish@h",
        "redis://:sw0rdfish@h:0",
        "redis://:sw0rdfish@h:99999",
        "redis://:sw0rdfish@h/x",
        "redis://:sw0rdfish@h/-1",
        "redis://:sw0rdfish@h?db=x",
        "redis://:sw0rdfish@h?sw0rdfish=1",
        "redis://:sw0rdfish@h?ssl_ca_certs=ca.pem",  # and no TLS
        "redis://:sw0rdfish@a,b/0",
        "rediss://:sw0rdfish@h?ssl_cert_reqs=sometimes",
        "unix://host/run/redis.sock",
        "unix://",
        "redis+sentinel://:sw0rdfish@a",
        "redis+sentinel://:sw0rdfish@/name",
        "redis+sentinel://:sw0rdfish@a,,b/name",
        "redis+sentinel://:sw0rdfish@a/name/x",
        "redis+sentinel://:sw0rdfish@a/name/1/2",
        "redis+cluster://:sw0rdfish@a/name",
    ],
)
def test_what_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(ValueError, match=r"^must look like redis://") as caught:
        RedisUrl.parse(url)
    assert caught.value.__cause__ is None
    with pytest.raises(ValidationError) as invalid:
        Settings(redis_url=url)
    assert "fish" not in str(caught.value) + str(invalid.value)


def test_nothing_shows_the_passwords() -> None:
    settings = Settings(redis_url="redis+sentinel://u:sw0rd@a/m?sentinel_password=fish")
    shown = f"{settings!r} {settings} {settings.redis_address!r}"
    assert "sw0rd" not in shown
    assert "fish" not in shown
