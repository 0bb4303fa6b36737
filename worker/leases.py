"""The work that this process holds, and the thread that keeps its leases alive."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from slm_jobs.errors import StoreUnavailable
from slm_jobs.schemas import Work, WorkerInfo
from slm_jobs.store import JobStore, SweepReport
from worker.background import Background
from worker.submission import HandedBack, Submission

log = logging.getLogger(__name__)

_TICK_SECONDS = 1.0
HUNG_SECONDS = 30.0
_MAX_EARLY = 1000


class _Held:
    """Work, what runs it, and what that is to be told as soon as it is there."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self._submission: Submission | None = None
        self._order: Callable[[Submission], None] | None = None

    @property
    def unfinished(self) -> bool:
        future = self._submission.future if self._submission else None
        if future is None or not future.done():
            return True
        return not future.cancelled() and isinstance(future.exception(), HandedBack)

    def attach(self, submission: Submission) -> None:
        self._submission = submission
        if self._order:
            self._order(submission)

    def tell(self, order: Callable[[Submission], None]) -> None:
        self._order = order
        if self._submission:
            order(self._submission)


class Leases(Background):
    """Held work by id. One heartbeat for all of it, and this worker's share of the janitor's work.

    Work whose lease turns out to be lost is dropped: somebody else has it, or soon will. Work that
    a client cancels is ended. When `stalled_for` exceeds `HUNG_SECONDS` the process ends: a hung
    engine must not keep its jobs. `describe` tells of this worker, with so much work held.
    `recover`, called now and then, may raise StoreUnavailable. `swept` hears what our sweeps did.
    """

    def __init__(
        self,
        store: JobStore,
        *,
        describe: Callable[[int], WorkerInfo],
        heartbeat_seconds: float,
        stalled_for: Callable[[], float],
        recover: Callable[[], None],
        swept: Callable[[SweepReport], None],
    ) -> None:
        super().__init__("leases")
        self._store = store
        self._describe = describe
        self._interval = heartbeat_seconds
        self._stalled_for = stalled_for
        self._recover = recover
        self._swept = swept
        self._held: dict[str, _Held] = {}
        self._early: dict[tuple[str, int], None] = {}  # cancelled, and not held here, or not yet
        self._lock = threading.Lock()

    def __len__(self) -> int:
        with self._lock:
            return len(self._held)

    def hold(self, work: Work) -> None:
        """Keeps the lease of `work` alive until `release`."""
        held = _Held(work)
        with self._lock:
            if (work.id, work.attempt) in self._early:
                del self._early[work.id, work.attempt]
                held.tell(Submission.end)
            self._held[work.id] = held

    def attach(self, work: Work, submission: Submission) -> None:
        """From now on `submission` runs the work; it is told what the work was told before."""
        with self._lock:
            held = self._of(work.id, work.attempt)
            if held:
                held.attach(submission)
        if not held:
            submission.drop()

    def cancel(self, job_id: str, attempt: int) -> None:
        """A client wants this to end, which may be said before it is held here."""
        with self._lock:
            if held := self._of(job_id, attempt):
                held.tell(Submission.end)
                return
            self._early[job_id, attempt] = None
            if len(self._early) > _MAX_EARLY:
                del self._early[next(iter(self._early))]

    def release(self, work: Work) -> None:
        with self._lock:
            if self._of(work.id, work.attempt):  # else our own newer attempt
                del self._held[work.id]

    def release_unfinished(self) -> list[Work]:
        """Releases, and returns, all work that has no outcome which its thread will commit."""
        with self._lock:
            works = [held.work for held in self._held.values() if held.unfinished]
            for work in works:
                del self._held[work.id]
        return works

    def beat(self) -> None:
        """One heartbeat. Raises StoreUnavailable."""
        with self._lock:
            works = [held.work for held in self._held.values()]
        told = self._store.heartbeat(self._describe(len(works)), works)
        with self._lock:
            for work in works:
                if held := self._of(work.id, work.attempt):
                    if work.id in told.lost:
                        held.tell(Submission.drop)
                    elif work.id in told.cancelled:
                        held.tell(Submission.end)

    def _of(self, job_id: str, attempt: int) -> _Held | None:
        held = self._held.get(job_id)
        return held if held and held.work.attempt == attempt else None

    def _run(self) -> None:
        next_beat = 0.0
        while True:
            self._end_if_hung()
            try:
                if time.monotonic() >= next_beat:
                    self.beat()
                    next_beat = time.monotonic() + self._interval
                self._recover()
                if report := self._store.sweep():
                    self._swept(report)
            except StoreUnavailable as error:
                log.warning("no contact with Redis: %s", error)
            except Exception:  # a dead keeper would lose every lease
                log.exception("heartbeat or sweep failed")
            if self._stopped.wait(min(_TICK_SECONDS, self._interval)):
                return

    def _end_if_hung(self) -> None:
        if (seconds := self._stalled_for()) > HUNG_SECONDS:
            log.critical("no decode step has ended for %.0f s; ending this process", seconds)
            logging.shutdown()
            os._exit(1)  # threads that hang cannot be joined
