"""celery -A tests.chaos.impatient_app worker

The worker's application, for whose broker a second is long: it delivers every ticket again that was
not acknowledged by then. Says so for each, on standard output.
"""

from __future__ import annotations

from typing import Any

from celery.signals import task_prerun

from worker.app import app as app

app.conf.broker_transport_options |= {
    "visibility_timeout": 1,
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
}


@task_prerun.connect(weak=False)
def tell(task: Any, **_: Any) -> None:
    if (task.request.delivery_info or {}).get("redelivered"):
        print("redelivered", flush=True)  # noqa: T201
