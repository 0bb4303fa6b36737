"""A job's record, a hash of strings in Redis, and how it reads as a `Job`.

Texts that only Python looks into (request, outputs, usage, error) are JSON; times are milliseconds.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from pydantic import TypeAdapter, ValidationError
from ulid import ULID

from slm_jobs.schemas import (
    Job,
    JobError,
    JobSpec,
    JobStatus,
    Output,
    Piece,
    QueuePosition,
    Usage,
    WorkerInfo,
)

log = logging.getLogger(__name__)

OUTPUTS = TypeAdapter(list[Output])
# What scripts return of a record, in this order.
FIELDS = (
    "status",
    "key",
    "model",
    "priority",
    "about",
    "created_at",
    "started_at",
    "finished_at",
    "attempt",
    "cancel_requested",
    "outputs",
    "usage",
    "fingerprint",
    "error",
    "retry_of",
)


def new_job_id() -> str:
    return f"job_{ULID()}"


def about(spec: JobSpec) -> str:
    """What a record tells of its request, in short."""
    return json.dumps({"seed": spec.seed, "metadata": spec.metadata}, ensure_ascii=False)


def deadline_fields(spec: JobSpec) -> dict[str, str]:
    """What a record keeps of how long a job may wait, and run."""
    seconds = {"queue_timeout_ms": spec.queue_timeout, "run_timeout_ms": spec.run_timeout}
    return {name: str(max(1, round(1000 * s))) for name, s in seconds.items() if s is not None}


def to_record(values: Sequence[str | None]) -> dict[str, str]:
    """A record as scripts return it; empty if there is none."""
    pairs = zip(FIELDS, values, strict=True)
    return {name: value for name, value in pairs if value is not None}


def fields(flat: Sequence[str]) -> dict[str, str]:
    """A hash as scripts return it: names and values in turn."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def flattened(fields: Mapping[str, str]) -> list[str]:
    """Names and values in turn, as scripts take a hash."""
    return [part for pair in fields.items() for part in pair]


def to_job(job_id: str, record: Mapping[str, str], queue: QueuePosition | None = None) -> Job:
    """What later versions have added to the record is left out."""
    asked = json.loads(record["about"])
    return Job(
        id=job_id,
        status=JobStatus(record["status"]),
        model=record["model"],
        created_at=to_time(record["created_at"]),
        started_at=to_time(record["started_at"]) if "started_at" in record else None,
        finished_at=to_time(record["finished_at"]) if "finished_at" in record else None,
        attempt=int(record["attempt"]),
        priority=int(record["priority"]),
        seed=asked["seed"],
        queue=queue,
        cancel_requested="cancel_requested" in record,
        outputs=OUTPUTS.validate_json(record["outputs"], extra="ignore")
        if "outputs" in record
        else [],
        usage=Usage.model_validate_json(record["usage"], extra="ignore")
        if "usage" in record
        else None,
        fingerprint=record.get("fingerprint"),
        error=JobError.model_validate_json(record["error"], extra="ignore")
        if "error" in record
        else None,
        metadata=asked["metadata"],
        retry_of=record.get("retry_of"),
    )


def to_workers(infos: Iterable[str]) -> list[WorkerInfo]:
    """Without those that cannot be read: a worker of another version must not hide the others."""
    workers = []
    for info in infos:
        try:
            workers.append(WorkerInfo.model_validate_json(info))
        except ValidationError as error:
            log.warning("what a worker tells of itself cannot be read: %s", error)
    return workers


def to_time(milliseconds: str) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)


def to_microseconds(time: datetime) -> int:
    return int(time.timestamp() * 1_000_000)


def to_piece(entry: str) -> Piece | None:
    """An entry of a stream; None for the mark after which all text before is void."""
    if entry == "restart":
        return None
    output, end, text = entry.split(" ", 2)
    return Piece(int(output), 0, int(end), text)
