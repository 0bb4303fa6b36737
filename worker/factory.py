"""Makes a worker's parts: the host, the Celery application, and what ties one to the other.

Importing this starts nothing; `worker.app` does.
"""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Any

from celery import Celery
from celery.signals import setup_logging, worker_init, worker_shutdown, worker_shutting_down
from kombu import Queue

from slm_core.errors import CheckpointError
from slm_jobs.errors import ManifestError, SettingsError, UnknownModel
from slm_jobs.manifest import Manifest
from slm_jobs.redis_checks import check_redis
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from slm_jobs.tickets import queue_name
from worker.broker import Broker, broker_settings
from worker.host import MAX_JOBS, Host


def create_host() -> Host:
    """The host of this process, from the environment; exits with one line on a bad setting."""
    try:
        settings = Settings.from_environment()
        manifest = Manifest.load(*settings.models_files)
        if settings.worker_models:
            manifest = manifest.only(settings.worker_models)
    except (SettingsError, ManifestError) as error:
        sys.exit(f"worker: {error}")
    except UnknownModel as error:
        sys.exit(f"worker: SLM_WORKER_MODELS: {error}")
    # every job of a model may be committed at once; leases must never wait for a connection
    store = JobStore.from_settings(settings, max_connections=MAX_JOBS + 8)
    return Host(settings, manifest, store)


def create_app(host: Host) -> Celery:
    """Celery, tuned for tickets: threads, late acks, no results; see `slm_jobs.tickets`."""
    app = Celery("slm", include=["worker.tasks"])
    app.conf.update(
        **broker_settings(host.settings.redis_address),
        task_acks_late=True,
        task_ignore_result=True,
        task_queues=[Queue(queue_name(model)) for model in host.manifest.models],
        worker_concurrency=host.concurrency,
        worker_cancel_long_running_tasks_on_connection_loss=False,  # threads cannot be cancelled
        worker_enable_remote_control=False,
        worker_pool="threads",
        worker_prefetch_multiplier=1,
        worker_redirect_stdouts=False,
    )
    app.amqp.Connection = Broker
    return app


def connect_signals(host: Host) -> None:
    """Lets Celery's life drive the host's."""

    @setup_logging.connect(weak=False)
    def log_like_the_api(**_: Any) -> None:
        host.settings.configure_logging()
        for name in ("celery.worker.strategy", "celery.app.trace"):  # two lines for each ticket
            logging.getLogger(name).setLevel(logging.WARNING)

    @worker_init.connect(weak=False)
    def start(**_: Any) -> None:
        host.settings.configure_logging()  # Celery asks for it later only
        try:
            check_redis(host.settings)
            host.start()
        except (SettingsError, CheckpointError) as error:
            sys.exit(f"worker: {error}")
        except Exception:  # Celery would go on, and take tickets without an engine
            traceback.print_exc()
            sys.exit("worker: the engine cannot start, see above")

    @worker_shutting_down.connect(weak=False)
    def drain(**_: Any) -> None:
        host.drain()

    @worker_shutdown.connect(weak=False)
    def stop(**_: Any) -> None:
        host.stop()
