"""One worker process: it claims work, has it decoded, and commits the outcome."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from functools import partial

from slm_core import Completion
from slm_core.errors import SlmCoreError
from slm_jobs.errors import StoreUnavailable
from slm_jobs.manifest import Manifest, ModelSpec
from slm_jobs.schemas import JobError, Work, WorkerInfo
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from worker.batcher import ContinuousBatcher
from worker.engines import load_engine
from worker.job_log import log_job
from worker.lane import EngineFault, HandedBack, SteppingEngine, Submission
from worker.leases import Leases
from worker.listener import Listener
from worker.places import Places
from worker.streamer import JobStream, Streamer
from worker.translation import to_outputs, to_requests

log = logging.getLogger(__name__)

MAX_PLACES = 128  # of a model; each is a thread that holds a job
MAX_THREADS = 512
_ENDING_SECONDS = 5.0  # that work may take to end when it is told to; a step takes far less

Load = Callable[[ModelSpec, Settings], SteppingEngine]


class Host:
    """The engines of every model in the manifest, and the store. Methods are safe for threads."""

    def __init__(
        self, settings: Settings, manifest: Manifest, store: JobStore, load: Load = load_engine
    ) -> None:
        self.settings = settings
        self.manifest = manifest
        self.store = store
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        places = min(settings.slots, MAX_PLACES)
        self.concurrency = min(places * len(manifest.models), MAX_THREADS)
        self._places = Places(manifest.models, places)
        self._batcher = ContinuousBatcher(
            {name: partial(load, spec, settings) for name, spec in manifest.models.items()}
        )
        self._leases = Leases(
            store,
            describe=self._describe,
            lease_seconds=settings.lease_seconds,
            heartbeat_seconds=settings.heartbeat_seconds,
            stalled_for=self._batcher.stalled_for,
        )
        self._listener = Listener(store, self.id, self._leases.cancel)
        self._streamer = Streamer(store, self._batcher.fingerprint)
        self._draining = threading.Event()
        self._grace_over = threading.Event()
        self._drainer = threading.Thread(target=self._drain, name="drain", daemon=True)

    def start(self) -> None:
        """Loads the first model, then announces this worker. Raises what loading raises."""
        self._batcher.start()
        self._streamer.start()
        self._listener.start()
        self._leases.start()

    def _describe(self, running: int) -> WorkerInfo:
        return WorkerInfo(
            id=self.id,
            models=list(self.manifest.models),
            slots=self.settings.slots,
            running=running,
            tokens_per_second=self._batcher.rates(),
            pid=os.getpid(),
            host=socket.gethostname(),
        )

    def claim(self, model: str) -> Work | None:
        """The best waiting work; None where nothing waits, the model has all the jobs that it may
        have here, or this worker is leaving."""
        while not self._draining.is_set() and self._places.take(model):
            work, again = None, False
            try:
                work = self.store.claim_next(model, worker=self.id)
            except StoreUnavailable as error:
                log.warning("cannot claim work: %s", error)
            finally:
                if work is None:
                    again = self._places.leave(model)
            if work:
                self._leases.hold(work)
            if not again:
                return work
        return None

    def run(self, work: Work) -> None:
        """Decodes claimed work and commits its outcome; commits nothing if its lease was lost."""
        try:
            with self._streamer.open(work) as stream:
                self._run(work, stream)
        except HandedBack:
            return  # still held: what is unfinished goes back in one call
        except Exception as error:  # a mistake of ours
            log_job(log, logging.ERROR, work, "internal error", exc_info=True)
            message = f"the worker failed: {type(error).__name__}"
            self._fail(work, JobError(code="internal_error", message=message))
        finally:
            self._places.leave(work.model)
        self._leases.release(work)
        if self._draining.is_set() and not len(self._leases):
            self._grace_over.set()

    def _run(self, work: Work, stream: JobStream | None) -> None:
        submission = self._batcher.submit(
            work.model,
            to_requests(work),
            priority=work.spec.priority,
            on_token=stream.take if stream else None,
        )
        self._leases.attach(work, submission)
        try:
            completions, late = self._result(submission)
        except CancelledError:
            log_job(log, logging.WARNING, work, "its lease was lost, dropped")
        except TimeoutError:  # nor did it end when it was told to: what it has is out of reach
            submission.drop()
            self._fail(work, self._timeout())
        except SlmCoreError as error:
            self._fail(work, JobError(code="invalid_request", message=str(error)))
        except EngineFault as error:
            self._fail(work, JobError(code="engine_fault", message=str(error)))
        else:
            self._end(work, completions, stream, late=late)

    def _result(self, submission: Submission) -> tuple[list[Completion], bool]:
        """The completions, and whether it was time, rather than a client, that ended what is cut.

        Raises what the future raises, and TimeoutError if the engine does not end them in time.
        """
        try:
            return submission.future.result(timeout=self.settings.job_timeout_seconds), False
        except TimeoutError:
            cancelled = submission.ending
            submission.end()
            return submission.future.result(timeout=_ENDING_SECONDS), not cancelled

    def _end(
        self, work: Work, completions: list[Completion], stream: JobStream | None, *, late: bool
    ) -> None:
        """Commits the outputs, after the rest of the stream: who sees the end has all of it."""
        outputs, usage = to_outputs(work, completions)
        fingerprint = self._batcher.fingerprint(work.model)
        cut = any(output.finish_reason == "cancelled" for output in outputs)
        error = self._timeout() if cut and late else None

        def write() -> bool:
            if stream:
                stream.finish(completions)
            if error:
                return self.store.fail(work, error, usage, outputs)
            commit = self.store.cancelled if cut else self.store.complete
            return commit(work, outputs, usage, fingerprint=fingerprint)

        self._commit(work, write)
        if error:
            _log_failure(work, error)
        else:
            ended = "cancelled" if cut else "complete"
            log_job(log, logging.DEBUG, work, "%s, %d tokens", ended, usage.completion_tokens)

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
        for thread in (self._listener, self._streamer, self._leases):
            thread.stop(timeout=2 * self.settings.redis_timeout_seconds)
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
        self._batcher.stop()
        if works := self._leases.release_unfinished():
            try:
                count = self.store.hand_back(works)
                log.info("handed %d running jobs back to the queue", count)
            except StoreUnavailable as error:
                log.warning("cannot hand back; the janitor will when leases end: %s", error)

    def _timeout(self) -> JobError:
        limit = f"did not end within {self.settings.job_timeout_seconds:g} s"
        return JobError(code="job_timeout", message=limit)

    def _fail(self, work: Work, error: JobError) -> None:
        _log_failure(work, error)
        self._commit(work, lambda: self.store.fail(work, error))

    def _commit(self, work: Work, write: Callable[[], bool]) -> None:
        """Writes an outcome; while Redis is away, tries again until this worker must leave."""
        pause = 0.1
        while True:
            try:
                if not write():
                    log_job(log, logging.WARNING, work, "stale, not committed")
                return
            except StoreUnavailable as error:
                if self._grace_over.wait(pause):
                    log_job(log, logging.ERROR, work, "outcome lost, it will run again: %s", error)
                    return
                pause = min(2 * pause, 2.0)


def _log_failure(work: Work, error: JobError) -> None:
    log_job(log, logging.WARNING, work, "failed: %s: %s", error.code, error.message)
