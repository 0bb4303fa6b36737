"""Every error that the API answers with: one table, one exception, one shape (RFC 9457).

Knows no route and no cause; `handlers` decides which exception is which problem.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"


class ProblemType(NamedTuple):
    status: int
    title: str
    example: str  # a typical `detail`, for the documentation
    retry_after: int | None = None  # seconds, where it passes by itself; a refusal may know better


# Clients branch on these codes: add, but never rename.
PROBLEMS: dict[str, ProblemType] = {
    "malformed_json": ProblemType(
        400, "The body is not JSON", "Expecting value at line 1, column 12."
    ),
    "malformed_gzip": ProblemType(
        400, "The file is no valid gzip", "The file is no valid gzip: it ends too early."
    ),
    "malformed_multipart": ProblemType(
        400, "The form cannot be read", "The form cannot be read: it has no part named file."
    ),
    "unauthorised": ProblemType(
        401,
        "A valid API key is needed",
        "Send a valid key: Authorization: Bearer slm_... (slm keys create makes one).",
    ),
    "forbidden": ProblemType(
        403, "This key may not do that", "This key's jobs have a priority of 0 at most."
    ),
    "not_found": ProblemType(404, "There is no such address", "Nothing is at /job."),
    "job_not_found": ProblemType(
        404,
        "There is no such job",
        "No job 'job_01K9ZX3V7Q4C8E2M5T6R0B1DAF': it never existed or its record has expired.",
    ),
    "batch_not_found": ProblemType(
        404,
        "There is no such batch",
        "No batch 'batch_01K9ZX3V7Q4C8E2M5T6R0B1DAF': it never existed or its record has expired.",
    ),
    "file_not_found": ProblemType(
        404,
        "There is no such file",
        "No file 'file-01K9ZX3V7Q4C8E2M5T6R0B1DAF': it never existed or has expired.",
    ),
    "dead_letter_not_found": ProblemType(
        404,
        "There is no such dead letter",
        "No dead letter 'job_01K9ZX3V7Q4C8E2M5T6R0B1DAF': it is none, was redriven or dropped, or "
        "has expired.",
    ),
    "key_not_found": ProblemType(
        404,
        "There is no such API key",
        "No API key 'abcdefghij', or it has been revoked.",
    ),
    "method_not_allowed": ProblemType(
        405, "This address has other methods", "/jobs takes POST, not DELETE."
    ),
    "body_timeout": ProblemType(
        408, "The body took too long", "The body did not arrive within 30 s."
    ),
    "job_not_ended": ProblemType(
        409,
        "The job has not ended",
        "Job 'job_01K9ZX3V7Q4C8E2M5T6R0B1DAF' has not ended; cancel it first.",
    ),
    "batch_not_ended": ProblemType(
        409,
        "The batch has not ended",
        "Batch 'batch_01K9ZX3V7Q4C8E2M5T6R0B1DAF' has not ended; cancel it first.",
    ),
    "nothing_to_retry": ProblemType(
        409,
        "No row of the batch can run again",
        "Every row of batch 'batch_01K9ZX3V7Q4C8E2M5T6R0B1DAF' has succeeded.",
    ),
    "idempotency_in_progress": ProblemType(
        409,
        "A batch with this Idempotency-Key is being uploaded",
        "A batch with this Idempotency-Key is being uploaded; try again later.",
        retry_after=5,  # an upload may take minutes
    ),
    "nothing_to_replay": ProblemType(
        409,
        "No callback can be sent again",
        "'job_01K9ZX3V7Q4C8E2M5T6R0B1DAF' has no callbacks yet: its request names no "
        "callback_url, or nothing of its callback_events has happened.",
    ),
    "job_gone": ProblemType(
        410,
        "The job of this Idempotency-Key is gone",
        "The Idempotency-Key made job 'job_01K9ZX3V7Q4C8E2M5T6R0B1DAF', whose record is gone.",
    ),
    "batch_gone": ProblemType(
        410,
        "The batch is gone",
        "Batch 'batch_01K9ZX3V7Q4C8E2M5T6R0B1DAF' is gone.",
    ),
    "body_too_large": ProblemType(
        413, "The body is too large", "The body is larger than 1048576 bytes."
    ),
    "unsupported_media_type": ProblemType(
        415,
        "The body is of a type that is not read here",
        "Send application/json, not application/x-www-form-urlencoded.",
    ),
    "unknown_host": ProblemType(
        421,
        "The service has other names",
        "This service is not called 'example.org'; SLM_ALLOWED_HOSTS lists its names.",
    ),
    "invalid_request": ProblemType(
        422,
        "The request has wrong or missing fields",
        "/temperature: Input should be less than or equal to 5",
    ),
    "unknown_model": ProblemType(
        422, "There is no such model", "No model 'gpt-5'; there are: tinystories."
    ),
    "unknown_template": ProblemType(
        422, "There is no such template", "tinystories has no template 'poem'; there are: animal."
    ),
    "prompt_too_long": ProblemType(
        422,
        "Prompt and output do not fit into the model's context",
        "480 prompt tokens + 200 max_tokens = 680, more than the context of 512. "
        "Shorten the prompt, or set max_tokens to 32 or less.",
    ),
    "callback_url_refused": ProblemType(
        422,
        "Callbacks may not go there",
        "No callback may go to this URL: use https, or have its host listed in the key's "
        "callback_hosts.",
    ),
    "invalid_rows": ProblemType(
        422,
        "Rows of the batch are invalid",
        "1 row is invalid. Line 3: /temperature: Input should be less than or equal to 5.",
    ),
    "empty_batch": ProblemType(422, "The batch has no rows", "There is no row in it."),
    "exceeds_limit": ProblemType(
        422,
        "The request asks for more than the key's limits ever allow",
        "This request asks for more than the key will ever have: 20000 tokens.",
    ),
    "idempotency_conflict": ProblemType(
        422,
        "The Idempotency-Key was used for another request",
        "This Idempotency-Key came with another body before.",
    ),
    "rate_limited": ProblemType(
        429,
        "A limit of the key is reached",
        "Limits reached: requests. Try again in 12 s.",
        retry_after=1,
    ),
    "too_many_callbacks": ProblemType(
        429,
        "Too many callbacks of the key are pending",
        "100000 callbacks of this key are pending, which is the most.",
        retry_after=60,
    ),
    "internal_error": ProblemType(
        500, "The service failed", "This is a fault of the service; it has been logged."
    ),
    "not_ready": ProblemType(
        503,
        "The service cannot run jobs yet",
        "Redis answers, but no worker is alive for any of: tinystories.",
        retry_after=1,
    ),
    "queue_full": ProblemType(
        503, "Too much waits already", "100000 jobs of this model wait already.", retry_after=1
    ),
    "too_many_uploads": ProblemType(
        503,
        "Too many uploads come in at once",
        "Of this key 2 uploads are coming in already, which is as many as may.",
        retry_after=5,
    ),
    "store_unavailable": ProblemType(
        503,
        "The job store does not answer",
        "Redis does not answer. Try again in a second.",
        retry_after=1,
    ),
    "unsupported_parameter": ProblemType(
        400, "The request asks for something that is not supported", "Not supported here: suffix."
    ),
    "too_many_files": ProblemType(
        400,
        "The key has as many files as it may have",
        "This key has 100 files, which is the most; delete some.",
    ),
    "model_not_installed": ProblemType(
        404,
        "The model is not installed",
        "No model 'gpt2'; there are: tinystories. "
        "`slm models add gpt2 --from <directory or hub id>` installs it.",
    ),
    "generation_failed": ProblemType(
        500,
        "The job ended without a text",
        "Job job_01K9ZX3V7Q4C8E2M5T6R0B1DAF failed with out_of_memory: "
        "The engine ran out of memory.",
    ),
    "timeout": ProblemType(
        504,
        "The job did not end in time",
        "Job job_01K9ZX3V7Q4C8E2M5T6R0B1DAF did not end within 600 s; it was cancelled.",
    ),
}


class Problem(Exception):
    """Ends a request with the problem `code`. `fields` are extension members of the document."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Iterable[Mapping[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})
        if (seconds := PROBLEMS[code].retry_after) is not None:
            self.headers.setdefault("Retry-After", str(seconds))
        self.fields = fields

    def response(self, request_id: str) -> Response:
        kind = PROBLEMS[self.code]
        document = {
            "type": f"urn:slm:problem:{self.code}",
            "title": kind.title,
            "status": kind.status,
            "detail": self.detail,
            "instance": f"urn:slm:request:{request_id}",
            "code": self.code,
            **({"errors": self.errors} if self.errors else {}),
            **self.fields,
        }
        # A refused text may be no valid Unicode; quoting it must not fail in turn.
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
        return Response(
            text.encode("utf-8", "replace"), kind.status, self.headers, media_type=MEDIA_TYPE
        )


class FieldError(BaseModel):
    pointer: str = Field(description="JSON pointer (RFC 6901) into the body; empty: all of it.")
    detail: str


class ProblemDocument(BaseModel):
    """An error (RFC 9457, `application/problem+json`). Branch on `code`; show people `detail`."""

    model_config = ConfigDict(title="Problem", extra="allow")

    type: str = Field(description="`urn:slm:problem:` and the code.")
    title: str = Field(description="The same for every problem of this type.")
    status: int = Field(description="The HTTP status code.")
    detail: str = Field(description="What is wrong with this request.")
    instance: str = Field(description="`urn:slm:request:` and the `X-Request-Id`; find it in logs.")
    code: str = Field(
        description="Stable name of the problem type.", json_schema_extra={"enum": list(PROBLEMS)}
    )
    errors: list[FieldError] = Field(
        default_factory=list, description="The wrong places in the body, where there are some."
    )
