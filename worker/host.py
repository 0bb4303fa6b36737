"""One worker process: it claims work, has it decoded, and commits the outcome."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from functools import partial

import torch

from slm_core import Engine
from slm_core.errors import SlmCoreError
from slm_jobs.errors import StoreUnavailable
from slm_jobs.manifest import Manifest, ModelSpec
from slm_jobs.schemas import JobError, Work
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from worker.batcher import ContinuousBatcher, EngineFault, HandedBack
from worker.leases import Leases
from worker.translation import to_outputs, to_requests

log = logging.getLogger(__name__)

MAX_THREADS = 128  # each holds one job


class Host:
    """The engines of every model in the manifest, and the store. Methods are safe for threads."""

    def __init__(self, settings: Settings, manifest: Manifest, store: JobStore) -> None:
        self.settings = settings
        self.manifest = manifest
        self.store = store
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.concurrency = min(settings.slots, MAX_THREADS)
        self._batchers: dict[str, ContinuousBatcher] = {}
        self._leases = Leases(
            store,
            worker=self.id,
            models=list(manifest.models),
            slots=settings.slots,
            lease_seconds=settings.lease_seconds,
            heartbeat_seconds=settings.heartbeat_seconds,
            stalled_for=lambda: max((b.stalled_for() for b in self._batchers.values()), default=0),
        )
        self._draining = threading.Event()
        self._grace_over = threading.Event()
        self._drainer = threading.Thread(target=self._drain, name="drain", daemon=True)

    def start(self) -> None:
        """Loads every model, then announces this worker. Raises CheckpointError."""
        for name, spec in self.manifest.models.items():
            started = time.monotonic()
            batcher = ContinuousBatcher(partial(self._load, spec), f"engine-{name}")
            self.attach(name, batcher)
            seconds = time.monotonic() - started
            log.info("model %s ready after %.1f s: %s", name, seconds, batcher.fingerprint)
        self._leases.start()

    def _load(self, spec: ModelSpec) -> Engine:
        if self.settings.threads:  # else torch takes every core that this process may use
            torch.set_num_threads(self.settings.threads)
        return Engine.from_checkpoint(
            spec.checkpoint,
            device=self.settings.device,
            precision=spec.precision,
            slots=self.settings.slots,
            kernels=self.settings.kernels,
        )

    def attach(self, model: str, batcher: ContinuousBatcher) -> None:
        """Serves `model` with a batcher, and starts it."""
        batcher.start()
        self._batchers[model] = batcher

    def claim(self, model: str) -> Work | None:
        """The best waiting work, or None where nothing waits or this worker is leaving."""
        if self._draining.is_set() or model not in self._batchers:
            return None
        try:
            work = self.store.claim_next(model, worker=self.id)
        except StoreUnavailable as error:
            log.warning("cannot claim work: %s", error)
            return None
        if work:
            self._leases.hold(work)
        return work

    def run(self, work: Work) -> None:
        """Decodes claimed work and commits its outcome; commits nothing if its lease was lost."""
        try:
            self._run(work)
        except HandedBack:
            return  # still held: what is unfinished goes back in one call
        except Exception as error:  # a mistake of ours
            log.exception("%s attempt %d: internal error", work.id, work.attempt)
            self._fail(work, "internal_error", f"the worker failed: {type(error).__name__}")
        self._leases.release(work)
        if self._draining.is_set() and not len(self._leases):
            self._grace_over.set()

    def _run(self, work: Work) -> None:
        future = self._batchers[work.model].submit(to_requests(work))
        self._leases.hold(work, future)
        try:
            completions = future.result(timeout=self.settings.job_timeout_seconds)
        except CancelledError:
            log.warning("%s attempt %d: its lease was lost, dropped", work.id, work.attempt)
        except TimeoutError:
            future.cancel()
            limit = f"did not end within {self.settings.job_timeout_seconds:g} s"
            self._fail(work, "job_timeout", limit)
        except SlmCoreError as error:
            self._fail(work, "invalid_request", str(error))
        except EngineFault as error:
            self._fail(work, "engine_fault", str(error))
        else:
            outputs, usage = to_outputs(work, completions)
            fingerprint = self._batchers[work.model].fingerprint
            self._commit(
                work, lambda: self.store.complete(work, outputs, usage, fingerprint=fingerprint)
            )

    def request_ticket(self, model: str) -> None:
        """Leaves a ticket for what still waits; if that fails, the janitor will."""
        try:
            self.store.request_ticket(model)
        except StoreUnavailable as error:
            log.warning("cannot leave a ticket: %s", error)

    def drain(self) -> None:
        """Claims nothing more; what still runs after the grace period is handed back.

        A second call ends the grace. Returns at once: it is called from a signal handler.
        """
        if self._draining.is_set():
            self._grace_over.set()
        else:
            self._draining.set()
            self._drainer.start()

    def stop(self) -> None:
        """Hands back what still runs, ends the threads, and takes this worker off the list."""
        self._draining.set()
        self._grace_over.set()
        if self._drainer.ident is not None:
            self._drainer.join(4 * self.settings.redis_timeout_seconds)
        self._hand_back()
        self._leases.stop(timeout=2 * self.settings.redis_timeout_seconds)
        with contextlib.suppress(StoreUnavailable):
            self.store.forget_worker(self.id)
        self.store.close()

    def _drain(self) -> None:
        if len(self._leases):
            log.info("draining: running jobs have %g s to end", self.settings.drain_seconds)
            self._grace_over.wait(self.settings.drain_seconds)
        self._grace_over.set()
        self._hand_back()

    def _hand_back(self) -> None:
        for batcher in self._batchers.values():
            batcher.stop()
        if works := self._leases.release_unfinished():
            try:
                count = self.store.hand_back(works)
                log.info("handed %d running jobs back to the queue", count)
            except StoreUnavailable as error:
                log.warning("cannot hand back; the janitor will when leases end: %s", error)

    def _fail(self, work: Work, code: str, message: str) -> None:
        log.warning("%s attempt %d failed: %s: %s", work.id, work.attempt, code, message)
        error = JobError(code=code, message=message)
        self._commit(work, lambda: self.store.fail(work, error))

    def _commit(self, work: Work, write: Callable[[], bool]) -> None:
        """Writes an outcome; while Redis is away, tries again until this worker must leave."""
        pause = 0.1
        while True:
            try:
                if not write():
                    log.warning("%s attempt %d is stale, not committed", work.id, work.attempt)
                return
            except StoreUnavailable as error:
                if self._grace_over.wait(pause):
                    log.error("%s: outcome lost, it will run again: %s", work.id, error)
                    return
                pause = min(2 * pause, 2.0)
