"""JobStore: the only truth about jobs, and the only code that changes it.

Every change is one Lua script (`lua/`), so it happens entirely or not at all, and a caller that got
no reply may ask again. Knows nothing of HTTP, Celery or engines; tickets are Celery's only trace.
"""

from __future__ import annotations

import json
import logging
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from slm_jobs import keys
from slm_jobs.admission import Admission, Idempotency, refusal
from slm_jobs.api_keys import ApiKey, KeyProof, KeyStore
from slm_jobs.batch_records import to_row_work
from slm_jobs.batches import BatchStore
from slm_jobs.callbacks import CallbackStore, target_fields
from slm_jobs.commands import Commands
from slm_jobs.connection import connect, store_errors
from slm_jobs.dead_letters import DeadLetters
from slm_jobs.errors import JobNotEnded, JobNotFound, QueueFull, Quota
from slm_jobs.files import FileStore
from slm_jobs.fleet import Fleet
from slm_jobs.gauges import Memory, Rates
from slm_jobs.records import (
    OUTPUTS,
    about,
    deadline_fields,
    fields,
    flattened,
    new_job_id,
    to_job,
    to_microseconds,
    to_piece,
    to_record,
    to_workers,
)
from slm_jobs.schemas import (
    Beat,
    Company,
    Job,
    JobError,
    JobSpec,
    JobStatus,
    Output,
    Piece,
    QueueInfo,
    QueuePosition,
    Usage,
    Work,
    WorkerInfo,
)
from slm_jobs.scripts import Lifetimes, register, run
from slm_jobs.settings import Settings

if TYPE_CHECKING:
    from redis import Redis

log = logging.getLogger(__name__)

SWEEP_LOCK_MS = 900  # janitors tick once a second: one of them sweeps
SWEEP_MOST = 256  # jobs of a kind in one sweep, so that it never holds Redis up for long
_ROOM = 0.05  # of a full queue, which is worth coming again for
_PATIENCE_SECONDS = 60
SCANNED_JOBS = 1_000  # for one page of a list
DRAWN_SEED_BITS = 53  # what JavaScript reads exactly, so that every client can send it again
IDEMPOTENCY_SECONDS = 86_400 + 3_600  # a day at least, whatever clocks think

_DEFAULTS = Settings.model_construct()  # the declared defaults, without the environment


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What one sweep did, in numbers."""

    requeued: int  # work whose lease had expired, waiting again
    exhausted: int  # work that failed because too many of their leases expired
    tickets: int  # tickets that were missing
    failed_jobs: tuple[str, ...] = ()  # of those that failed, each one's model
    failed_rows: tuple[str, ...] = ()


class JobStore:
    """Jobs in one Redis, which `redis` reaches with `decode_responses=True`. Safe for threads.

    Every method raises StoreUnavailable when Redis does not answer in time, is loading, or refuses
    to write. Then what was asked may or may not have happened; repeating the call is safe.

    `clock_offset_ms` is added to Redis's clock: tests move time with it.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        lease_seconds: float = _DEFAULTS.lease_seconds,
        job_ttl_seconds: int = _DEFAULTS.job_ttl_seconds,
        batch_ttl_seconds: int = _DEFAULTS.batch_ttl_seconds,
        dead_letter_ttl_seconds: int = _DEFAULTS.dead_letter_ttl_seconds,
        max_crashes: int = _DEFAULTS.max_crashes,
        max_waiting_jobs: int = _DEFAULTS.max_waiting_jobs,
        clock_offset_ms: int = 0,
    ) -> None:
        self.clock_offset_ms = clock_offset_ms
        self.keys = KeyStore(redis)
        self._redis = redis
        self._scripts = register(
            redis, Lifetimes(job_ttl_seconds, batch_ttl_seconds, dead_letter_ttl_seconds)
        )
        self._lease_ms = round(lease_seconds * 1000)
        self._max_crashes = max_crashes
        self._exhausted = JobError(
            code="attempts_exhausted",
            message=f"{max_crashes} times the worker that ran this job crashed or fell silent",
        ).model_dump_json()
        self._max_waiting = max_waiting_jobs
        self._rates = Rates(self.workers)
        self._memory = Memory(redis)
        self.batches = BatchStore(redis, self._run, nearly_full=self._memory.nearly_full)
        self.callbacks = CallbackStore(redis, self._run)
        self.dead_letters = DeadLetters(self._run)
        self.fleet = Fleet(self._run, self._memory)
        self.files = FileStore(
            redis, self._run, nearly_full=self._memory.nearly_full, ttl_seconds=batch_ttl_seconds
        )

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
            batch_ttl_seconds=settings.batch_ttl_seconds,
            dead_letter_ttl_seconds=settings.dead_letter_ttl_seconds,
            max_crashes=settings.max_crashes,
            max_waiting_jobs=settings.max_waiting_jobs,
        )

    def close(self) -> None:
        """Closes the connections; a later call opens new ones."""
        self._redis.close()

    def ping(self) -> None:
        with store_errors():
            self._redis.ping()

    # Clients

    def create(
        self,
        spec: JobSpec,
        *,
        job_id: str | None = None,
        owner: KeyProof | None = None,
        tokens: int = 0,
        idempotency: Idempotency | None = None,
    ) -> Admission:
        """Makes a job wait, if its owner's limits allow it: all in one call, or nothing of it.

        `tokens` is the most that it may take, prompts included; what it did not use is given back
        at its end. Without an owner there are no limits. A seed or id that is absent is drawn.

        With the id of an existing job, or an Idempotency-Key that came with the same body before,
        it returns that job and charges nothing: who got no reply may ask again.

        Raises a kind of Refused.
        """
        job_id = job_id or new_job_id()
        if spec.seed is None:
            spec = spec.model_copy(update={"seed": secrets.randbits(DRAWN_SEED_BITS)})
        outcome, *details = self._run(
            "create",
            job_id,
            spec.model,
            spec.priority,
            tokens,
            self._max_waiting,
            *(owner or ("", "")),
            *(idempotency or ("", "")),
            IDEMPOTENCY_SECONDS,
            int(self._memory.nearly_full()),
            about(spec),
            spec.model_dump_json(),
            *flattened(target_fields(spec.callback, owner.key if owner else "", spec.request_id)),
            *flattened(deadline_fields(spec)),
        )
        if outcome == "full":
            raise self._full(spec.model, *details)
        if outcome not in ("taken", "known"):
            raise refusal(outcome, details)
        known_id, values, place, quotas = details
        job = self._to_job(known_id, to_record(values), place)
        return Admission(job, known_id != job_id, [Quota(*quota) for quota in quotas])

    def get(self, job_id: str, *, viewer: ApiKey | None = None) -> Job:
        """Raises JobNotFound, also when the record of an ended job has expired, and for a viewer
        who neither owns it nor is an admin."""
        values, place = self._run("read", job_id)
        record = to_record(values)
        if not record or not (viewer is None or viewer.admin or record["key"] == viewer.id):
            raise JobNotFound(job_id)
        return self._to_job(job_id, record, place)

    def page(
        self,
        key: str,
        *,
        statuses: Iterable[JobStatus] = (),
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        cursor: int | None = None,
        limit: int = 50,
    ) -> tuple[list[Job], int | None]:
        """A key's jobs, the newest first, and the cursor of the next page; None after the last.

        With `statuses` a page may hold fewer than `limit`, or none, before the last.
        """
        below = [to_microseconds(created_before)] if created_before else []
        below += [cursor] if cursor is not None else []
        page = self._run(
            "list",
            key,
            f"({min(below)}" if below else "+inf",
            to_microseconds(created_after) if created_after else "-inf",
            limit,
            SCANNED_JOBS,
            *statuses,
        )
        following, pairs = page[0], zip(page[1::2], page[2::2], strict=True)
        jobs = [to_job(job_id, to_record(values)) for job_id, values in pairs]
        return jobs, int(following) if following else None

    def cancel(self, job_id: str) -> Job:
        """Ends a queued job, and tells the worker of a running one; ended ones stay as they are.

        Raises JobNotFound.
        """
        values = self._run("cancel", job_id)
        if values is None:
            raise JobNotFound(job_id)
        return to_job(job_id, to_record(values))

    def delete(self, job_id: str) -> None:
        """Forgets an ended job and its texts. Raises JobNotEnded."""
        if not self._run("delete", job_id):
            raise JobNotEnded(job_id)

    def read_stream(self, job_id: str, start: int = 0) -> list[Piece | None]:
        """What a job's outputs said, from entry `start` of its stream on; None: the text before is
        void. `Piece.start` is not known here, and 0."""
        with store_errors():
            entries = cast("list[str]", self._redis.lrange(keys.STREAM + job_id, start, -1))
        return [to_piece(entry) for entry in entries]

    def queues(self, models: Sequence[str]) -> list[QueueInfo]:
        """How each model's queue stands."""
        rows = self._run("queue", *models)
        workers = self.workers()
        found = []
        for model, numbers in zip(models, rows, strict=True):
            waiting, tokens, running, rows_waiting, rows_running = numbers
            hosting = [worker for worker in workers if model in worker.models]
            rate = sum(worker.tokens_per_second.get(model, 0.0) for worker in hosting)
            found.append(
                QueueInfo(
                    model=model,
                    waiting=waiting,
                    running=running,
                    rows_waiting=rows_waiting,
                    rows_running=rows_running,
                    workers=len(hosting),
                    slots=sum(w.model_slots.get(model, w.slots) for w in hosting),
                    slots_in_use=sum(w.slots_in_use.get(model, 0) for w in hosting),
                    tokens_per_second=round(rate, 1),
                    estimated_wait_seconds=round(tokens / rate, 1) if rate else None,
                )
            )
        return found

    def queue_depth(self, model: str) -> int:
        """How many jobs wait for the model; running ones do not count."""
        with store_errors():
            return self._redis.zcard(keys.waiting(model))

    def _full(self, model: str, waiting: int, tokens: int) -> QueueFull:
        """Who was refused may come again when some of what waits has gone. A place is free sooner,
        but many want it."""
        seconds = tokens * _ROOM / (self._rates.of(model) or math.inf)
        message = f"{waiting} jobs of this model wait already"
        return QueueFull(message, min(max(1, math.ceil(seconds)), _PATIENCE_SECONDS))

    def _to_job(self, job_id: str, record: dict[str, str], place: list[int]) -> Job:
        """With its place in the queue; its share of the queue's tokens is taken for its share of
        the queue's length."""
        if not place:
            return to_job(job_id, record)
        ahead, waiting, tokens = place
        rate = self._rates.of(record["model"])
        seconds = round(tokens * ahead / waiting / rate, 1) if rate else None
        return to_job(job_id, record, QueuePosition(ahead=ahead, estimated_wait_seconds=seconds))

    # Workers

    def claim_next(
        self,
        model: str,
        *,
        worker: str,
        jobs: bool = True,
        rows: int = 0,
        company: Company | None = None,
        claim: int | None = None,
        answered: int | None = None,
    ) -> list[Work]:
        """What `worker` runs next, leased to it as a new attempt: a waiting job, or else rows of
        batches with `rows` outputs together, or one row that may have more.

        `company` is what may join the work that the worker holds; None if it holds nothing. Only
        then, or among their like, suspects are given; and those that would not survive another
        crash alone. One worker at a time is given jobs at most until it holds nothing.

        A worker that makes one claim at a time may number them, and name the last one that was
        `answered`: what later ones were given goes back at once, and not as after a crash.
        """
        beside, works, specs = self._run(
            "claim",
            model,
            worker,
            self._lease_ms,
            int(jobs),
            rows,
            company or "",
            self._max_crashes,
            int(self._memory.nearly_full()),
            claim or "",
            answered or "",
            raw=True,
        )
        batches = dict(zip(specs[::2], map(json.loads, specs[1::2]), strict=True))
        read = partial(_to_work, model, Company(beside.decode()), batches)
        return [known for work in works if (known := read(work))]

    def heartbeat(self, worker: WorkerInfo, held: Iterable[Work]) -> Beat:
        """The worker's sign of life; extends the leases of the work that it still owns.

        Of an id held twice, after taking one's own lost job again, the newest attempt counts.
        """
        newest: dict[str, int] = {}
        for work in held:
            newest[work.id] = max(work.attempt, newest.get(work.id, 0))
        pairs = (part for pair in newest.items() for part in pair)
        info = worker.model_dump_json()
        lost, cancelled = self._run("heartbeat", worker.id, info, self._lease_ms, *pairs)
        return Beat(set(lost), set(cancelled))

    def commands(self, worker_id: str) -> Commands:
        """What clients ask of the worker, as they ask; see `Commands`."""
        return Commands(self._redis, worker_id)

    def append(
        self, work: Work, fingerprint: str, pieces: Sequence[Piece]
    ) -> dict[int, int] | None:
        """Adds text to the job's stream; None if the attempt is stale, then nothing changed.

        Returns how many tokens of each output the stream holds then; an output that is not named
        has none. A piece is taken only where it begins with that count. Where the stream's text is
        of another fingerprint it is declared void, and all counts become 0.
        """
        parts = (part for piece in pieces for part in piece)
        flat = self._run("append", work.id, work.attempt, fingerprint, *parts)
        if flat is None:
            return None
        return {int(k): int(v) for k, v in fields(flat).items() if k != "fingerprint"}

    def complete(
        self, work: Work, outputs: list[Output], usage: Usage, *, fingerprint: str
    ) -> bool:
        """Ends the job with its outputs. False if the attempt is stale; then nothing changed.

        An expired lease that nobody has taken back may still complete.
        """
        return self._end(work, JobStatus.SUCCEEDED, outputs, usage, fingerprint)

    def cancelled(
        self, work: Work, outputs: list[Output], usage: Usage, *, fingerprint: str
    ) -> bool:
        """Ends a job that a client cancelled, with what it has. False if the attempt is stale."""
        return self._end(work, JobStatus.CANCELLED, outputs, usage, fingerprint)

    def fail(
        self,
        work: Work,
        error: JobError,
        usage: Usage | None = None,
        outputs: list[Output] | None = None,
    ) -> bool:
        """Ends the job with an error, and what it had computed. False if the attempt is stale; then
        nothing changed."""
        record = {"usage": usage.model_dump_json()} if usage else {}
        if outputs:
            record["outputs"] = OUTPUTS.dump_json(outputs).decode()
        used = usage.total_tokens if usage else 0
        error_json = error.model_dump_json()
        return self._finish(work, JobStatus.FAILED, used, error=error_json, **record)

    def hand_back(self, works: Iterable[Work], *, crashed: bool = False) -> int:
        """Returns unfinished work to its old place in line, or ends it where a client has cancelled
        it. A crash is counted only where the worker has `crashed`, maybe because of the work.

        Returns how many went back; a stale attempt changes nothing.
        """
        pairs = [part for work in works for part in (work.id, work.attempt)]
        if not pairs:
            return 0
        most = self._max_crashes if crashed else ""
        return int(self._run("hand_back", most, self._exhausted, *pairs))

    def request_ticket(self, model: str) -> None:
        """Leaves a ticket if work waits and too few stand: for who stops claiming too early."""
        self._run("request_ticket", model)

    # The janitor, and who is there

    def sweep(self) -> SweepReport | None:
        """One tick of the janitor; None if another one swept within the last 0.9 s.

        Expired leases go back to their place in line, or fail with `attempts_exhausted` after
        `max_crashes` of them, 256 jobs at a time; but not for one lease's length after Redis was
        away for half of one or longer. Missing tickets are left, and workers without a sign of life
        forgotten.
        """
        counts = self._run(
            "sweep",
            SWEEP_LOCK_MS,
            self._lease_ms,
            SWEEP_MOST,
            self._max_crashes,
            self._exhausted,
        )
        if counts is None:
            return None
        requeued, exhausted, tickets, jobs, rows = counts
        return SweepReport(requeued, exhausted, tickets, tuple(jobs), tuple(rows))

    def workers(self) -> list[WorkerInfo]:
        """The workers that gave a sign of life within one lease, by id."""
        return sorted(to_workers(self._run("workers")), key=lambda worker: worker.id)

    def forget_worker(self, worker_id: str) -> None:
        """For a clean shutdown: the worker no longer counts as alive."""
        self._run("forget_worker", worker_id)

    def _end(
        self, work: Work, status: JobStatus, outputs: list[Output], usage: Usage, fingerprint: str
    ) -> bool:
        return self._finish(
            work,
            status,
            usage.total_tokens,
            outputs=OUTPUTS.dump_json(outputs).decode(),
            usage=usage.model_dump_json(),
            fingerprint=fingerprint,
        )

    def _finish(self, work: Work, status: JobStatus, used: int, **record: str) -> bool:
        return bool(self._run("finish", work.id, work.attempt, status, used, *flattened(record)))

    def _run(self, script: str, *args: str | int | bytes, raw: bool = False) -> Any:
        """What the script returns; its texts as bytes if they are to come `raw`."""
        return run(self._redis, self._scripts[script], [self.clock_offset_ms, *args], raw=raw)


def _to_work(
    model: str, company: Company, batches: Mapping[bytes, Any], work: Sequence[Any]
) -> Work | None:
    """None if it cannot be read, say because a newer api has written it. It is left to its lease,
    which counts as a crash: a newer worker may take it, and it holds up nothing."""
    work_id, attempt, request, batch, left_ms, waited_ms = work
    try:
        if batch:
            return to_row_work(work_id.decode(), attempt, request, batches[batch], company)
        spec = JobSpec.model_validate_json(request)
    except ValueError:
        log.exception("%s cannot be read, and is left to its lease", work_id.decode())
        return None
    return Work(
        id=work_id.decode(),
        attempt=attempt,
        model=model,
        spec=spec,
        seconds_left=None if left_ms == b"" else max(left_ms / 1000, 0.0),
        waited_seconds=max(waited_ms / 1000, 0.0),
        company=company,
    )
