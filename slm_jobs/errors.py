"""Everything `slm_jobs` raises on purpose.

SlmJobsError
├── JobNotFound          no such job, or its record has expired
├── UnknownModel         a model that the manifest does not name
├── ManifestError        models.toml is missing or wrong
├── TemplateError        variables that do not fit a template
├── SettingsError        an environment variable is wrong
├── StoreUnavailable     Redis does not answer, is loading, or refuses to write
├── DeadLetterNotFound   no job with this id has failed, or it was redriven and that is gone
├── NoSuchKey            no API key has this id, or it has been revoked
├── JobNotEnded          it waits or runs, and only what has ended may be deleted
├── BatchNotFound        no such batch, or its record has expired
├── BatchNotEnded        its rows wait or run, and only what has ended may be deleted
├── FileNotFound         no such file, or it has expired
├── CallbackUrlRefused   callbacks may not go there, for a `reason` that `callback_urls` lists
└── Refused              a job or batch was not taken, and nothing was charged
    ├── KeyRejected          no such API key, or it has been revoked
    ├── PriorityTooHigh      the key may not ask for so much
    ├── RateLimited          some limit of the key, which `quotas` tell
    ├── QueueFull            as many jobs wait as may, or Redis is nearly out of memory
    ├── IdempotencyConflict  the Idempotency-Key came with another body before
    ├── JobGone              the Idempotency-Key made a job whose record is gone
    ├── BatchInProgress      a batch with this Idempotency-Key is being uploaded now
    ├── BatchGone            the Idempotency-Key made a batch whose record is gone, or the batch was
    │                        given up while its rows came in
    ├── TooManyFiles         the key has as many files as it may have
    └── TooManyCallbacks     as many callbacks of the key are pending as may be
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class SlmJobsError(Exception):
    pass


class JobNotFound(SlmJobsError):
    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(f"no job {job_id!r}: it never existed or its record has expired")


class UnknownModel(SlmJobsError):
    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        super().__init__(f"no model {name!r}; there are: {', '.join(known)}")


class ManifestError(SlmJobsError):
    pass


class TemplateError(SlmJobsError):
    def __init__(self, unknown: list[str], missing: list[str], known: Iterable[str]) -> None:
        self.unknown = unknown
        self.missing = missing
        wrong = [f"no variable {name[:64]!r}" for name in unknown]
        wrong += [f"{name!r} is missing" for name in missing]
        super().__init__(f"{', '.join(wrong)}; the template takes: {', '.join(known) or 'none'}")


class SettingsError(SlmJobsError):
    pass


class StoreUnavailable(SlmJobsError):
    pass


class DeadLetterNotFound(SlmJobsError):
    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(
            f"no dead letter {job_id!r}: it is none, was redriven or dropped, or has expired"
        )


class NoSuchKey(SlmJobsError):
    def __init__(self, key: str) -> None:
        super().__init__(f"no API key {key[:64]!r}, or it has been revoked")


class JobNotEnded(SlmJobsError):
    def __init__(self, job_id: str) -> None:
        super().__init__(f"job {job_id!r} has not ended; cancel it first")


class BatchNotFound(SlmJobsError):
    def __init__(self, batch_id: str) -> None:
        self.batch_id = batch_id
        super().__init__(f"no batch {batch_id!r}: it never existed or its record has expired")


class BatchNotEnded(SlmJobsError):
    def __init__(self, batch_id: str) -> None:
        super().__init__(f"batch {batch_id!r} has not ended; cancel it first")


class FileNotFound(SlmJobsError):
    def __init__(self, file_id: str) -> None:
        self.file_id = file_id
        super().__init__(f"no file {file_id!r}: it never existed or has expired")


class CallbackUrlRefused(SlmJobsError):
    def __init__(self, reason: str, advice: str) -> None:
        self.reason = reason
        super().__init__(f"no callback may go to this URL: {advice}")


class Quota(NamedTuple):
    """How a key stands with one of its limits, in requests, tokens, jobs or rows."""

    # requests | tokens (a minute each) | jobs-in-flight | queued-tokens | batch-rows | batch-tokens
    policy: str
    limit: int
    remaining: int
    reset_ms: int  # until all of it is there again; 0 for what is held rather than used up
    wait_ms: (
        int  # until a refused request may pass; 0: it passed, -1: it asks for more than there is
    )

    @property
    def violated(self) -> bool:
        return self.wait_ms != 0


class Refused(SlmJobsError):
    pass


class KeyRejected(Refused):
    def __init__(self) -> None:
        super().__init__("there is no such API key, or it has been revoked")


class PriorityTooHigh(Refused):
    def __init__(self, highest: int) -> None:
        self.highest = highest
        super().__init__(f"this key's jobs have a priority of {highest} at most")


class RateLimited(Refused):
    def __init__(self, quotas: Sequence[Quota]) -> None:
        self.quotas = quotas
        self.violated = [quota for quota in quotas if quota.violated]
        super().__init__("limits reached: " + ", ".join(q.policy for q in self.violated))

    @property
    def retry_after(self) -> int | None:
        """Seconds until it may pass; None if it never will."""
        waits = [quota.wait_ms for quota in self.violated]
        return None if min(waits) < 0 else math.ceil(max(waits) / 1000)


class QueueFull(Refused):
    """`retry_after`: seconds until there may be room."""

    def __init__(self, message: str, retry_after: int = 30) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class IdempotencyConflict(Refused):
    def __init__(self) -> None:
        super().__init__("this Idempotency-Key came with another body before")


class JobGone(Refused):
    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(f"the Idempotency-Key made job {job_id!r}, whose record is gone")


class BatchInProgress(Refused):
    def __init__(self) -> None:
        super().__init__("a batch with this Idempotency-Key is being uploaded; try again later")


class BatchGone(Refused):
    def __init__(self, batch_id: str) -> None:
        self.batch_id = batch_id
        super().__init__(f"batch {batch_id!r} is gone")


class TooManyFiles(Refused):
    def __init__(self, most: int) -> None:
        super().__init__(f"this key has {most} files, which is the most; delete some")


class TooManyCallbacks(Refused):
    def __init__(self, most: int) -> None:
        super().__init__(f"{most} callbacks of this key are pending, which is the most")
