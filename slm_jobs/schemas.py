"""What a job looks like, to clients and in the store. Names follow the OpenAI API."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

MAX_PROMPTS = 16
MAX_SEQUENCES = 64  # prompts x n of one job
SEED_LIMIT = 2**63

Prompt = Annotated[str, StringConstraints(min_length=1, max_length=100_000)]
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


class JobRequest(GenerationParams):
    """The body of `POST /jobs`."""

    prompt: Prompt | Annotated[list[Prompt], Field(min_length=1, max_length=MAX_PROMPTS)] = Field(
        description="One text to continue, or several."
    )
    model: str | None = Field(None, description="A name from `GET /models`; default: the first.")
    metadata: dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ] = Field(default_factory=dict, max_length=16, description="Yours; returned as it came.")

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @model_validator(mode="after")
    def _limit_sequences(self) -> JobRequest:
        if len(self.prompts) * self.n > MAX_SEQUENCES:
            raise ValueError(
                f"{len(self.prompts)} prompts x n {self.n} is more than {MAX_SEQUENCES} outputs"
            )
        return self


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


class Job(_Strict):
    """A job as clients see it. Times are UTC."""

    id: str
    status: JobStatus
    model: str
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    attempt: int = 0
    seed: int
    outputs: list[Output] = Field(default_factory=list)
    usage: Usage | None = None
    error: JobError | None = None
    metadata: dict[str, str] = Field(default_factory=dict)


class Work(_Strict):
    """A claimed job, as the worker that holds its lease sees it. `attempt` fences its results."""

    id: str
    attempt: int
    model: str
    request: JobRequest  # its seed is set


class WorkerInfo(_Strict):
    """A worker's sign of life."""

    id: str
    models: list[str]
    slots: int
    running: int = 0
    pid: int
    host: str
