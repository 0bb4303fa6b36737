"""Writes what became of jobs, for as long as it takes, and counts it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from slm_core import Completion
from slm_jobs.errors import StoreUnavailable
from slm_jobs.schemas import JobError, Work
from slm_jobs.store import JobStore
from worker.job_log import log_job
from worker.metrics import WorkerMetrics
from worker.streamer import JobStream
from worker.submission import Submission
from worker.translation import to_outputs

log = logging.getLogger(__name__)


class Outcomes:
    """Methods are safe for threads. Once `give_up` is set, nothing is tried again."""

    def __init__(self, store: JobStore, metrics: WorkerMetrics, give_up: threading.Event) -> None:
        self._store = store
        self._metrics = metrics
        self._give_up = give_up

    def end(
        self,
        work: Work,
        submission: Submission,
        completions: list[Completion],
        fingerprint: str,
        stream: JobStream | None,
        late: JobError | None,
    ) -> None:
        """Commits the outputs, after the rest of the stream: who sees the end has all of it. `late`
        says why what is cut was cut."""
        outputs, usage = to_outputs(work, completions)
        cut = any(output.finish_reason == "cancelled" for output in outputs)
        error = late if cut else None

        def write() -> bool:
            if stream:
                stream.finish(completions)
            if error:
                return self._store.fail(work, error, usage, outputs)
            commit = self._store.cancelled if cut else self._store.complete
            return commit(work, outputs, usage, fingerprint=fingerprint)

        if self._commit(work, write):
            self._metrics.job_ended(work, submission, outputs, error)
        if error:
            _log_failure(work, error)
        else:
            ended = "cancelled" if cut else "complete"
            log_job(log, logging.DEBUG, work, "%s, %d tokens", ended, usage.completion_tokens)

    def fail(self, work: Work, error: JobError) -> None:
        _log_failure(work, error)
        if self._commit(work, lambda: self._store.fail(work, error)):
            self._metrics.job_failed(work, error)

    def _commit(self, work: Work, write: Callable[[], bool]) -> bool:
        """Writes an outcome; while Redis is away, tries again until this worker must leave. Whether
        it stands there now."""
        pause = 0.1
        while True:
            try:
                if written := write():
                    return written
                log_job(log, logging.WARNING, work, "stale, not committed")
                self._metrics.fenced(work.model)
                return False
            except StoreUnavailable as error:
                if self._give_up.wait(pause):
                    log_job(log, logging.ERROR, work, "outcome lost, it will run again: %s", error)
                    return False
                pause = min(2 * pause, 2.0)


def _log_failure(work: Work, error: JobError) -> None:
    log_job(log, logging.WARNING, work, "failed: %s: %s", error.code, error.message)
