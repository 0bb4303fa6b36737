"""Validation errors of pydantic as JSON pointers (RFC 6901) into the body that was sent."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

_WORDS = {
    "extra_forbidden": "Unknown field",
    "model_type": "Input should be a JSON object",
    "string_unicode": "Text holds an unpaired surrogate (\\ud800 to \\udfff), which is no Unicode",
}
_LONGEST_NAME = 64  # of a field name in a pointer; names come from the client


class _Found(NamedTuple):
    pointer: str
    detail: str
    in_union: bool  # one of several alternatives failed here
    wrong_type: bool


def field_errors(error: ValidationError, data: Any) -> list[dict[str, str]]:
    """`[{"pointer": "/temperature", "detail": "..."}]`, one entry per place in `data`."""
    found = [_locate(e, data) for e in error.errors(include_url=False, include_input=False)]
    details: dict[str, list[str]] = {}
    for one in found:
        if not _is_noise(one, found):
            details.setdefault(one.pointer, []).append(one.detail)
    return [
        {"pointer": pointer, "detail": " or ".join([first, *(_tail(d) for d in rest)])}
        for pointer, (first, *rest) in details.items()
    ]


def _locate(error: ErrorDetails, data: Any) -> _Found:
    """Follows pydantic's location through `data`.

    Steps that are not in it name a union's branch, or the check of a key; only the last step may
    be a field that is missing.
    """
    pointer, in_union = "", False
    for steps_left, step in reversed(list(enumerate(reversed(error["loc"])))):
        if _holds(data, step):
            data = data[step]
        elif steps_left or error["type"] != "missing":
            in_union = in_union or step != "[key]"
            continue
        pointer += "/" + _escape(str(step))
    detail = _WORDS.get(error["type"]) or error["msg"].removeprefix("Value error, ")
    return _Found(pointer, detail, in_union, error["type"].endswith("_type"))


def _holds(data: Any, step: int | str) -> bool:
    if isinstance(data, dict):
        return step in data
    return isinstance(data, list) and isinstance(step, int)


def _is_noise(one: _Found, found: list[_Found]) -> bool:
    """Where one alternative of a union got further than its type, that of the others says nothing:
    `"prompt": ""` is an empty string, not a failed list."""
    return (
        one.in_union
        and one.wrong_type
        and any(
            other.in_union
            and (
                other.pointer.startswith(one.pointer + "/")
                or (other.pointer == one.pointer and not other.wrong_type)
            )
            for other in found
        )
    )


def _escape(name: str) -> str:
    if len(name) > _LONGEST_NAME:
        name = name[:_LONGEST_NAME] + "…"
    return name.replace("~", "~0").replace("/", "~1")


def _tail(detail: str) -> str:
    return detail.removeprefix("Input should be ")
