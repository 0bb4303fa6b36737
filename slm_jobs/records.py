"""A job's record, a hash of strings in Redis, and how it reads as a `Job`.

Texts that only Python looks into (request, outputs, usage, error) are JSON; times are milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime

from pydantic import TypeAdapter

from slm_jobs.schemas import Job, JobError, JobStatus, Output, Usage

OUTPUTS = TypeAdapter(list[Output])


def to_job(job_id: str, record: Mapping[str, str]) -> Job:
    request = json.loads(record["request"])
    return Job(
        id=job_id,
        status=JobStatus(record["status"]),
        model=record["model"],
        created_at=_time(record["created_at"]),
        started_at=_time(record["started_at"]) if "started_at" in record else None,
        finished_at=_time(record["finished_at"]) if "finished_at" in record else None,
        attempt=int(record["attempt"]),
        seed=request["seed"],
        outputs=OUTPUTS.validate_json(record["outputs"]) if "outputs" in record else [],
        usage=Usage.model_validate_json(record["usage"]) if "usage" in record else None,
        error=JobError.model_validate_json(record["error"]) if "error" in record else None,
        metadata=request["metadata"],
    )


def _time(milliseconds: str) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
