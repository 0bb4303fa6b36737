"""A batch as the service tells it, what became of its rows, and what may be asked of it. Knows no
HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, TypedDict

from slm_client.job import Failure, Output, Usage, read_time


class BatchParams(TypedDict, total=False):
    """The options of `POST /batches`. What is left out takes the service's default; a row may say
    otherwise. `on_invalid` is `refuse` or `skip`, `completion_window` such as `90m` or `24h`.
    `callback_url` is told when the batch has ended, or of the `callback_events` alone (`running`,
    `progress`, `completed`, `failed`, `cancelled`, `expired`)."""

    model: str | None
    template: str | None
    max_tokens: int
    temperature: float
    top_k: int | None
    top_p: float
    seed: int | None
    stop: list[str]
    ignore_eos: bool
    n: int
    on_invalid: str
    completion_window: str
    name: str | None
    metadata: dict[str, str]
    callback_url: str | None
    callback_events: list[str] | None


@dataclass(frozen=True, slots=True)
class BatchCounts:
    """Rows, by what became of them."""

    total: int = 0
    pending: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0

    @property
    def unsuccessful(self) -> int:
        return self.failed + self.cancelled + self.expired

    @property
    def done(self) -> int:
        return self.succeeded + self.unsuccessful


@dataclass(frozen=True, slots=True)
class RowProblem:
    """Why a row of a file cannot run. `line` counts from 1."""

    line: int
    code: str
    message: str
    custom_id: str | None

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> RowProblem:
        custom_id = document.get("custom_id")
        return cls(document["line"], document["code"], document["message"], custom_id)


@dataclass(frozen=True, slots=True)
class Batch:
    """Times are UTC. `replayed`: it had been made before, with the same Idempotency-Key. `raw` is
    the whole document, with what this version does not know."""

    id: str
    status: str
    model: str
    counts: BatchCounts
    usage: Usage
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    cancel_requested: bool
    rows_per_second: float | None
    tokens_per_second: float | None
    estimated_seconds: float | None
    seed: int | None
    params: dict[str, Any]
    name: str | None
    retry_of: str | None
    errors: tuple[RowProblem, ...]
    metadata: dict[str, str]
    replayed: bool = field(compare=False)
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def ended(self) -> bool:
        return self.status not in ("validating", "running")

    @property
    def seconds(self) -> float | None:
        """From its first row's start to its end; None until then."""
        if self.started_at is None or self.finished_at is None:
            return None
        return max(0.0, (self.finished_at - self.started_at).total_seconds())

    @classmethod
    def from_json(cls, document: Mapping[str, Any], *, replayed: bool = False) -> Batch:
        """Raises KeyError, TypeError or ValueError if `document` is no batch."""
        counts = document["counts"]
        known = {name.name: int(counts.get(name.name, 0)) for name in fields(BatchCounts)}
        return cls(
            id=document["id"],
            status=document["status"],
            model=document["model"],
            counts=BatchCounts(**known),
            usage=Usage.from_json(document.get("usage")) or Usage(0, 0, 0),
            created_at=datetime.fromisoformat(document["created_at"]),
            started_at=read_time(document.get("started_at")),
            finished_at=read_time(document.get("finished_at")),
            expires_at=read_time(document.get("expires_at")),
            cancel_requested=bool(document.get("cancel_requested")),
            rows_per_second=document.get("rows_per_second"),
            tokens_per_second=document.get("tokens_per_second"),
            estimated_seconds=document.get("estimated_seconds"),
            seed=document.get("seed"),
            params=dict(document.get("params") or {}),
            name=document.get("name"),
            retry_of=document.get("retry_of"),
            errors=tuple(map(RowProblem.from_json, document.get("errors") or ())),
            metadata=dict(document.get("metadata") or {}),
            replayed=replayed,
            raw=document,
        )


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a row. `seq` is its place, from 1, among those that succeeded, or among those
    that did not: these have an `error`, and partial text or none. `raw` is the whole document."""

    seq: int
    custom_id: str
    prompt: str
    outputs: tuple[Output, ...]
    usage: Usage | None
    error: Failure | None
    line: int | None  # of the file; only where the row could not run
    finished_at: datetime | None
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def text(self) -> str:
        """The first continuation; empty if there is none."""
        return self.outputs[0].text if self.outputs else ""

    @property
    def finish_reason(self) -> str:
        return self.outputs[0].finish_reason if self.outputs else ""

    @property
    def completion_tokens(self) -> int:
        return self.usage.completion_tokens if self.usage else 0

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Result:
        """Raises KeyError, TypeError or ValueError if `document` is no result."""
        error, line, prompt = (document.get(name) for name in ("error", "line", "prompt"))
        custom_id, outputs = document.get("custom_id"), document.get("outputs")
        if outputs is None:
            outputs = [{"index": 0, **document}] if document.get("text") is not None else []
        return cls(
            seq=int(document["seq"]),
            custom_id=str(custom_id if custom_id is not None else line or ""),
            prompt=_as_text(prompt),
            outputs=tuple(
                Output(output["index"], output["text"], output.get("finish_reason") or "")
                for output in outputs
            ),
            usage=Usage.from_json(document.get("usage")),
            error=error and Failure(error["code"], error["message"]),
            line=line,
            finished_at=read_time(document.get("finished_at")),
            raw=document,
        )


def _as_text(prompt: object) -> str:
    """Several prompts, or token ids, as JSON."""
    if prompt is None or isinstance(prompt, str):
        return prompt or ""
    return json.dumps(prompt, ensure_ascii=False)
