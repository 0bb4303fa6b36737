"""What goes in and out of `/v1/files` and `/v1/batches`, as OpenAI's clients write and read it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, StringConstraints, WithJsonSchema

from api.batches.options import WINDOW_PATTERN, window_seconds
from api.batches.rows import ENDPOINT
from api.openai.schemas import Body
from api.problems import Problem

_ULID = "[0-9A-HJKMNP-TV-Z]{26}"
FILE_ID = f"^file-((out|err)_)?{_ULID}$"

Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ],
    Field(max_length=16),
]


def _check_window(window: str) -> str:
    window_seconds(window)
    return window


class FileForm(Body):
    """The fields of the form of `POST /v1/files`, besides `file`."""

    purpose: str
    anchor: Literal["created_at"] = Field("created_at", alias="expires_after[anchor]")
    seconds: int | None = Field(None, alias="expires_after[seconds]", ge=3_600, le=2_592_000)


class FileObject(BaseModel):
    """A file: one that was uploaded, or the texts or errors of a batch."""

    id: str
    object: Literal["file"] = "file"
    bytes: int = Field(description="Of a batch's files, which are made as they are read: about.")
    created_at: int = Field(description="Seconds since 1970, as all times here.")
    expires_at: int | None = Field(description="When it is forgotten.")
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class FileList(BaseModel):
    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None = Field(description="Send it as `after` to go on.")
    has_more: bool


class BatchCreateRequest(Body):
    """The body of `POST /v1/batches`."""

    input_file_id: str = Field(
        description="A file of purpose `batch`, one request a line.",
        json_schema_extra={"pattern": FILE_ID},
    )
    endpoint: Annotated[str, WithJsonSchema({"type": "string", "const": ENDPOINT})] = Field(
        description="Where every line of the file is sent."
    )
    completion_window: Annotated[str, AfterValidator(_check_window)] = Field(
        description="Rows that have not started by then expire: `24h`, or any time from `60s` to"
        " `7d`.",
        json_schema_extra={"pattern": WINDOW_PATTERN},
    )
    metadata: Metadata = Field(default_factory=dict, description="Yours; returned as it came.")
    output_expires_after: Annotated[Any, WithJsonSchema({"type": "null"})] = Field(
        None, description="Not supported: outputs are kept as long as their batch."
    )

    def refuse_unsupported(self) -> None:
        """Raises Problem `unsupported_parameter`."""
        if self.endpoint != ENDPOINT:
            raise unsupported(
                "endpoint",
                f"No batches are served for {self.endpoint[:64]!r}, only for {ENDPOINT!r}: send"
                f' that as endpoint, and lines of the form {{"custom_id": "...", "method": "POST",'
                f' "url": "{ENDPOINT}", "body": {{"model": "...", "prompt": "..."}}}}.',
            )
        if self.output_expires_after is not None:
            detail = "Not supported here: output_expires_after. Leave it out."
            raise unsupported("output_expires_after", detail)


def unsupported(name: str, detail: str) -> Problem:
    errors = [{"pointer": f"/{name}", "detail": "Not supported"}]
    return Problem("unsupported_parameter", detail, errors=errors)


class BatchError(BaseModel):
    code: str
    line: int | None = Field(description="Of the file, from 1.")
    message: str
    param: None = None


class BatchErrors(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(BaseModel):
    total: int
    completed: int
    failed: int = Field(description="Those too that were cancelled, or expired.")


class _InputTokensDetails(BaseModel):
    cached_tokens: Literal[0] = 0


class _OutputTokensDetails(BaseModel):
    reasoning_tokens: Literal[0] = 0


class BatchUsage(BaseModel):
    """Of the rows that have ended."""

    input_tokens: int
    input_tokens_details: _InputTokensDetails = _InputTokensDetails()
    output_tokens: int
    output_tokens_details: _OutputTokensDetails = _OutputTokensDetails()
    total_tokens: int


class BatchObject(BaseModel):
    """A batch. `GET /batches/{id}` tells more about the same one, while it runs too."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: Literal["/v1/completions"] = "/v1/completions"
    model: str
    errors: BatchErrors | None = Field(description="Of a failed batch: the first wrong lines.")
    input_file_id: str = Field(description="Empty for a batch that `POST /batches` made.")
    completion_window: str
    status: Literal[
        "validating",
        "failed",
        "in_progress",
        "completed",
        "expired",
        "cancelling",
        "cancelled",
    ]
    output_file_id: str | None = Field(description="Once it has ended, if any row succeeded.")
    error_file_id: str | None = Field(description="Once it has ended, if any row did not.")
    created_at: int
    in_progress_at: int | None = Field(None, description="When its first row began to run.")
    expires_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: Metadata | None


class BatchObjectList(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None = Field(description="Send it as `after` to go on.")
    has_more: bool
