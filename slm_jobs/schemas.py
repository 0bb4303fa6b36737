"""What a job looks like, to clients and in the store. Names follow the OpenAI API."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from slm_jobs.callback_schemas import CallbackTarget, JobCallbackOptions

MAX_PROMPTS = 16
MAX_SEQUENCES = 64  # prompts x n of one job
MAX_PRIORITY = 9
SEED_LIMIT = 2**63

Prompt = Annotated[str, StringConstraints(min_length=1, max_length=100_000)]
Timeout = Annotated[float, Field(gt=0, le=7 * 86_400, allow_inf_nan=False)]
FinishReason = Literal["stop", "length", "cancelled"]


class JobStatus(StrEnum):
    """`queued -> running -> succeeded | failed | cancelled`, `queued -> expired | cancelled`,
    `running -> queued` when its lease is lost. Terminal states never change."""

    QUEUED = "queued"  # waits for a worker
    RUNNING = "running"  # a worker holds its lease
    SUCCEEDED = "succeeded"  # outputs are complete
    FAILED = "failed"  # `error` says why
    CANCELLED = "cancelled"  # a client ended it; outputs may be partial
    EXPIRED = "expired"  # its queue deadline passed before it started

    @property
    def is_terminal(self) -> bool:
        return self not in (JobStatus.QUEUED, JobStatus.RUNNING)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GenerationParams(_Strict):
    """How to continue a prompt."""

    max_tokens: int = Field(200, ge=1, le=65_536, description="Most tokens to generate.")
    temperature: float = Field(0.8, ge=0, le=5, description="0 always takes the likeliest token.")
    top_k: int | None = Field(
        40, ge=1, le=65_536, description="Sample from the k likeliest tokens; null: from all."
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="Sample from the likeliest tokens that reach this probability."
    )
    seed: int | None = Field(
        None,
        ge=0,
        lt=SEED_LIMIT - MAX_SEQUENCES,
        description="Same seed, same text. Output i uses seed + i. Drawn and kept if absent.",
    )
    stop: list[Annotated[str, StringConstraints(min_length=1, max_length=256)]] = Field(
        default_factory=list,
        max_length=8,
        description="Generation ends before any of these strings.",
    )
    ignore_eos: bool = Field(False, description="Go on past the end-of-text token.")
    n: int = Field(1, ge=1, le=MAX_SEQUENCES, description="Continuations per prompt.")


class JobRequest(JobCallbackOptions, GenerationParams):
    """The body of `POST /jobs`: a `prompt`, or a `template` with its `variables`."""

    prompt: Prompt | Annotated[list[Prompt], Field(min_length=1, max_length=MAX_PROMPTS)] | None = (
        Field(None, description="One text to continue, or several.")
    )
    template: Annotated[str, StringConstraints(max_length=64)] | None = Field(
        None, description="A template of the model, see `GET /models`, instead of a prompt."
    )
    variables: dict[str, Annotated[str, StringConstraints(max_length=10_000)]] = Field(
        default_factory=dict, max_length=32, description="A text for each variable of the template."
    )
    model: str | None = Field(None, description="A name from `GET /models`; default: the first.")
    priority: int = Field(
        0, ge=0, le=MAX_PRIORITY, description="Greater goes first; your key may limit it."
    )
    queue_timeout: Timeout | None = Field(
        None, description="Seconds to wait for a worker at most; then it is `expired`."
    )
    run_timeout: Timeout | None = Field(
        None, description="Seconds to run at most; then it has `failed`, and keeps its text so far."
    )
    stream: bool = Field(
        False, description="Makes `GET /jobs/{id}/stream` send tokens while the job runs."
    )
    metadata: dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ] = Field(default_factory=dict, max_length=16, description="Yours; returned as it came.")

    @property
    def prompts(self) -> list[str]:
        """What `prompt` holds; empty for a template, whose text is the api's to render."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt or []

    @model_validator(mode="after")
    def _check_together(self) -> JobRequest:
        if (self.prompt is None) == (self.template is None):
            raise ValueError("Send either a prompt or a template")
        if self.variables and self.template is None:
            raise ValueError("variables need a template")
        if (count := max(1, len(self.prompts))) * self.n > MAX_SEQUENCES:
            raise ValueError(f"{count} prompts x n {self.n} is more than {MAX_SEQUENCES} outputs")
        return self


class JobSpec(GenerationParams):
    """What a job's record keeps of its request, and a worker runs: texts or token ids, and a seed.

    Fields that this version does not know are ignored, so that api and workers may be upgraded one
    after the other.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: str
    prompts: list[str | list[int]]
    priority: int = 0
    stream: bool = False
    metadata: dict[str, str] = Field(default_factory=dict)
    request_id: str = ""  # of the HTTP request that made the job; for logs
    # not for workers
    callback: CallbackTarget | None = Field(None, exclude=True)
    queue_timeout: float | None = Field(None, exclude=True)
    run_timeout: float | None = Field(None, exclude=True)


class Output(_Strict):
    """One continuation, without its prompt. Outputs of prompt p are `index` p*n ... p*n + n - 1."""

    index: int
    text: str
    finish_reason: FinishReason


class Usage(_Strict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class JobError(_Strict):
    code: str
    message: str


class QueuePosition(_Strict):
    """Where a queued job stands."""

    ahead: int = Field(description="Jobs of its model that start before it.")
    estimated_wait_seconds: float | None = Field(
        description="Until it starts, at the rate measured now; null while no worker has a rate."
    )


class QueueInfo(_Strict):
    """How the queue of a model stands."""

    model: str
    waiting: int = Field(description="Jobs that no worker has begun.")
    running: int
    rows_waiting: int = Field(0, description="Rows of batches that no worker has begun.")
    rows_running: int = 0
    workers: int = Field(description="Workers alive now that host it.")
    slots: int = Field(description="Sequences of it that they decode at once, at most.")
    slots_in_use: int = Field(
        0, description="Sequences of it that they decode; workers tell it every few seconds."
    )
    tokens_per_second: float = Field(description="Of all workers, measured while they decode.")
    estimated_wait_seconds: float | None = Field(
        description="Until a job that came now would start, at most; null while there is no rate."
    )


class Job(_Strict):
    """A job as clients see it. Times are UTC."""

    id: str
    status: JobStatus
    model: str
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    attempt: int = 0
    priority: int = 0
    seed: int
    queue: QueuePosition | None = Field(None, description="While it is queued.")
    cancel_requested: bool = Field(False, description="It ends at its next decode step.")
    outputs: list[Output] = Field(default_factory=list)
    usage: Usage | None = None
    fingerprint: str | None = Field(
        None, description="What made the text: the same seed gives the same text for the same one."
    )
    error: JobError | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    retry_of: str | None = Field(None, description="The dead letter that this job runs again.")


class RowInput(NamedTuple):
    """What a row's result carries along."""

    custom_id: str
    extra: dict[str, Any] = {}  # noqa: RUF012 - never changed


class Company(StrEnum):
    """What may run beside work, in the same worker. Suspects are what held a worker's lease when it
    expired."""

    ANY = "any"  # but suspects
    SUSPECTS = "suspects"  # that would survive another crash
    NONE = "none"


class Work(_Strict):
    """A claimed job, or row of a batch, as the worker that holds its lease sees it.

    `attempt` fences its results.
    """

    id: str
    attempt: int
    model: str
    spec: JobSpec
    seconds_left: float | None = None  # until the job's run deadline
    waited_seconds: float = 0.0  # since the job was made, by Redis's clock
    row: RowInput | None = None
    company: Company = Company.ANY


class Beat(NamedTuple):
    """What a heartbeat learns about the work that a worker holds, by job id."""

    lost: set[str]  # gone, ended, or somebody else's
    cancelled: set[str]  # still ours, but a client wants it to end


class Piece(NamedTuple):
    """Text of output `output`: what its tokens after the first `start`, up to `end`, added."""

    output: int
    start: int
    end: int
    text: str


class WorkerInfo(_Strict):
    """A worker's sign of life.

    Fields that this version does not know are ignored, so that api and workers may be upgraded one
    after the other.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str
    models: list[str]
    slots: int
    model_slots: dict[str, int] = Field(default_factory=dict)  # of models that have fewer
    slots_in_use: dict[str, int] = Field(default_factory=dict)  # by model, where there are any
    running: int = 0
    tokens_per_second: dict[str, float] = Field(default_factory=dict)  # by model, while it decodes
    pid: int
    host: str
