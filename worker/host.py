"""One worker process: its store, its engines, and the work that it holds.

This is where jobs meet the model; `slm_jobs` terms become `slm_core` terms only here.
"""

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

import torch

from slm_core import Completion, Engine, SamplingParams
from slm_core.errors import SlmCoreError
from slm_jobs.errors import StoreUnavailable
from slm_jobs.manifest import Manifest
from slm_jobs.schemas import JobError, Output, Usage, Work, WorkerInfo
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from worker.batcher import Completions, ContinuousBatcher, EngineFault, HandedBack, Request

log = logging.getLogger(__name__)

_TICK_SECONDS = 1.0
MAX_THREADS = 128


class Host:
    """Claims work, has it decoded, commits the results, and keeps its leases alive meanwhile."""

    def __init__(self, settings: Settings, manifest: Manifest) -> None:
        self.settings = settings
        self.manifest = manifest
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.concurrency = min(settings.slots, MAX_THREADS)
        self.store = JobStore.from_settings(settings, max_connections=self.concurrency + 4)
        self._batchers: dict[str, ContinuousBatcher] = {}
        self._fingerprints: dict[str, str] = {}
        self._held: dict[str, tuple[Work, Completions | None]] = {}
        self._lock = threading.Lock()
        self._draining = threading.Event()
        self._stopped = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="leases", daemon=True)

    def start(self) -> None:
        """Loads every model, then announces this worker. Raises CheckpointError."""
        torch.set_num_threads(self.settings.threads or os.cpu_count() or 1)
        for name, spec in self.manifest.models.items():
            started = time.monotonic()
            engine = Engine.from_checkpoint(
                spec.checkpoint,
                device=self.settings.device,
                precision=spec.precision,
                slots=self.settings.slots,
            )
            self._fingerprints[name] = engine.fingerprint
            self._batchers[name] = ContinuousBatcher(engine, name=f"engine-{name}")
            self._batchers[name].start()
            log.info(
                "model %s ready in %.1f s: %s, %d slots, %d threads",
                name,
                time.monotonic() - started,
                engine.fingerprint,
                engine.slots,
                torch.get_num_threads(),
            )
        self._keeper.start()

    def claim(self, model: str) -> Work | None:
        """The best waiting work, or None where nothing waits or this worker is leaving."""
        if self._draining.is_set():
            return None
        try:
            work = self.store.claim_next(model, worker=self.id)
        except StoreUnavailable as error:
            log.warning("cannot claim work: %s", error)
            return None
        if work:
            with self._lock:
                self._held[work.id] = (work, None)
        return work

    def run(self, work: Work) -> None:
        """Decodes claimed work and commits its outcome; commits nothing if its lease was lost."""
        future = self._batchers[work.model].submit(sampling_requests(work))
        with self._lock:
            self._held[work.id] = (work, future)
        try:
            completions = future.result(timeout=self.settings.job_timeout_seconds)
        except HandedBack:
            return  # stays held: drain() returns all such work in one call
        except CancelledError:
            log.warning("job %s attempt %d: lease lost, dropped", work.id, work.attempt)
        except TimeoutError:
            future.cancel()
            limit = f"did not end within {self.settings.job_timeout_seconds:g} s"
            self._fail(work, "job_timeout", limit)
        except SlmCoreError as error:
            self._fail(work, "invalid_request", str(error))
        except EngineFault as error:
            self._fail(work, "engine_fault", str(error))
        else:
            outputs, usage = summarise(work, completions)
            fingerprint = self._fingerprints[work.model]
            self._commit(
                work, lambda: self.store.complete(work, outputs, usage, fingerprint=fingerprint)
            )
        with self._lock:
            self._held.pop(work.id, None)

    def request_ticket(self, model: str) -> None:
        """Leaves a ticket for what still waits; if that fails, the janitor will."""
        try:
            self.store.request_ticket(model)
        except StoreUnavailable as error:
            log.warning("cannot leave a ticket: %s", error)

    def drain(self) -> None:
        """Claims nothing more; after the grace period hands back what still runs.

        Returns at once: it is called from a signal handler.
        """
        if not self._draining.is_set():
            self._draining.set()
            threading.Thread(target=self._drain, name="drain", daemon=True).start()

    def stop(self) -> None:
        """Ends the threads and takes this worker off the list."""
        self._draining.set()
        self._stopped.set()
        self._hand_back()
        self._keeper.join(self.settings.redis_timeout_seconds * 2)
        with contextlib.suppress(StoreUnavailable):
            self.store.forget_worker(self.id)

    def _drain(self) -> None:
        log.info("draining: running jobs have %g s", self.settings.drain_seconds)
        deadline = time.monotonic() + self.settings.drain_seconds
        while time.monotonic() < deadline and not self._stopped.wait(0.05):
            with self._lock:
                if not self._held:
                    return
        self._hand_back()

    def _hand_back(self) -> None:
        for batcher in self._batchers.values():
            batcher.stop()
        with self._lock:
            works = [work for work, future in self._held.values() if _unfinished(future)]
            for work in works:
                del self._held[work.id]
        if works:
            try:
                count = self.store.hand_back(works)
                log.info("handed %d of %d running jobs back to the queue", count, len(works))
            except StoreUnavailable as error:
                log.warning("cannot hand back (%s); the janitor will, once leases end", error)

    def _fail(self, work: Work, code: str, message: str) -> None:
        log.warning("job %s attempt %d failed: %s: %s", work.id, work.attempt, code, message)
        error = JobError(code=code, message=message)
        self._commit(work, lambda: self.store.fail(work, error))

    def _commit(self, work: Work, write: Callable[[], bool]) -> None:
        """Writes an outcome; while Redis is away, tries again until the lease must be lost."""
        deadline = time.monotonic() + 4 * self.settings.lease_seconds
        pause = 0.1
        while True:
            try:
                if not write():
                    log.warning("job %s attempt %d: stale, not committed", work.id, work.attempt)
                return
            except StoreUnavailable as error:
                if time.monotonic() > deadline:
                    log.error("job %s: outcome lost (%s); it will run again", work.id, error)
                    return
                time.sleep(pause)
                pause = min(2 * pause, 2.0)

    def _keep(self) -> None:
        """Heartbeats every third of a lease, and this worker's share of the janitor's work."""
        next_heartbeat = 0.0
        while True:
            try:
                if time.monotonic() >= next_heartbeat:
                    self._heartbeat()
                    next_heartbeat = time.monotonic() + self.settings.heartbeat_seconds
                self.store.sweep()
            except StoreUnavailable as error:
                log.warning("no contact with Redis: %s", error)
            except Exception:
                log.exception("heartbeat or sweep failed")
            if self._stopped.wait(min(_TICK_SECONDS, self.settings.heartbeat_seconds)):
                return

    def _heartbeat(self) -> None:
        with self._lock:
            held = list(self._held.values())
        info = WorkerInfo(
            id=self.id,
            models=list(self._batchers),
            slots=self.settings.slots,
            running=len(held),
            pid=os.getpid(),
            host=socket.gethostname(),
        )
        lost = self.store.heartbeat(info, [work for work, _ in held])
        for work, future in held:
            if work.id in lost and future is not None:
                future.cancel()


def _unfinished(future: Completions | None) -> bool:
    """Whether work has no outcome that its thread will commit."""
    if future is None or not future.done():
        return True
    return not future.cancelled() and isinstance(future.exception(), HandedBack)


def sampling_requests(work: Work) -> list[Request]:
    """A prompt and its parameters for every output, in order; output i draws from seed + i."""
    request = work.request
    seed = request.seed or 0
    prompts = [prompt for prompt in request.prompts for _ in range(request.n)]
    return [
        (
            prompt,
            SamplingParams(
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                top_k=request.top_k,
                top_p=request.top_p,
                seed=seed + index,
                stop=tuple(request.stop),
                ignore_eos=request.ignore_eos,
            ),
        )
        for index, prompt in enumerate(prompts)
    ]


def summarise(work: Work, completions: list[Completion]) -> tuple[list[Output], Usage]:
    """Outputs and usage; a prompt's tokens count once, however many continuations it has."""
    outputs = [
        Output(index=index, text=c.text, finish_reason=c.finish_reason)
        for index, c in enumerate(completions)
    ]
    prompt_tokens = sum(c.usage.prompt_tokens for c in completions[:: work.request.n])
    completion_tokens = sum(c.usage.completion_tokens for c in completions)
    usage = Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
    )
    return outputs, usage
