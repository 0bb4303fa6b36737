"""From the bytes of a request to a checked model, or the problem that says what is wrong.

Stricter than the framework: other content types, NaN, `"5"` for 5, and bodies without end are
refused.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from api.pointers import field_errors
from api.problems import Problem

MAX_BODY_BYTES = 1 << 20
BODY_SECONDS = 30.0
_ERRORS_LISTED = 20

M = TypeVar("M", bound=BaseModel)


async def json_bytes(request: Request) -> bytes:
    """The body of a JSON request, counted while it arrives; so a missing length hides nothing."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (
        kind.startswith("application/") and kind.endswith("+json")
    ):
        shown = f"not {kind[:64]}" if kind else "and say so in Content-Type"
        raise Problem(
            "unsupported_media_type",
            f"Send application/json, {shown}.",
            headers={"Accept": "application/json"},
        )
    coding = request.headers.get("content-encoding", "identity").lower()
    if coding != "identity":
        raise Problem(
            "unsupported_media_type",
            f"Send the body as it is, without Content-Encoding {coding[:64]}.",
            headers={"Accept-Encoding": "identity"},
        )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise _too_large()
    except TimeoutError:
        detail = f"The body did not arrive within {BODY_SECONDS:g} s."
        raise Problem("body_timeout", detail, headers={"Connection": "close"}) from None
    return bytes(body)


def parse(model: type[M], body: bytes) -> M:
    """The body as a `model`. Raises Problem, as `load` and `check` do."""
    return check(model, load(body))


def check(model: type[M], data: Any) -> M:
    """What `load` made, as a `model`, with JSON's types as they are: `"5"` and `true` are no
    numbers. Raises Problem."""
    try:
        return model.model_validate(data, strict=True)
    except ValidationError as error:
        errors = field_errors(error, data)
    listed = errors[:_ERRORS_LISTED]
    detail = "; ".join(f"{e['pointer'] or 'the body'}: {e['detail']}" for e in listed[:3])
    if len(errors) > 3:
        detail += f"; and {len(errors) - 3} more"
    raise Problem("invalid_request", detail, errors=listed)


def load(body: bytes) -> Any:
    """The JSON value that the body holds. Raises Problem."""
    if not body.strip():
        raise Problem("malformed_json", "The body is empty.")
    try:
        # utf-8-sig: Windows tools like to write a byte order mark.
        text = body.decode("utf-8-sig")
        return json.loads(text, parse_float=number, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise Problem("malformed_json", f"Byte {error.start} is not UTF-8.") from None
    except json.JSONDecodeError as error:
        line, column = error.lineno, error.colno
        detail = f"{error.msg} at line {line}, column {column}."
        raise Problem("malformed_json", detail, line=line, column=column) from None
    except RecursionError:
        raise Problem("malformed_json", "The body is nested too deeply.") from None
    except ValueError:  # Python refuses integers of thousands of digits
        raise Problem("malformed_json", "A number has too many digits.") from None


def number(digits: str) -> float:
    """JSON has one kind of numbers: 4.0 is the integer 4, as JSON Schema has it, too."""
    value = float(digits)
    return int(value) if value.is_integer() and abs(value) <= 2**53 else value


def _no_constant(name: str) -> NoReturn:
    raise Problem("malformed_json", f"{name} is not JSON.")


def _too_large() -> Problem:
    return Problem(
        "body_too_large",
        f"The body is larger than {MAX_BODY_BYTES} bytes.",
        max_bytes=MAX_BODY_BYTES,
    )
