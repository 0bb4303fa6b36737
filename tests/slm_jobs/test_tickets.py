"""A ticket is what Celery would send, and Celery runs it. It is rendered without Celery."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from redis import Redis

from slm_client.redis_server import RedisServer
from slm_jobs.store import JobStore
from slm_jobs.tickets import SERVE_TASK, queue_name
from tests.slm_jobs.examples import MODEL, create

QUEUE = queue_name(MODEL)


@pytest.fixture
def app(redis_server: RedisServer) -> Iterator[Celery]:
    app = Celery("tickets", broker=redis_server.url, set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=False,
        task_acks_late=True,
        task_create_missing_queues=True,
        task_ignore_result=True,
        worker_hijack_root_logger=False,
        worker_prefetch_multiplier=1,
        worker_redirect_stdouts=False,
    )
    yield app
    app.close()


def newest_message(redis: Redis) -> dict[str, Any]:
    """Both kombu and we push on the left."""
    message = redis.lindex(QUEUE, 0)
    assert message is not None
    return dict(json.loads(message))


@pytest.fixture
def ticket(real_redis: Redis) -> dict[str, Any]:
    create(JobStore(real_redis))
    return newest_message(real_redis)


def test_a_ticket_is_the_message_that_celery_makes(app: Celery, ticket: dict[str, Any]) -> None:
    ticket_id = ticket["headers"]["id"]
    message = app.amqp.as_task_v2(ticket_id, SERVE_TASK, args=(MODEL,), ignore_result=True)

    assert json.loads(ticket["body"]) == json.loads(json.dumps(message.body))
    assert ticket["properties"]["correlation_id"] == message.properties["correlation_id"]
    ours, celerys = ticket["headers"], message.headers
    assert ours.pop("origin") == "slm_jobs"  # Celery: the sender's pid and host
    assert {name: celerys[name] for name in ours} == ours
    left_out = {name: value for name, value in celerys.items() if name not in ours}
    assert left_out.pop("origin")
    assert not any(left_out.values()), "a header that Celery does set is missing"


def test_a_ticket_travels_as_kombu_sends_it(
    app: Celery, ticket: dict[str, Any], real_redis: Redis
) -> None:
    app.send_task(SERVE_TASK, args=[MODEL], queue=QUEUE, ignore_result=True)
    sent = newest_message(real_redis)
    assert sent["headers"]["id"] != ticket["headers"]["id"]

    encoded, theirs, ours = sent["body"], sent["properties"], ticket["properties"]
    assert json.loads(base64.b64decode(encoded)) == json.loads(ticket["body"])
    assert theirs.pop("body_encoding") == "base64"  # ours is plain, which kombu reads as well
    assert ticket.keys() == sent.keys()
    assert {ticket[name] for name in ("content-type", "content-encoding")} == {
        sent[name] for name in ("content-type", "content-encoding")
    }
    assert ours.keys() == theirs.keys() - {"reply_to"}
    for name in ("delivery_mode", "delivery_info", "priority"):
        assert ours[name] == theirs[name]


def test_celery_runs_a_ticket(app: Celery, real_redis: Redis) -> None:
    served: list[tuple[str, str]] = []
    both = threading.Event()

    @app.task(name=SERVE_TASK, bind=True, shared=False)  # of this app only
    def serve(task: Any, model: str) -> None:
        served.append((task.request.id, model))
        if len(served) == 2:
            both.set()

    store = JobStore(real_redis)
    create(store)
    first = newest_message(real_redis)["headers"]["id"]
    worker = start_worker(
        app,
        pool="threads",
        concurrency=2,
        perform_ping_check=False,
        queues=[QUEUE],
        loglevel="WARNING",  # it becomes that of the root logger, and stays
    )
    with worker:
        create(store)  # the worker waits in BRPOP: a ticket wakes it
        assert both.wait(10)

    assert len({ticket_id for ticket_id, _ in served}) == 2
    assert first in {ticket_id for ticket_id, _ in served}
    assert {model for _, model in served} == {MODEL}
    assert real_redis.llen(QUEUE) == 0
    assert not real_redis.exists("unacked", "unacked_index")
