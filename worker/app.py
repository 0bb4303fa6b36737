"""The Celery application, tuned for tickets: `python -m celery -A worker.app worker`.

Threads pool, late acks, no results: a ticket only says that work waits, see `slm_jobs.tickets`.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from celery import Celery
from celery.signals import setup_logging, worker_init, worker_shutdown, worker_shutting_down
from kombu import Queue
from pydantic import ValidationError

from slm_core.errors import CheckpointError
from slm_jobs.errors import ManifestError
from slm_jobs.manifest import Manifest
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from slm_jobs.tickets import queue_name
from worker.host import Host

log = logging.getLogger(__name__)


def create_host() -> Host:
    """The host of this process, from the environment; exits with one line on a bad setting."""
    try:
        settings = Settings()
        manifest = Manifest.load(settings.models_file)
    except ManifestError as error:
        sys.exit(f"worker: {error}")
    except ValidationError as error:
        wrong = (f"SLM_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        sys.exit(f"worker: {'; '.join(wrong)}")
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
        worker_redirect_stdouts=False,
    )
    return app


host = create_host()
app = create_app(host)


@setup_logging.connect
def _log(**_: Any) -> None:
    logging.basicConfig(
        level=host.settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for name in ("celery.worker.strategy", "celery.app.trace"):  # a line or two for each ticket
        logging.getLogger(name).setLevel(logging.WARNING)


@worker_init.connect
def _start(**_: Any) -> None:
    try:
        host.start()
    except CheckpointError as error:  # Celery logs what a signal handler raises, and goes on
        log.critical("%s", error)
        sys.exit(1)


@worker_shutting_down.connect
def _drain(**_: Any) -> None:
    host.drain()


@worker_shutdown.connect
def _stop(**_: Any) -> None:
    host.stop()
