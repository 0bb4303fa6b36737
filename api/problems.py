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


# Clients branch on these codes: add, but never rename.
PROBLEMS: dict[str, ProblemType] = {
    "malformed_json": ProblemType(
        400, "The body is not JSON", "Expecting value at line 1, column 12."
    ),
    "not_found": ProblemType(404, "There is no such address", "Nothing is at /job."),
    "job_not_found": ProblemType(
        404,
        "There is no such job",
        "No job 'job_01K9ZX3V7Q4C8E2M5T6R0B1DAF': it never existed or its record has expired.",
    ),
    "method_not_allowed": ProblemType(
        405, "This address has other methods", "/jobs takes POST, not DELETE."
    ),
    "body_too_large": ProblemType(
        413, "The body is too large", "The body is larger than 1048576 bytes."
    ),
    "unsupported_media_type": ProblemType(
        415,
        "The body is of a type that is not read here",
        "Send application/json, not application/x-www-form-urlencoded.",
    ),
    "invalid_request": ProblemType(
        422,
        "The request has wrong or missing fields",
        "/temperature: Input should be less than or equal to 5",
    ),
    "unknown_model": ProblemType(
        422, "There is no such model", "No model 'gpt-5'; there are: tinystories."
    ),
    "prompt_too_long": ProblemType(
        422,
        "Prompt and output do not fit into the model's context",
        "480 prompt tokens + 200 max_tokens = 680, more than the context of 512. "
        "Shorten the prompt, or set max_tokens to 32 or less.",
    ),
    "internal_error": ProblemType(
        500, "The service failed", "This is a fault of the service; it has been logged."
    ),
    "not_ready": ProblemType(
        503,
        "The service cannot run jobs yet",
        "Redis answers, but no worker is alive for any of: tinystories.",
    ),
    "store_unavailable": ProblemType(
        503, "The job store does not answer", "Redis does not answer. Try again in a second."
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
        if kind.status == 503:
            self.headers.setdefault("Retry-After", "1")
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
