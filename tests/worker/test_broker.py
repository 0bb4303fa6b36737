"""How Celery is told where Redis is. `tests/e2e/test_redis_away.py` sees it follow."""

from __future__ import annotations

import logging

import pytest
from celery import Celery
from kombu import Queue
from kombu.utils.url import parse_url

from slm_client.redis_server import RedisServer
from slm_jobs.redis_url import RedisUrl
from worker.broker import Broker, broker_settings


def made(url: str) -> Celery:
    app = Celery("test")
    app.conf.update(broker_settings(RedisUrl.parse(url)))
    app.amqp.Connection = Broker
    return app


@pytest.mark.parametrize(
    ("url", "host", "db"),
    [
        ("redis://h:1/2", "h", "2"),
        ("redis://u:p%40%3B%2F@h", "h", "0"),
        ("redis://:p@[::1]:7/1", "::1", "1"),
        ("rediss://u:p@h/3?ssl_cert_reqs=none", "h", "3"),
    ],
)
def test_plain_and_tls(url: str, host: str, db: str) -> None:
    app, address = made(url), RedisUrl.parse(url)
    found = parse_url(app.conf.broker_url)
    assert (found["hostname"], found["port"], found["virtual_host"]) == (host, address.port, db)
    assert (found["userid"], found["password"]) == (address.username, address.password)
    assert (app.connection_for_read().ssl or None) == address.tls


def test_tls_without_options_is_tls() -> None:
    """Kombu alone would speak none."""
    assert made("rediss://h").connection_for_read().ssl == {"ssl_cert_reqs": "required"}


def test_sentinel() -> None:
    url = "rediss+sentinel://u:p%3Bq@a:1,[::1]/name/4?sentinel_password=s&ssl_ca_certs=/ca"
    connection = made(url).connection_for_read()
    assert connection.alt == ["sentinel://u:p%3Bq@a:1/4", "sentinel://u:p%3Bq@[::1]:26379/4"]
    assert connection.transport_options["master_name"] == "name"
    asked = connection.transport_options["sentinel_kwargs"]
    assert (asked["password"], asked["ssl"], asked["ssl_ca_certs"]) == ("s", True, "/ca")
    assert connection.ssl["ssl_ca_certs"] == "/ca"


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:sw0rd%2Ffish@h/1",
        "rediss://:sw0rd%2Ffish@h",
        "redis+sentinel://u:sw0rd%2Ffish@a,b/m?sentinel_password=sw0rd",
        "unix://u:sw0rd%2Ffish@/run/redis.sock",
    ],
)
def test_what_celery_shows_of_it(url: str) -> None:
    app = made(url)
    for connection in (app.connection_for_read(), app.connection_for_write()):
        shown = f"{connection.as_uri()} {connection!r} {connection}"
        assert "sw0rd" not in shown
    assert "sw0rd" not in app.bugreport()


def test_a_redis_that_is_away_is_looked_for_every_two_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connection = made("redis://h").connection_for_read()
    assert isinstance(connection, Broker)
    monkeypatch.setattr(
        "kombu.connection.retry_over_time", lambda *args, **_: intervals.append(args[6:9])
    )
    intervals: list[tuple[float, float, float]] = []
    connection.ensure_connection(max_retries=None)
    assert [most for *_, most in intervals] == [2]


@pytest.mark.parametrize("way", ["ack_log_error", "reject_log_error"])
def test_a_ticket_that_is_done_after_its_connection_was_lost(
    redis_server: RedisServer, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Celery's loop ends the worker at any error but those of a connection."""
    connection = made(redis_server.url).connection_for_read()
    channel = connection.channel()
    queue = Queue("tickets", channel=channel)
    queue.declare()
    channel.basic_publish(channel.prepare_message("x"), "", "tickets")
    message = queue.get()
    assert message
    connection.collect()
    channel._disconnect_pools()  # as it does when a connection of it is lost at that moment
    getattr(message, way)(logging.getLogger("celery"), connection.connection_errors)
    assert "the connection that brought the ticket is closed" in caplog.text
