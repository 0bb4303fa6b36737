"""What callbacks look like: how a request asks for them, and how a delivery stands."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

JobEventName = Literal["running", "succeeded", "failed", "cancelled", "expired"]
BatchEventName = Literal["running", "progress", "completed", "failed", "cancelled", "expired"]

JOB_ENDS: tuple[JobEventName, ...] = ("succeeded", "failed", "cancelled", "expired")
BATCH_ENDS: tuple[BatchEventName, ...] = ("completed", "failed", "cancelled", "expired")

# As `type` spells it in the callback, too.
_AskedBatchEvent = Annotated[
    Literal[BatchEventName, "batch.progress"],
    AfterValidator(lambda name: name.removeprefix("batch.")),
]

CallbackUrl = Annotated[str, StringConstraints(min_length=1, max_length=2_048)]


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    callback_url: CallbackUrl | None = Field(
        None, description="Told when it has ended: a signed POST, repeated until it is answered."
    )

    @model_validator(mode="after")
    def _check_url_is_there(self) -> _Options:
        asked = [name for name in self.model_fields_set if name.startswith("callback_")]
        if self.callback_url is None and any(getattr(self, name) for name in asked):
            raise ValueError(f"{min(asked)} needs a callback_url")
        return self


class JobCallbackOptions(_Options):
    callback_events: Annotated[list[JobEventName], Field(min_length=1, max_length=8)] | None = (
        Field(None, description="What to be told of; default: every end.")
    )
    callback_outputs: bool = Field(
        False, description="Put the outputs into the callback, rather than only where they are."
    )


class BatchCallbackOptions(_Options):
    callback_events: Annotated[list[_AskedBatchEvent], Field(min_length=1, max_length=8)] | None = (
        Field(
            None,
            description="What to be told of; default: its end. `progress`: each tenth of its rows.",
        )
    )


class CallbackTarget(NamedTuple):
    """How somebody wants to be told about a job or a batch."""

    url: str  # as it was checked: normalised
    events: tuple[str, ...]
    outputs: bool = False  # of a job, in the callback itself
    link: str = ""  # the absolute URL of the job or batch, for the payload


class DeliveryStatus(StrEnum):
    """`pending -> delivered | failed`, and back by a replay."""

    PENDING = "pending"  # due, now or later
    DELIVERED = "delivered"  # the receiver said so
    FAILED = "failed"  # given up; it stands in the dead-letter list


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Attempt(_Frozen):
    """One try to deliver. Its error is a stable code; none: the receiver took it."""

    at: datetime
    duration_ms: int
    status: int | None = Field(None, description="Of the HTTP response, if there was one.")
    error: str | None = None
    response: str = Field("", description="How the response's body begins.")


class Delivery(_Frozen):
    """A callback: something that happened, and how far telling it has come."""

    id: str = Field(description="Also its `webhook-id`, the same at every attempt.")
    type: str = Field(description="As in `job.succeeded`.")
    of: str = Field(description="The job or batch.")
    url: str
    status: DeliveryStatus
    created_at: datetime = Field(description="When it happened.")
    next_attempt_at: datetime | None = Field(None, description="Of a pending one.")
    attempts: list[Attempt] = Field(description="The latest 50.")


class DueDelivery(NamedTuple):
    """A delivery that a callback process has claimed."""

    id: str  # also the webhook-id
    type: str
    url: str
    payload: (
        bytes | None
    )  # JSON; the same at every attempt. None: it cannot be made, as the log says
    tries: int  # attempts before this one, since it happened or was last replayed
    claim: int  # fences the outcome
    lane: str  # "<key> <host>:<port>": its share of the process
    secrets: tuple[str, ...]  # to sign with, the newest first
    allowed: tuple[str, ...]  # the key's `callback_hosts`, as they are now
    revoked: bool = False  # the key is; nothing is sent any more
    request_id: str = ""  # of the HTTP request that made the job or batch; for logs

    @property
    def key(self) -> str:
        return self.lane.partition(" ")[0]


class Outcome(NamedTuple):
    """How an attempt ended, for `CallbackStore.settle`."""

    delivery_id: str
    claim: int
    attempt: Attempt
    next: float | None  # seconds until the next one; None: it ends here,
    delivered: bool = False  # delivered, or given up


class CallbackSecret(_Frozen):
    """What callbacks are signed with, as the Standard Webhooks specification writes it."""

    secret: str
    expires_at: datetime | None = Field(description="null: the current one.")
