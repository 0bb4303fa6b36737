"""The Celery application, tuned for tickets: `python -m celery -A worker.app worker`.

Threads pool, late acks, no results: a ticket only says that work waits, see `slm_jobs.tickets`.
"""

from __future__ import annotations

import sys
from typing import Any

from celery import Celery
from celery.signals import worker_init, worker_shutdown, worker_shutting_down
from kombu import Queue
from pydantic import ValidationError

from slm_jobs.errors import ManifestError
from slm_jobs.manifest import Manifest
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from slm_jobs.tickets import queue_name
from worker.host import Host


def create_host() -> Host:
    """The host of this process, from the environment; exits with one line on a bad setting."""
    try:
        settings = Settings()
        manifest = Manifest.load(settings.models_file)
    except (ManifestError, ValidationError) as error:
        sys.exit(f"worker: {error}")
    # every thread may commit at once; leases must never wait for a connection
    store = JobStore.from_settings(settings, max_connections=settings.slots + 2)
    return Host(settings, manifest, store)


def create_app(host: Host) -> Celery:
    app = Celery("slm", broker=host.settings.redis_url, include=["worker.tasks"])
    app.conf.update(
        broker_connection_max_retries=None,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "unacked_key": "slm:celery:unacked",
            "unacked_index_key": "slm:celery:unacked_index",
            "unacked_mutex_key": "slm:celery:unacked_mutex",
        },
        task_acks_late=True,
        task_ignore_result=True,
        task_queues=[Queue(queue_name(model)) for model in host.manifest.models],
        worker_concurrency=host.concurrency,
        worker_enable_remote_control=False,
        worker_pool="threads",
        worker_prefetch_multiplier=1,
    )
    return app


host = create_host()
app = create_app(host)


@worker_init.connect
def _start(**_: Any) -> None:
    host.start()


@worker_shutting_down.connect
def _drain(**_: Any) -> None:
    host.drain()


@worker_shutdown.connect
def _stop(**_: Any) -> None:
    host.stop()
