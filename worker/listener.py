"""Hears at once which jobs clients cancel; the heartbeat tells the same again, later."""

from __future__ import annotations

import logging
from collections.abc import Callable

from slm_jobs.errors import StoreUnavailable
from slm_jobs.store import JobStore
from worker.background import Background

log = logging.getLogger(__name__)

_LISTEN_SECONDS = 0.5  # after which it looks whether to stop
_RETRY_SECONDS = 1.0


class Listener(Background):
    """A thread that calls `cancel(job id, attempt)` for what is published to `worker`."""

    def __init__(self, store: JobStore, worker: str, cancel: Callable[[str, int], None]) -> None:
        super().__init__("listener")
        self._store = store
        self._worker = worker
        self._cancel = cancel

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._listen()
            except StoreUnavailable as error:
                log.warning("cannot hear of cancelled jobs: %s", error)
            except Exception:  # the heartbeat alone would be slow
                log.exception("listening for cancelled jobs failed")
            self._stopped.wait(_RETRY_SECONDS)

    def _listen(self) -> None:
        with self._store.commands(self._worker) as commands:
            while not self._stopped.is_set():
                for job_id, attempt in commands.get(timeout=_LISTEN_SECONDS):
                    self._cancel(job_id, attempt)
