"""Makes a worker's parts: the host, the Celery application, and what ties one to the other.

Importing this starts nothing; `worker.app` does.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from celery import Celery
from celery.signals import setup_logging, worker_init, worker_shutdown, worker_shutting_down
from kombu import Queue

from slm_core.errors import CheckpointError
from slm_jobs.errors import ManifestError, SettingsError
from slm_jobs.manifest import Manifest
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from slm_jobs.tickets import queue_name
from worker.host import Host

log = logging.getLogger(__name__)


def create_host() -> Host:
    """The host of this process, from the environment; exits with one line on a bad setting."""
    try:
        settings = Settings.from_environment()
        manifest = Manifest.load(settings.models_file)
    except (SettingsError, ManifestError) as error:
        sys.exit(f"worker: {error}")
    # every thread may commit at once; leases must never wait for a connection
    store = JobStore.from_settings(settings, max_connections=settings.slots + 2)
    return Host(settings, manifest, store)


def create_app(host: Host) -> Celery:
    """Celery, tuned for tickets: threads, late acks, no results; see `slm_jobs.tickets`."""
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


def connect_signals(host: Host) -> None:
    """Lets Celery's life drive the host's."""

    @setup_logging.connect(weak=False)
    def log_like_the_api(**_: Any) -> None:
        logging.basicConfig(
            level=host.settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
        )
        for name in ("celery.worker.strategy", "celery.app.trace"):  # two lines for each ticket
            logging.getLogger(name).setLevel(logging.WARNING)

    @worker_init.connect(weak=False)
    def start(**_: Any) -> None:
        try:
            host.start()
        except CheckpointError as error:  # Celery logs what a signal handler raises, and goes on
            log.critical("%s", error)
            sys.exit(1)

    @worker_shutting_down.connect(weak=False)
    def drain(**_: Any) -> None:
        host.drain()

    @worker_shutdown.connect(weak=False)
    def stop(**_: Any) -> None:
        host.stop()
