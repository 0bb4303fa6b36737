"""A batch's record and its rows, as they stand in Redis, and how they read in Python.

A record is a hash of strings like a job's. Rows and results may be many, so they are packed: JSON,
deflated (RFC 1951), which halves stories.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from slm_jobs.batch_schemas import (
    Batch,
    BatchCounts,
    BatchDraft,
    BatchRow,
    BatchStatus,
    ResultLine,
    RowEnd,
    RowProblem,
)
from slm_jobs.records import OUTPUTS, to_time
from slm_jobs.schemas import (
    MAX_SEQUENCES,
    SEED_LIMIT,
    Company,
    JobError,
    JobSpec,
    Output,
    RowInput,
    Usage,
    Work,
)

RATE_SECONDS = 10.0  # over which the scripts average, see `rows.lua`
_COUNTS = tuple(BatchCounts.model_fields)
# What scripts return of a record, in this order.
BATCH_FIELDS = (
    "status",
    "key",
    "model",
    "spec",
    "name",
    "metadata",
    "retry_of",
    "errors",
    "extra",
    "created_at",
    "started_at",
    "finished_at",
    "expires_at",
    "cancel_requested",
    *_COUNTS,
    "prompt_tokens",
    "completion_tokens",
    "rate_at",
    "rate_rows",
    "rate_tokens",
)
_MESSAGES = {  # of what ends without a worker's words
    "attempts_exhausted": "each worker that ran this row fell silent",
    "cancelled": "the batch was cancelled",
    "expired": "the batch's completion window closed before the row had run",
}


def pack(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    return deflate.compress(text.encode()) + deflate.flush()


def unpack(packed: bytes) -> Any:
    return json.loads(zlib.decompress(packed, -15)) if packed else {}


def draft_fields(draft: BatchDraft, seed: int) -> dict[str, str]:
    """A new batch's fields, besides those that scripts fill in."""
    params = {**draft.params.model_dump(), "seed": seed}
    spec = JobSpec(model=draft.model, prompts=[], request_id=draft.request_id, **params)
    common = spec.model_dump(exclude={"prompts", "priority", "stream", "metadata"})
    fields = {
        "model": draft.model,
        "spec": json.dumps(common, ensure_ascii=False),
        "window_ms": str(draft.window_seconds * 1000),
        "name": draft.name,
        "retry_of": draft.retry_of,
        "metadata": json.dumps(draft.metadata, ensure_ascii=False) if draft.metadata else None,
        "extra": json.dumps(draft.extra, ensure_ascii=False) if draft.extra else None,
    }
    return {name: value for name, value in fields.items() if value is not None}


class StoredRow(NamedTuple):
    """What a row's packed request holds."""

    custom_id: str
    line: int
    prompts: list[str | list[int]]
    overrides: dict[str, Any]
    extra: dict[str, Any]

    @classmethod
    def unpack(cls, packed: bytes) -> StoredRow:
        custom_id, line, prompts, *rest = unpack(packed)
        overrides, extra = [*rest, {}, {}][:2]
        return cls(custom_id, line, prompts, overrides, extra)


def pack_row(row: BatchRow) -> bytes:
    rest = [row.overrides, row.extra] if row.extra else [row.overrides] if row.overrides else []
    return pack([row.custom_id, row.line, row.prompts, *rest])


def to_row_work(
    row_id: str, attempt: int, packed: bytes, common: Mapping[str, Any], company: Company
) -> Work:
    """A claimed row. `common` is what its batch's rows have in common."""
    stored = StoredRow.unpack(packed)
    index = int(row_id.rpartition(":")[2])
    seed = row_seed(common, index)
    fields = {**common, "seed": seed, **stored.overrides, "prompts": stored.prompts}
    return Work(
        id=row_id,
        attempt=attempt,
        model=common["model"],
        spec=JobSpec.model_validate(fields),
        row=RowInput(stored.custom_id, stored.extra),
        company=company,
    )


def row_seed(common: Mapping[str, Any], index: int) -> int:
    """What row `index` draws from, unless it says otherwise."""
    seed: int = common["seed"] + index * common["n"]
    return seed % (SEED_LIMIT - MAX_SEQUENCES)


def pack_end(end: RowEnd) -> bytes:
    """A row's entry in its list, without the time and the row that scripts put in front."""
    work = end.work
    outputs = [[output.text, output.finish_reason] for output in end.outputs]
    usage = [end.usage.prompt_tokens, end.usage.completion_tokens] if end.usage else None
    if end.status == "succeeded":
        row = work.row or RowInput("")
        return pack(
            [row.custom_id, work.spec.prompts, outputs, usage, end.fingerprint, row.extra or None]
        )
    code = end.error.code if end.error else end.status
    message = end.error.message if end.error else None
    if not outputs and message is None:
        return f"{code} ".encode()
    return f"{code} ".encode() + pack([message, outputs, usage, end.fingerprint])


def pack_problem(problem: RowProblem) -> bytes:
    return f"{problem.code} ".encode() + pack([problem.custom_id, problem.line, problem.message])


def to_result(seq: int, entry: bytes) -> ResultLine:
    """An entry of the list of results."""
    ms, _, packed = entry.split(b" ", 2)
    custom_id, prompts, outputs, usage, fingerprint, extra = unpack(packed)
    return ResultLine(
        seq=seq,
        custom_id=custom_id,
        prompts=prompts,
        outputs=_outputs(outputs),
        usage=_usage(usage),
        error=None,
        line=None,
        finished_at=to_time(ms.decode()),
        fingerprint=fingerprint,
        extra=extra or {},
    )


def to_failure(seq: int, entry: bytes, stored: bytes | None) -> ResultLine:
    """An entry of the list of failures; `stored` is the row's request, which invalid ones lack."""
    ms, row, code_, packed = entry.split(b" ", 3)
    code = code_.decode()
    if stored is None or row == b"-":
        custom_id, line, message = unpack(packed)
        prompts, outputs, usage, fingerprint, extra = [], [], None, None, {}
    else:
        request = StoredRow.unpack(stored.split(b" ", 2)[2])
        custom_id, prompts, extra, line = request.custom_id, request.prompts, request.extra, None
        message, outputs, usage, fingerprint = unpack(packed) or (None, [], None, None)
    return ResultLine(
        seq=seq,
        custom_id=custom_id,
        prompts=prompts,
        outputs=_outputs(outputs),
        usage=_usage(usage),
        error=JobError(code=code, message=message or _MESSAGES.get(code, code)),
        line=line,
        finished_at=to_time(ms.decode()),
        fingerprint=fingerprint,
        extra=extra,
    )


def to_retry(entry: bytes, stored: bytes, common: Mapping[str, Any]) -> BatchRow:
    """The row of a failure, to run again: it draws from what it drew from before."""
    _, row, _ = entry.split(b" ", 2)
    tokens, outputs, packed = stored.split(b" ", 2)
    request = StoredRow.unpack(packed)
    overrides = {"seed": row_seed(common, int(row)), **request.overrides}
    return BatchRow(
        request.custom_id,
        request.line,
        request.prompts,
        overrides,
        int(tokens),
        int(outputs),
        request.extra,
    )


def to_batch(batch_id: str, record: Mapping[str, str], now_ms: int) -> Batch:
    common = json.loads(record["spec"])
    status = BatchStatus(record["status"])
    counts = BatchCounts(**{name: int(record[name]) for name in _COUNTS})
    prompt_tokens, completion_tokens = (
        int(record["prompt_tokens"]),
        int(record["completion_tokens"]),
    )
    rows_rate = tokens_rate = None
    if status is BatchStatus.RUNNING:
        rows_rate, tokens_rate = _rates(record, now_ms)
    left = counts.pending + counts.running
    others = ("model", "seed", "request_id")
    params = {name: value for name, value in common.items() if name not in others}

    def time(name: str) -> Any:
        return to_time(record[name]) if name in record else None

    return Batch(
        id=batch_id,
        status=status,
        model=record["model"],
        counts=counts,
        usage=Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
        ),
        created_at=to_time(record["created_at"]),
        started_at=time("started_at"),
        finished_at=time("finished_at"),
        expires_at=time("expires_at"),
        cancel_requested="cancel_requested" in record and not status.is_terminal,
        cancel_requested_at=time("cancel_requested"),
        rows_per_second=rows_rate,
        tokens_per_second=tokens_rate,
        estimated_seconds=round(left / rows_rate, 1) if rows_rate else None,
        seed=common["seed"],
        params=params,
        name=record.get("name"),
        retry_of=record.get("retry_of"),
        errors=json.loads(record["errors"]) if "errors" in record else [],
        metadata=json.loads(record["metadata"]) if "metadata" in record else {},
        extra=json.loads(record["extra"]) if "extra" in record else {},
    )


def to_batch_record(values: Sequence[bytes | str | None]) -> dict[str, str]:
    """A record as scripts return it; empty if there is none."""
    pairs = zip(BATCH_FIELDS, values, strict=True)
    return {
        name: value if isinstance(value, str) else value.decode()
        for name, value in pairs
        if value is not None
    }


def _rates(record: Mapping[str, str], now_ms: int) -> tuple[float | None, float | None]:
    """Rows and tokens a second: what faded with time since, over as long as there was."""
    if "rate_at" not in record:
        return None, None
    fading = math.exp(-max(now_ms - int(record["rate_at"]), 0) / 1000 / RATE_SECONDS)
    running = max(now_ms - int(record["started_at"]), 100) / 1000
    seconds = RATE_SECONDS * (1 - math.exp(-running / RATE_SECONDS))
    rates = [float(record[name]) * fading / seconds for name in ("rate_rows", "rate_tokens")]
    return round(rates[0], 2) or None, round(rates[1], 1) or None


def _outputs(pairs: Sequence[Sequence[str]]) -> list[Output]:
    return OUTPUTS.validate_python(
        [
            {"index": index, "text": text, "finish_reason": reason}
            for index, (text, reason) in enumerate(pairs)
        ]
    )


def _usage(counts: Sequence[int] | None) -> Usage | None:
    if counts is None:
        return None
    prompt, completion = counts
    return Usage(
        prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion
    )
