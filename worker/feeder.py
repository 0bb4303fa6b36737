"""Keeps a model's engine full of rows of batches.

JSON and Redis cost time only here, in one thread for each model, and in calls that serve all rows
which have ended since the last one: the slower Redis is, the fewer they get.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue

from slm_jobs.batch_schemas import RowEnd
from slm_jobs.errors import StoreUnavailable
from slm_jobs.schemas import JobError, Work
from slm_jobs.store import JobStore
from worker.batcher import ContinuousBatcher
from worker.claims import Claims
from worker.job_log import log_job
from worker.leases import Leases
from worker.metrics import WorkerMetrics
from worker.submission import ENDING_SECONDS, EngineLost, HandedBack, Submission
from worker.translation import timed_out, to_error, to_outputs, to_requests

log = logging.getLogger(__name__)

ROW_PRIORITY = -1  # below every job's, so that they stay out of the reserved slots
_LOOK_SECONDS = 1.0  # after which it looks for rows, whether or not it was woken
_RETRY_SECONDS = 0.1  # after Redis did not answer; doubled each time, up to `_LOOK_SECONDS`


@dataclass(eq=False, slots=True)
class _Row:
    """A row in the engine. At `deadline` it is told to end; then it is `late`, unless a client has
    told it before."""

    work: Work
    submission: Submission
    deadline: float
    late: bool = False

    @property
    def outputs(self) -> int:
        return len(self.submission.requests)


class Feeder:
    """Runs rows, and claims more as they end. `run` is for one thread at a time, `wake` for all.

    Once `give_up` is set, it tries only once more to write what has ended.
    """

    def __init__(
        self,
        model: str,
        store: JobStore,
        batcher: ContinuousBatcher,
        claims: Claims,
        leases: Leases,
        metrics: WorkerMetrics,
        *,
        timeout_seconds: float,
        give_up: threading.Event,
    ) -> None:
        self._model = model
        self._store = store
        self._batcher = batcher
        self._claims = claims
        self._leases = leases
        self._metrics = metrics
        self._timeout_seconds = timeout_seconds
        self._give_up = give_up
        self._news: SimpleQueue[_Row | None] = SimpleQueue()  # what has ended; None: look for rows
        self._running: dict[_Row, None] = {}  # the soonest deadline first
        self._ending: dict[_Row, None] = {}  # told to end at their deadlines; in the same order
        self._ended: list[RowEnd] = []  # not written yet
        self._row_outputs = 0  # in the engine
        self._pause = _RETRY_SECONDS
        self._retry_at: float | None = None  # while Redis is away, and what has ended stays here

    def wake(self) -> None:
        """There may be rows to claim."""
        self._news.put(None)

    def run(self, works: list[Work]) -> None:
        """Runs the rows that its thread has claimed, and more, until none is left."""
        try:
            self._submit(works)
            while self._busy or self._claim_more():
                self._take_news()
                self._end_late_ones()
                if self._retry_at is None:
                    self._claim_more()  # first, as the engine waits for it
                self._write()
        except Exception as error:  # a mistake of ours
            log.exception("feeding model %s failed", self._model)
            self._fail_all(error)

    @property
    def _busy(self) -> bool:
        return bool(self._running or self._ending or self._ended)

    def _claim_more(self) -> bool:
        """Whether there were more. If not, and nothing is left here, others may feed the model."""
        try:
            works = self._claims.feed(self._model, self._row_outputs, idle=not self._busy)
        except Exception:  # a mistake of ours, and not of the rows that are here
            log.exception("cannot claim rows of model %s", self._model)
            return False
        self._submit(works)
        return bool(works)

    def _submit(self, works: list[Work]) -> None:
        deadline = time.monotonic() + self._timeout_seconds
        for work in works:
            try:
                requests = to_requests(work)
                submission = self._batcher.submit(self._model, requests, priority=ROW_PRIORITY)
            except Exception as error:
                self._ended.append(_failed(work, to_error(error)))
                continue
            row = _Row(work, submission, deadline)
            self._running[row] = None
            self._row_outputs += row.outputs
            self._leases.attach(work, submission)
            submission.future.add_done_callback(partial(self._tell, row))

    def _tell(self, row: _Row, _: object) -> None:
        self._news.put(row)

    def _take_news(self) -> None:
        """Waits until a row has ended or something else is due, then takes all that have."""
        with contextlib.suppress(Empty):
            row = self._news.get(timeout=self._patience())
            while True:
                if row:
                    self._settle(row)
                row = self._news.get_nowait()

    def _patience(self) -> float:
        now = time.monotonic()
        due = [row.deadline for rows in (self._running, self._ending) for row in _first(rows)]
        if self._ended:
            due.append(self._retry_at or now)
        return max(0.0, min([now + _LOOK_SECONDS, *due]) - now)

    def _settle(self, row: _Row) -> None:
        if row not in self._running and row not in self._ending:
            return  # it did not end in time
        self._remove(row)
        future = row.submission.future
        if future.cancelled():
            log_job(log, logging.DEBUG, row.work, "its lease was lost, dropped")
            self._claims.release([row.work])
        elif isinstance(future.exception(), EngineLost):
            self._claims.give_back_suspect(row.work, future.exception())
            self._claims.release([row.work])
        elif isinstance(future.exception(), HandedBack):
            self._claims.close()  # the engines have stopped
            self._claims.forget([row.work])  # still held: it goes back with all others
        else:
            self._ended.append(self._outcome(row))

    def _outcome(self, row: _Row) -> RowEnd:
        work = row.work
        try:
            outputs, usage = to_outputs(work, row.submission.future.result(timeout=0))
            fingerprint = self._batcher.fingerprint(self._model)
        except Exception as error:
            return _failed(work, to_error(error))
        if not any(output.finish_reason == "cancelled" for output in outputs):
            return RowEnd(work, "succeeded", outputs, usage, fingerprint)
        if not row.late:
            return RowEnd(work, "cancelled", outputs, usage, fingerprint)
        why = timed_out(self._timeout_seconds)
        return RowEnd(work, "failed", outputs, usage, fingerprint, why)

    def _end_late_ones(self) -> None:
        now = time.monotonic()
        while (row := next(_first(self._running), None)) and row.deadline <= now:
            del self._running[row]
            if not row.submission.begun:  # jobs took every slot
                row.deadline = now + self._timeout_seconds
                self._running[row] = None
                continue
            row.deadline = now + ENDING_SECONDS
            row.late = not row.submission.ending
            row.submission.end()
            self._ending[row] = None
        while (row := next(_first(self._ending), None)) and row.deadline <= now:
            self._remove(row)  # what it has is out of reach
            row.submission.drop()
            self._ended.append(_failed(row.work, timed_out(self._timeout_seconds)))

    def _remove(self, row: _Row) -> None:
        self._running.pop(row, None)
        self._ending.pop(row, None)
        self._row_outputs -= row.outputs

    def _write(self) -> None:
        """Writes what has ended, all in one call; while Redis is away, tries again later."""
        if not self._ended or (self._retry_at or 0.0) > time.monotonic():
            return
        try:
            done = self._finish(self._ended)
        except StoreUnavailable as error:
            if not self._give_up.is_set():
                log.warning("cannot write what %d rows became: %s", len(self._ended), error)
                self._retry_at = time.monotonic() + self._pause
                self._pause = min(2 * self._pause, _LOOK_SECONDS)
                return
            log.error("%d outcomes lost, these rows will run again: %s", len(self._ended), error)
        else:
            if stale := done.count(False):
                log.warning("%d rows were stale, not committed", stale)
        self._pause, self._retry_at = _RETRY_SECONDS, None
        ended, self._ended = self._ended, []
        self._claims.release([end.work for end in ended])

    def _finish(self, ends: list[RowEnd]) -> list[bool]:
        """Raises StoreUnavailable. A row that the store cannot take takes no others along."""
        try:
            done = self._store.batches.finish(ends)
            self._metrics.rows_ended(ends, done)
            return done
        except StoreUnavailable:
            raise
        except Exception as error:  # a mistake of ours
            if len(ends) > 1:
                return [done for end in ends for done in self._finish([end])]
            [end] = ends
            log_job(log, logging.ERROR, end.work, "cannot be committed", exc_info=True)
            failed = _failed(end.work, to_error(error))
            return [False] if end == failed else self._finish([failed])

    def _fail_all(self, error: Exception) -> None:
        for row in [*self._running, *self._ending]:
            self._remove(row)
            row.submission.drop()
            self._ended.append(_failed(row.work, to_error(error)))
        ended, self._ended = self._ended, []
        try:
            self._finish(ended)
        except StoreUnavailable as unavailable:
            log.error("%d rows will run again: %s", len(ended), unavailable)
        finally:
            self._claims.release([end.work for end in ended])
            self._claims.stop_feeding(self._model)


def _first(rows: dict[_Row, None]) -> Iterator[_Row]:
    """The first of `rows`, if there are any."""
    return itertools.islice(rows, 1)


def _failed(work: Work, error: JobError) -> RowEnd:
    log_job(log, logging.DEBUG, work, "failed: %s: %s", error.code, error.message)
    return RowEnd(work, "failed", [], None, None, error)
