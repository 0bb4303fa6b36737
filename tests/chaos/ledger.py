"""What was asked of the service, and all that it ever answered: the auditor's other side."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from slm_client.batch import Result
from slm_client.job import Job


@dataclass
class Asked:
    """A job that somebody wants."""

    number: int
    key: str  # the name of an API key
    body: dict[str, Any]
    idempotency_key: str | None
    ids: set[str] = field(default_factory=set)  # from every 202
    replays: int = 0
    refusals: int = 0  # answers of 429 and 503
    uncertain: bool = False  # some request came to no answer: the job may exist
    cancelled: bool = False
    deleted: bool = False
    seen: set[str] = field(default_factory=set)  # every end of it that was read, as JSON
    streamed_wrong: str = ""  # how its stream differs from its outputs
    troubles: list[str] = field(default_factory=list)  # answers that nobody should get

    def note_end(self, job: Job) -> None:
        self.seen.add(ending(job.raw))


@dataclass
class AskedBatch:
    key: str
    rows: list[dict[str, Any]]
    options: dict[str, Any]
    ids: set[str] = field(default_factory=set)
    cancelled: bool = False
    results: list[Result] = field(default_factory=list)  # as they came while it ran
    troubles: list[str] = field(default_factory=list)


class Ledger:
    """Safe for threads."""

    def __init__(self) -> None:
        self.jobs: list[Asked] = []
        self.batches: list[AskedBatch] = []
        self.slowest_seconds = 0.0  # of all requests that take jobs
        self._lock = threading.Lock()

    def open(self, key: str, body: dict[str, Any], idempotency_key: str | None) -> Asked:
        with self._lock:
            number = len(self.jobs)
            body = {**body, "metadata": {"number": str(number)}}
            self.jobs.append(Asked(number, key, body, idempotency_key))
            return self.jobs[-1]

    def note_seconds(self, seconds: float) -> None:
        self.slowest_seconds = max(self.slowest_seconds, seconds)


def ending(document: Mapping[str, Any]) -> str:
    """What must never change once a job has ended."""
    names = ("status", "outputs", "usage", "error", "seed", "attempt", "finished_at")
    return json.dumps({name: document.get(name) for name in names}, sort_keys=True)
