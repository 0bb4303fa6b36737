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
from typing import NamedTuple

from slm_core import Completion
from slm_core.errors import SlmCoreError
from slm_jobs.errors import StoreUnavailable
from slm_jobs.manifest import Manifest, ModelSpec
from slm_jobs.metrics import MetricsServer
from slm_jobs.schemas import JobError, Work, WorkerInfo
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from worker.batcher import ContinuousBatcher
from worker.claims import Claims, Room
from worker.engines import load_engine, slots_of
from worker.feeder import Feeder
from worker.job_log import log_job
from worker.lane import SteppingEngine
from worker.leases import Leases
from worker.listener import Listener
from worker.metrics import WorkerMetrics
from worker.outcomes import Outcomes
from worker.streamer import JobStream, Streamer
from worker.submission import ENDING_SECONDS, EngineFault, EngineLost, HandedBack, Submission
from worker.translation import DEADLINE_EXCEEDED, timed_out, to_error, to_requests

log = logging.getLogger(__name__)

MAX_JOBS = 128  # of a model at once; each takes a thread
MAX_THREADS = 512
EXIT_LOST = 1  # when the engines can run no more
_PREFETCHED = 8  # a row for each so many slots waits in the engine, for the next that is freed

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
        rooms = {name: _room(spec, settings) for name, spec in manifest.models.items()}
        slots = {name: slots_of(spec, settings)[0] for name, spec in manifest.models.items()}
        self._fewer_slots = {name: n for name, n in slots.items() if n != settings.slots}
        threads = sum(room.jobs + 1 for room in rooms.values())  # and a feeder
        self.concurrency = min(threads, MAX_THREADS)
        self._batcher = ContinuousBatcher(
            {name: partial(load, spec, settings) for name, spec in manifest.models.items()},
            on_lost=lambda: threading.Thread(target=self._abandon, name="abandon").start(),
        )
        self.metrics = WorkerMetrics(slots, self._batcher.measured)
        self._metrics_server = MetricsServer(settings, self.metrics.registry)
        self._leases = Leases(
            store,
            describe=self._describe,
            heartbeat_seconds=settings.heartbeat_seconds,
            stalled_for=self._batcher.stalled_for,
            recover=lambda: self._claims.recover(),
            swept=self.metrics.ends.swept,
        )
        self._listener = Listener(store, self.id, self._leases.cancel)
        self._streamer = Streamer(store, self._batcher.fingerprint)
        self._claims = Claims(
            store, self._leases, self.id, rooms, lambda model: self._feeders[model].wake()
        )
        self._draining = threading.Event()
        self._grace_over = threading.Event()
        self._outcomes = Outcomes(store, self.metrics, self._grace_over)
        self._drainer = threading.Thread(target=self._drain, name="drain", daemon=True)
        self._feeders = {
            name: Feeder(
                name,
                store,
                self._batcher,
                self._claims,
                self._leases,
                self.metrics,
                timeout_seconds=settings.job_timeout_seconds,
                give_up=self._grace_over,
            )
            for name in rooms
        }

    def start(self) -> None:
        """Loads the first model, then announces this worker. Raises what loading raises."""
        self._metrics_server.start()
        self._batcher.start()
        self._streamer.start()
        self._listener.start()
        self._leases.start()

    def _describe(self, running: int) -> WorkerInfo:
        return WorkerInfo(
            id=self.id,
            models=list(self.manifest.models),
            slots=self.settings.slots,
            model_slots=self._fewer_slots,
            slots_in_use=self._batcher.slots_in_use(),
            running=running,
            tokens_per_second=self._batcher.rates(),
            pid=os.getpid(),
            host=socket.gethostname(),
        )

    def claim(self, model: str) -> list[Work]:
        """What `run` is to run next: a job, or rows of batches. Nothing where nothing waits, the
        model has all that it may have here, or this worker is leaving."""
        return [] if self._draining.is_set() else self._claims.claim(model)

    def run(self, works: list[Work]) -> None:
        """Decodes claimed work and commits its outcome; commits nothing if its lease was lost.

        With rows the calling thread becomes the feeder of their model, until no more wait.
        """
        first = works[0]
        if first.row:
            self._feeders[first.model].run(works)
        else:
            self._run_job(first)
        if self._draining.is_set() and not len(self._leases):
            self._grace_over.set()

    def _run_job(self, work: Work) -> None:
        ended = self._claims.release
        try:
            with self._streamer.open(work) as stream:
                self._run(work, stream)
        except HandedBack:  # the engines have stopped
            self._claims.close()
            ended = self._claims.forget  # still held: what is unfinished goes back in one call
        except Exception as error:  # a mistake of ours
            log_job(log, logging.ERROR, work, "internal error", exc_info=True)
            self._outcomes.fail(work, to_error(error))
        finally:
            ended([work])

    def _run(self, work: Work, stream: JobStream | None) -> None:
        submission = self._batcher.submit(
            work.model,
            to_requests(work),
            priority=work.spec.priority,
            on_token=stream.take if stream else None,
        )
        self._leases.attach(work, submission)
        limit = _limit(work, self.settings)
        try:
            completions, late = self._result(submission, limit.seconds)
        except CancelledError:
            log_job(log, logging.WARNING, work, "its lease was lost, dropped")
        except EngineLost as error:
            self._claims.give_back_suspect(work, error)
        except TimeoutError:  # nor did it end when it was told to: what it has is out of reach
            submission.drop()
            self._outcomes.fail(work, limit.error)
        except (SlmCoreError, EngineFault) as error:
            self._outcomes.fail(work, to_error(error))
        else:
            fingerprint = self._batcher.fingerprint(work.model)
            why = limit.error if late else None
            self._outcomes.end(work, submission, completions, fingerprint, stream, why)

    def _result(self, submission: Submission, seconds: float) -> tuple[list[Completion], bool]:
        """The completions, and whether it was time, rather than a client, that ended what is cut.

        Raises what the future raises, and TimeoutError if the engine does not end them in time.
        """
        try:
            return submission.future.result(timeout=seconds), False
        except TimeoutError:
            cancelled = submission.ending
            submission.end()
            return submission.future.result(timeout=ENDING_SECONDS), not cancelled

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
        self._claims.close()
        self._grace_over.set()
        if self._drainer.ident is not None:
            self._drainer.join(4 * self.settings.redis_timeout_seconds)
        self._hand_back()
        for thread in (self._listener, self._streamer, self._leases):
            thread.stop(timeout=2 * self.settings.redis_timeout_seconds)
        self._metrics_server.stop()
        with contextlib.suppress(StoreUnavailable):
            self.store.forget_worker(self.id)
        self.store.close()

    def _drain(self) -> None:
        self._claims.close()
        if len(self._leases):
            log.info("draining: running work has %g s to end", self.settings.drain_seconds)
            self._grace_over.wait(self.settings.drain_seconds)
        self._grace_over.set()
        self._hand_back()

    def _abandon(self) -> None:
        """The engines are lost: hands back what is innocent, and ends this process, so that its
        supervisor starts another."""
        self._draining.set()
        self._claims.close()
        self._hand_back()
        until = time.monotonic() + self.settings.redis_timeout_seconds
        while len(self._leases) and time.monotonic() < until:
            time.sleep(0.01)  # what had ended before is being committed
        self.stop()
        logging.shutdown()
        os._exit(EXIT_LOST)

    def _hand_back(self) -> None:
        self._batcher.stop()
        if works := self._leases.release_unfinished():
            try:
                count = self.store.hand_back(works)
                log.info("handed %d jobs and rows back to the queue", count)
            except StoreUnavailable as error:
                log.warning("cannot hand back; the janitor will when leases end: %s", error)


def _room(spec: ModelSpec, settings: Settings) -> Room:
    slots, reserved = slots_of(spec, settings)
    return Room(
        jobs=min(settings.slots, MAX_JOBS),
        row_outputs=slots - reserved + max(1, slots // _PREFETCHED),
    )


class _Limit(NamedTuple):
    """How long a job may run here, and what it has failed with after that."""

    seconds: float
    error: JobError


def _limit(work: Work, settings: Settings) -> _Limit:
    ours, theirs = settings.job_timeout_seconds, work.seconds_left
    if theirs is None or ours < theirs:
        return _Limit(ours, timed_out(ours))
    return _Limit(theirs, DEADLINE_EXCEEDED)
