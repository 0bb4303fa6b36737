"""A job as the service tells it, and what may be asked of it. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypedDict


class Params(TypedDict, total=False):
    """The fields of `POST /jobs` besides `prompt`. What is left out takes the service's default.

    `template` and its `variables` take the place of a prompt. After `queue_timeout` seconds without
    a start the job is `expired`; after `run_timeout` seconds from its first start it has failed
    with `deadline_exceeded`, and keeps its text so far. `callback_url` is told when the job
    has ended, or of the `callback_events` alone (`running`, `succeeded`, `failed`, `cancelled`,
    `expired`), with the outputs if `callback_outputs` says so.
    """

    template: str
    variables: dict[str, str]
    model: str | None
    max_tokens: int
    temperature: float
    top_k: int | None
    top_p: float
    seed: int | None
    stop: list[str]
    ignore_eos: bool
    n: int
    priority: int
    queue_timeout: float | None
    run_timeout: float | None
    stream: bool
    metadata: dict[str, str]
    callback_url: str | None
    callback_events: list[str] | None
    callback_outputs: bool


@dataclass(frozen=True, slots=True)
class Output:
    """One continuation, without its prompt."""

    index: int
    text: str
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def from_json(cls, document: Mapping[str, Any] | None) -> Usage | None:
        if document is None:
            return None
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        return cls(*(document[name] for name in names))


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no text: a stable code, and a sentence for people."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class QueuePosition:
    """How many jobs start before a queued one, and when, if the service can tell."""

    ahead: int
    estimated_wait_seconds: float | None


@dataclass(frozen=True, slots=True)
class Job:
    """Times are UTC. `retry_of`: the dead letter that it runs again. `raw` is the whole document,
    with what this version does not know."""

    id: str
    status: str
    model: str
    seed: int | None
    priority: int
    queue: QueuePosition | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    attempt: int
    outputs: tuple[Output, ...]
    usage: Usage | None
    error: Failure | None
    metadata: dict[str, str]
    retry_of: str | None
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def ended(self) -> bool:
        return self.status not in ("queued", "running")

    @property
    def succeeded(self) -> bool:
        return self.status == "succeeded"

    @property
    def text(self) -> str:
        """The first continuation; empty while there is none."""
        return self.outputs[0].text if self.outputs else ""

    @property
    def failure(self) -> Failure:
        """The service's error; for a cancelled or expired job, which has none, its status."""
        return self.error or Failure(self.status, f"the job is {self.status}")

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Job:
        """Raises KeyError, TypeError or ValueError if `document` is no job."""
        error, queue = document.get("error"), document.get("queue")
        return cls(
            id=document["id"],
            status=document["status"],
            model=document["model"],
            seed=document.get("seed"),
            priority=document.get("priority", 0),
            queue=queue and QueuePosition(queue["ahead"], queue["estimated_wait_seconds"]),
            created_at=datetime.fromisoformat(document["created_at"]),
            started_at=read_time(document.get("started_at")),
            finished_at=read_time(document.get("finished_at")),
            attempt=document.get("attempt", 0),
            outputs=tuple(
                Output(output["index"], output["text"], output["finish_reason"])
                for output in document.get("outputs") or ()
            ),
            usage=Usage.from_json(document.get("usage")),
            error=error and Failure(error["code"], error["message"]),
            metadata=dict(document.get("metadata") or {}),
            retry_of=document.get("retry_of"),
            raw=document,
        )


def read_time(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value)
