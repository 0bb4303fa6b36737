"""What a batch and its rows look like, to clients and in the store."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.json_schema import SkipJsonSchema

from slm_jobs.callback_schemas import CallbackTarget
from slm_jobs.schemas import GenerationParams, JobError, Output, Usage, Work

MIN_WINDOW_SECONDS = 60
MAX_WINDOW_SECONDS = 7 * 86_400

CustomId = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class BatchStatus(StrEnum):
    """`validating -> running | failed`, `running -> completed | cancelled | expired`."""

    VALIDATING = "validating"  # its rows are still coming in; none runs
    RUNNING = "running"  # its rows wait or run
    COMPLETED = "completed"  # every row has succeeded or failed
    CANCELLED = "cancelled"  # a client ended it; results so far are kept
    EXPIRED = "expired"  # its completion window closed before all rows had started
    FAILED = "failed"  # its rows were refused; `errors` says why

    @property
    def is_terminal(self) -> bool:
        return self not in (BatchStatus.VALIDATING, BatchStatus.RUNNING)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class BatchCounts(_Frozen):
    """Rows, by what became of them."""

    total: int = 0
    pending: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0


class RowProblem(_Frozen):
    """Why a row of a file cannot run."""

    line: int = Field(description="In the file, from 1.")
    code: str
    message: str
    custom_id: str | None = None


class Batch(_Frozen):
    """A batch as clients see it. Times are UTC."""

    id: str
    status: BatchStatus
    model: str
    counts: BatchCounts
    usage: Usage = Field(description="Of the rows that have ended.")
    created_at: datetime
    started_at: datetime | None = Field(None, description="When its first row began to run.")
    finished_at: datetime | None = None
    expires_at: datetime | None = Field(
        None, description="When its completion window closes; rows not started then expire."
    )
    cancel_requested: bool = Field(False, description="It ends when its running rows have.")
    cancel_requested_at: datetime | None = Field(
        None, description="When that was asked for first, while its rows ran; stays."
    )
    rows_per_second: float | None = Field(None, description="Of late, while it runs.")
    tokens_per_second: float | None = Field(None, description="Generated of late, while it runs.")
    estimated_seconds: float | None = Field(
        None, description="Until its end, at this rate; null while there is none."
    )
    seed: int = Field(description="Row i, from 0, draws from seed + i * n unless it has its own.")
    params: dict[str, Any] = Field(description="What rows take that do not say otherwise.")
    name: str | None = None
    retry_of: str | None = Field(None, description="The batch whose rows these are.")
    errors: list[RowProblem] = Field(
        default_factory=list, description="Of a failed batch: the first of its wrong rows."
    )
    metadata: dict[str, str] = Field(default_factory=dict)
    # Of whoever made it, see `BatchDraft`; no document shows it.
    extra: SkipJsonSchema[dict[str, Any]] = Field(default_factory=dict, exclude=True)


class BatchDraft(NamedTuple):
    """A batch before its rows have come."""

    model: str
    params: (
        GenerationParams  # what rows take that do not say otherwise; a seed that is absent is drawn
    )
    window_seconds: int = 86_400
    name: str | None = None
    metadata: dict[str, str] = {}  # noqa: RUF012 - never changed
    retry_of: str | None = None
    extra: dict[str, Any] = {}  # noqa: RUF012 - for whoever made it: `Batch.extra`
    callback: CallbackTarget | None = None
    request_id: str = ""  # of the HTTP request that makes it; for logs


class BatchRow(NamedTuple):
    """A valid row: what it is called, what it asks for, and what it may cost."""

    custom_id: str
    line: int  # of its file, from 1
    prompts: list[str | list[int]]
    overrides: dict[str, Any]  # of GenerationParams: what differs from the batch's
    tokens: int  # at most: prompts, and max_tokens of every output
    outputs: int  # prompts x n
    extra: dict[str, Any] = {}  # noqa: RUF012 - kept, and given back with the row's result


class Duplicate(NamedTuple):
    """A row that was not added: its custom_id is that of an earlier one."""

    row: BatchRow
    first_line: int


class BatchBegun(NamedTuple):
    """`batch_id` awaits its rows; or, with an Idempotency-Key that was used before, it has them:
    then `digest` is that of the content it was committed with, to compare with."""

    batch_id: str
    digest: str | None


class ResultLine(NamedTuple):
    """A row that has ended. `prompts` are as they came; `outputs` may be partial, or none, where
    there is an error."""

    seq: int  # of its list, from 1
    custom_id: str | None  # None: an invalid row that had none
    prompts: list[str | list[int]]
    outputs: list[Output]
    usage: Usage | None
    error: JobError | None
    line: int | None  # of the file; only of invalid rows
    finished_at: datetime
    fingerprint: str | None
    extra: dict[str, Any]


class RowEnd(NamedTuple):
    """How a claimed row ended, for `BatchStore.finish`."""

    work: Work
    status: Literal["succeeded", "failed", "cancelled"]
    outputs: list[Output]
    usage: Usage | None
    fingerprint: str | None
    error: JobError | None = None
