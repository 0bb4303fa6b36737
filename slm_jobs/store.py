"""JobStore: the only truth about jobs, and the only code that changes it.

Every change is one Lua script (`lua/`), so it happens entirely or not at all, and a caller that got
no reply may ask again. Knows nothing of HTTP, Celery or engines; tickets are Celery's only trace.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ulid import ULID

from slm_jobs import keys
from slm_jobs.connection import connect, store_errors
from slm_jobs.errors import JobNotFound
from slm_jobs.records import OUTPUTS, to_job
from slm_jobs.schemas import (
    Job,
    JobError,
    JobRequest,
    JobStatus,
    Output,
    Usage,
    Work,
    WorkerInfo,
)
from slm_jobs.scripts import register
from slm_jobs.settings import Settings

if TYPE_CHECKING:
    from redis import Redis

SWEEP_LOCK_MS = 900  # janitors tick once a second: one of them sweeps
SWEEP_LEASES = 256  # taken back in one sweep, so that it never holds Redis up for long
DRAWN_SEED_BITS = 53  # what JavaScript reads exactly, so that every client can send it again

_DEFAULTS = Settings.model_construct()  # the declared defaults, without the environment


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What one sweep did, in numbers."""

    requeued: int  # jobs whose lease had expired, waiting again
    exhausted: int  # jobs that failed because too many of their leases expired
    tickets: int  # tickets that were missing


def new_job_id() -> str:
    return f"job_{ULID()}"


class JobStore:
    """Jobs in one Redis, which `redis` reaches with `decode_responses=True`. Safe for threads.

    Every method raises StoreUnavailable when Redis does not answer in time, is loading, or refuses
    to write. Then what was asked may or may not have happened; repeating the call is safe. A claim
    whose reply was lost comes back when its lease expires.

    `clock_offset_ms` is added to Redis's clock: tests move time with it.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        lease_seconds: float = _DEFAULTS.lease_seconds,
        job_ttl_seconds: int = _DEFAULTS.job_ttl_seconds,
        max_crashes: int = _DEFAULTS.max_crashes,
        clock_offset_ms: int = 0,
    ) -> None:
        self.clock_offset_ms = clock_offset_ms
        self._redis = redis
        self._scripts = register(redis)
        self._lease_ms = round(lease_seconds * 1000)
        self._job_ttl_seconds = job_ttl_seconds
        self._max_crashes = max_crashes

    @classmethod
    def from_settings(cls, settings: Settings, *, max_connections: int = 32) -> JobStore:
        """A store with a pool of its own. Redis is not called yet.

        Threads beyond `max_connections` wait for a connection: a script takes about 0.1 ms, so a
        few connections serve many threads.
        """
        return cls(
            connect(settings, max_connections=max_connections),
            lease_seconds=settings.lease_seconds,
            job_ttl_seconds=settings.job_ttl_seconds,
            max_crashes=settings.max_crashes,
        )

    def close(self) -> None:
        """Closes the connections; a later call opens new ones."""
        self._redis.close()

    def ping(self) -> None:
        with store_errors():
            self._redis.ping()

    # Clients

    def create(self, request: JobRequest, *, model: str, job_id: str | None = None) -> Job:
        """Makes a job wait for `model`, a name of the manifest. Draws seed and id if absent.

        With the id of an existing job it returns that job, unchanged: a caller that draws the id
        (`new_job_id`) may repeat a call that got no reply.
        """
        job_id = job_id or new_job_id()
        seed = secrets.randbits(DRAWN_SEED_BITS) if request.seed is None else request.seed
        request = request.model_copy(update={"model": model, "seed": seed})
        flat = self._run("create", job_id, model, request.model_dump_json())
        return to_job(job_id, dict(zip(flat[::2], flat[1::2], strict=True)))

    def get(self, job_id: str) -> Job:
        """Raises JobNotFound, also when the record of an ended job has expired."""
        with store_errors():
            record = cast("dict[str, str]", self._redis.hgetall(keys.job(job_id)))
        if not record:
            raise JobNotFound(job_id)
        return to_job(job_id, record)

    def queue_depth(self, model: str) -> int:
        """How many jobs wait for the model; running ones do not count."""
        with store_errors():
            return self._redis.zcard(keys.waiting(model))

    # Workers

    def claim_next(self, model: str, *, worker: str) -> Work | None:
        """The next waiting job, leased to `worker` as a new attempt; None if nothing waits."""
        claimed = self._run("claim", model, worker, self._lease_ms)
        if claimed is None:
            return None
        job_id, attempt, request = claimed
        return Work(
            id=job_id,
            attempt=attempt,
            model=model,
            request=JobRequest.model_validate_json(request),
        )

    def heartbeat(self, worker: WorkerInfo, held: Iterable[Work]) -> set[str]:
        """The worker's sign of life; extends the leases of the work that it still owns.

        Returns the ids of the rest: their record is gone, they have ended, or somebody took them
        back. Of an id held twice, after taking one's own lost job again, the newest attempt counts.
        """
        newest: dict[str, int] = {}
        for work in held:
            newest[work.id] = max(work.attempt, newest.get(work.id, 0))
        pairs = (part for pair in newest.items() for part in pair)
        info = worker.model_dump_json()
        return set(self._run("heartbeat", worker.id, info, self._lease_ms, *pairs))

    def complete(
        self, work: Work, outputs: list[Output], usage: Usage, *, fingerprint: str
    ) -> bool:
        """Ends the job with its outputs. False if the attempt is stale; then nothing changed.

        An expired lease that nobody has taken back may still complete.
        """
        return self._finish(
            work,
            JobStatus.SUCCEEDED,
            outputs=OUTPUTS.dump_json(outputs).decode(),
            usage=usage.model_dump_json(),
            fingerprint=fingerprint,
        )

    def fail(self, work: Work, error: JobError) -> bool:
        """Ends the job with an error. False if the attempt is stale; then nothing changed."""
        return self._finish(work, JobStatus.FAILED, error=error.model_dump_json())

    def hand_back(self, works: Iterable[Work]) -> int:
        """Returns unfinished work to its old place in line; no crash is counted.

        Returns how many went back; a stale attempt changes nothing.
        """
        pairs = [part for work in works for part in (work.id, work.attempt)]
        return int(self._run("hand_back", *pairs)) if pairs else 0

    def request_ticket(self, model: str) -> None:
        """Leaves a ticket if work waits and too few stand: for who stops claiming too early."""
        self._run("request_ticket", model)

    # The janitor, and who is there

    def sweep(self) -> SweepReport | None:
        """One tick of the janitor; None if another one swept within the last 0.9 s.

        Expired leases go back to their place in line, or fail with `attempts_exhausted` after
        `max_crashes` of them, 256 jobs at a time. Missing tickets are left, and workers without a
        sign of life forgotten.
        """
        error = JobError(
            code="attempts_exhausted",
            message=f"{self._max_crashes} times the worker that ran this job fell silent",
        )
        counts = self._run(
            "sweep",
            SWEEP_LOCK_MS,
            SWEEP_LEASES,
            self._max_crashes,
            error.model_dump_json(),
            self._job_ttl_seconds,
        )
        return None if counts is None else SweepReport(*counts)

    def workers(self) -> list[WorkerInfo]:
        """The workers that gave a sign of life within one lease, by id."""
        alive = [WorkerInfo.model_validate_json(info) for info in self._run("workers")]
        return sorted(alive, key=lambda worker: worker.id)

    def forget_worker(self, worker_id: str) -> None:
        """For a clean shutdown: the worker no longer counts as alive."""
        self._run("forget_worker", worker_id)

    def _finish(self, work: Work, status: JobStatus, **record: str) -> bool:
        parts = (part for pair in record.items() for part in pair)
        ttl = self._job_ttl_seconds
        return bool(self._run("finish", work.id, work.attempt, status, ttl, *parts))

    def _run(self, script: str, *args: str | int) -> Any:
        with store_errors():
            return self._scripts[script](args=[self.clock_offset_ms, *args])
