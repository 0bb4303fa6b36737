"""The work that this process holds, and the thread that keeps its leases alive."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable

from slm_jobs.errors import StoreUnavailable
from slm_jobs.schemas import Work, WorkerInfo
from slm_jobs.store import JobStore
from worker.batcher import Completions, HandedBack

log = logging.getLogger(__name__)

_TICK_SECONDS = 1.0
HUNG_SECONDS = 30.0


class Leases:
    """Held work by id. One heartbeat for all of it, and this worker's share of the janitor's work.

    Work whose lease turns out to be lost is cancelled: somebody else has it, or soon will. When
    `stalled_for` exceeds `HUNG_SECONDS` the process ends: a hung engine must not keep its jobs.
    """

    def __init__(
        self,
        store: JobStore,
        *,
        worker: str,
        models: list[str],
        slots: int,
        lease_seconds: float,
        heartbeat_seconds: float,
        stalled_for: Callable[[], float],
    ) -> None:
        self._store = store
        self._worker = worker
        self._models = models
        self._slots = slots
        self._lease_seconds = lease_seconds
        self._interval = heartbeat_seconds
        self._stalled_for = stalled_for
        self._held: dict[str, tuple[Work, Completions | None]] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)

    def __len__(self) -> int:
        with self._lock:
            return len(self._held)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def hold(self, work: Work, future: Completions | None = None) -> None:
        """Keeps the lease of `work` alive until `release`; cancels `future` if it is lost."""
        with self._lock:
            before = self._held.get(work.id)
            self._held[work.id] = (work, future)
        if before and before[0].attempt != work.attempt and before[1]:
            before[1].cancel()  # an attempt of ours that was given up, and claimed again by us

    def release(self, work: Work) -> None:
        with self._lock:
            held = self._held.get(work.id)
            if held and held[0].attempt == work.attempt:  # else our own newer attempt
                del self._held[work.id]

    def release_unfinished(self) -> list[Work]:
        """Releases, and returns, all work that has no outcome which its thread will commit."""
        with self._lock:
            works = [work for work, future in self._held.values() if _unfinished(future)]
            for work in works:
                del self._held[work.id]
        return works

    def beat(self) -> None:
        """One heartbeat. Raises StoreUnavailable."""
        with self._lock:
            held = list(self._held.values())
        info = WorkerInfo(
            id=self._worker,
            models=self._models,
            slots=self._slots,
            running=len(held),
            pid=os.getpid(),
            host=socket.gethostname(),
        )
        lost = self._store.heartbeat(info, [work for work, _ in held])
        for work, future in held:
            if work.id in lost and future is not None:
                future.cancel()

    def _run(self) -> None:
        next_beat = next_sweep = 0.0
        while True:
            self._end_if_hung()
            try:
                if time.monotonic() >= next_beat:
                    self.beat()
                    next_beat = time.monotonic() + self._interval
                if time.monotonic() >= next_sweep:
                    self._store.sweep()
            except StoreUnavailable as error:
                log.warning("no contact with Redis: %s", error)
                # others were cut off too: let them extend their leases before taking any back
                next_sweep = time.monotonic() + self._lease_seconds
            except Exception:  # a dead keeper would lose every lease
                log.exception("heartbeat or sweep failed")
            if self._stopped.wait(min(_TICK_SECONDS, self._interval)):
                return

    def _end_if_hung(self) -> None:
        if (seconds := self._stalled_for()) > HUNG_SECONDS:
            log.critical("no decode step has ended for %.0f s; ending this process", seconds)
            logging.shutdown()
            os._exit(1)  # threads that hang cannot be joined


def _unfinished(future: Completions | None) -> bool:
    if future is None or not future.done():
        return True
    return not future.cancelled() and isinstance(future.exception(), HandedBack)
