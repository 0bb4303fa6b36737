"""The one task: serve what waits for a model."""

from __future__ import annotations

import time

from slm_jobs.tickets import SERVE_TASK
from worker.app import app, host


@app.task(name=SERVE_TASK)
def serve(model: str) -> None:
    """Claims and runs waiting work until none waits, or makes room after a time slice."""
    until = time.monotonic() + host.settings.slice_seconds
    while works := host.claim(model):
        host.run(works)
        if time.monotonic() > until:
            host.request_ticket(model)
            break
