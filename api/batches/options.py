"""What may be said about a whole batch, and how it reads as text: in a query, a form, a table.

Knows no rows and no HTTP.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints

from api.body import check, number
from api.problems import Problem
from slm_jobs.batch_schemas import MAX_WINDOW_SECONDS, MIN_WINDOW_SECONDS
from slm_jobs.callback_schemas import BatchCallbackOptions
from slm_jobs.schemas import GenerationParams

MAX_INLINE_ROWS = 10_000
_WINDOW = re.compile(r"([0-9]{1,6})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
# The same for machines: 60s to 604800s, 1m to 10080m, 1h to 168h, 1d to 7d.
WINDOW_PATTERN = (
    "^(([6-9][0-9]|[1-9][0-9]{2,4}|[1-5][0-9]{5}|60[0-3][0-9]{3}|604[0-7][0-9]{2}|604800)s"
    "|([1-9][0-9]{0,3}|100[0-7][0-9]|10080)m|([1-9][0-9]?|1[0-5][0-9]|16[0-8])h|[1-7]d)$"
)
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?")
_NUMBERS = ("max_tokens", "temperature", "top_k", "top_p", "seed", "n")
_NULLABLE = ("top_k", "seed")
_FLAGS = {"true": True, "false": False}
_LISTS = ("stop", "callback_events")


def window_seconds(window: str) -> int:
    """Raises ValueError."""
    match = _WINDOW.fullmatch(window)
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0
    if not MIN_WINDOW_SECONDS <= seconds <= MAX_WINDOW_SECONDS or window[0] == "0":
        raise ValueError("Input should be 60s to 7d: a whole number and s, m, h or d")
    return seconds


def _check_window(window: str) -> str:
    window_seconds(window)
    return window


class BatchOptions(BatchCallbackOptions, GenerationParams):
    """What rows take that do not say otherwise, and how the batch is run."""

    model: str | None = Field(
        None, description="A name from `GET /models`; default: the first. All rows run on it."
    )
    template: Annotated[str, StringConstraints(max_length=64)] | None = Field(
        None, description="A template of the model, for rows that hold its variables."
    )
    on_invalid: Literal["refuse", "skip"] = Field(
        "refuse", description="Whether invalid rows refuse the batch, or go to its errors."
    )
    completion_window: Annotated[str, AfterValidator(_check_window)] = Field(
        "24h",
        description="Rows that have not started by then expire: 60s to 7d.",
        json_schema_extra={"pattern": WINDOW_PATTERN},
    )
    name: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = Field(
        None, description="For people."
    )
    metadata: dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ] = Field(default_factory=dict, max_length=16, description="Yours; returned as it came.")

    @property
    def params(self) -> GenerationParams:
        given = {name: getattr(self, name) for name in PARAMS if name in self.model_fields_set}
        return GenerationParams.model_construct(**given)  # they have been checked

    @property
    def window_seconds(self) -> int:
        return window_seconds(self.completion_window)


PARAMS = tuple(GenerationParams.model_fields)


def values_of(texts: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Options as a query or a form has them, checked; lists have an entry for each value.

    Raises Problem.
    """
    values: dict[str, Any] = {}
    for name, text in texts:
        if name in _LISTS:
            values.setdefault(name, []).append(text)
            continue
        if name in values:
            detail = f"{name[:64]} is given twice."
            errors = [{"pointer": f"/{name[:64]}", "detail": "Given twice"}]
            raise Problem("invalid_request", detail, errors=errors)
        values[name] = value_of(name, text)
    check(BatchOptions, values)
    return values


def value_of(name: str, text: str) -> Any:
    """The text as JSON would have it, if it can be that; checks will refuse it otherwise."""
    if name in _NUMBERS:
        if _NUMBER.fullmatch(text):
            return number(text) if set(text) & set(".eE") else int(text)
        return None if text == "null" and name in _NULLABLE else text
    if name == "ignore_eos":
        return _FLAGS.get(text, text)
    if name == "metadata":
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text


def cell_values(cells: Mapping[str, str]) -> dict[str, Any]:
    """The cells of a table that say something about a row; an empty one says nothing."""
    return {
        name: [text] if name == "stop" else value_of(name, text)
        for name, text in cells.items()
        if text
    }


def _check_few(rows: list[Any]) -> list[Any]:
    if len(rows) > MAX_INLINE_ROWS:
        raise ValueError(f"Send at most {MAX_INLINE_ROWS} rows as JSON; upload more as a file")
    return rows


class BatchRequest(BatchOptions):
    """The body of `POST /batches` as `application/json`: a small batch."""

    rows: Annotated[list[Any], AfterValidator(_check_few)] = Field(
        description="As the lines of a JSONL file, or texts: prompts."
    )
