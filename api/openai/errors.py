"""Our problems in OpenAI's form, `{"error": {"message", "type", "param", "code"}}`.

Under `/v1` every error takes this form, whoever raised it, so that OpenAI's clients raise their
typed exceptions. Knows no route.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from pydantic import BaseModel, Field
from starlette.responses import Response
from starlette.types import Scope

from api.addresses import route_path
from api.problems import PROBLEMS, Problem

_PREFIX = "/v1/"


class _Dialect(NamedTuple):
    status: int
    code: str


# Where OpenAI has a name or a status of its own; clients branch on them.
_DIALECT = {
    "invalid_request": _Dialect(400, "invalid_request"),
    "unknown_model": _Dialect(404, "model_not_found"),
    "prompt_too_long": _Dialect(400, "context_length_exceeded"),
    "exceeds_limit": _Dialect(400, "exceeds_limit"),
    "unauthorised": _Dialect(401, "invalid_api_key"),
    "rate_limited": _Dialect(429, "rate_limit_exceeded"),
}


class ErrorDetail(BaseModel):
    message: str = Field(description="What is wrong with this request.")
    type: str = Field(description="The kind of error: `invalid_request_error` or another.")
    param: str | None = Field(None, description="The field that is wrong, where it is one.")
    code: str = Field(description="Stable name of the error; branch on it.")


class OpenAIError(BaseModel):
    """An error in OpenAI's form."""

    error: ErrorDetail


def respond(scope: Scope, problem: Problem) -> Response:
    """The problem in the form that clients of the request's address read."""
    if not route_path(scope).startswith(_PREFIX):
        return problem.response(scope["state"]["request_id"])
    status = _dialect(problem.code).status
    text = json.dumps(error_body(problem), ensure_ascii=False, separators=(",", ":"))
    content = text.encode("utf-8", "replace")
    return Response(content, status, problem.headers, media_type="application/json")


def error_body(problem: Problem) -> dict[str, Any]:
    """`{"error": {...}}`, as a response or as the last event of a stream."""
    status, code = _dialect(problem.code)
    detail = ErrorDetail(
        message=problem.detail, type=_kind(status), param=_param(problem), code=code
    )
    return {"error": detail.model_dump()}


def errors(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route under `/v1` that may answer with these problems."""
    documented: dict[int | str, dict[str, Any]] = {}
    for code in (*codes, "internal_error"):
        kind = PROBLEMS[code]
        key = "default" if code == "internal_error" else _dialect(code).status
        response = documented.setdefault(
            key,
            {
                "model": OpenAIError,
                "description": "Any other error",
                "content": {"application/json": {"examples": {}}},
            },
        )
        examples = response["content"]["application/json"]["examples"]
        example = error_body(Problem(code, kind.example))
        examples[_dialect(code).code] = {"summary": kind.title, "value": example}
        if key != "default":
            response["description"] = " · ".join(f"`{name}`" for name in examples)
        if kind.retry_after is not None:
            seconds = {"description": "Seconds to wait.", "schema": {"type": "integer"}}
            response["headers"] = {"Retry-After": seconds}
    return documented


def _dialect(code: str) -> _Dialect:
    return _DIALECT.get(code) or _Dialect(PROBLEMS[code].status, code)


def _kind(status: int) -> str:
    if status >= 500:
        return "server_error"
    return "rate_limit_error" if status == 429 else "invalid_request_error"


def _param(problem: Problem) -> str | None:
    """The field of the body that the problem's first pointer leads into."""
    pointer = problem.errors[0].get("pointer", "") if problem.errors else ""
    name = pointer.removeprefix("/").partition("/")[0]
    return name.replace("~1", "/").replace("~0", "~") or None
