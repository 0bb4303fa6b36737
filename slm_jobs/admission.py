"""What may come of asking for a job: it is taken, it was known, or it is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from slm_jobs.errors import (
    BatchGone,
    BatchInProgress,
    IdempotencyConflict,
    JobGone,
    KeyRejected,
    PriorityTooHigh,
    QueueFull,
    Quota,
    RateLimited,
    Refused,
)
from slm_jobs.schemas import Job


class Idempotency(NamedTuple):
    """An `Idempotency-Key`, and the body it came with, as SHA-256."""

    key: str
    body: str


class Admission(NamedTuple):
    job: Job
    replayed: bool  # it was known; nothing was charged
    quotas: list[Quota]


def refusal(outcome: str, details: Sequence[Any]) -> Refused:
    """The error for an outcome of a script that takes a job or a batch."""
    match outcome:
        case "unauthorised":
            return KeyRejected()
        case "conflict":
            return IdempotencyConflict()
        case "gone":
            return JobGone(details[0])
        case "in_progress":
            return BatchInProgress()
        case "batch_gone":
            return BatchGone(details[0])
        case "priority":
            return PriorityTooHigh(details[0])
        case "memory":
            return QueueFull("Redis is nearly out of memory")
        case "limited":
            return RateLimited([Quota(*quota) for quota in details[0]])
    raise ValueError(f"a script answered {outcome!r}")
