"""What the OpenAPI document says of batches. Tests check every example here against the schemas."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from api.batches import options
from api.batches.body import MEDIA_TYPES, MULTIPART
from api.batches.inputs import BatchInputLine, BatchInputRow
from api.batches.options import BatchOptions
from api.documentation import json_body, named_examples
from api.links import BATCH_LINKS
from slm_jobs.schemas import Prompt


class BatchRequest(options.BatchRequest):
    """The body of `POST /batches` as `application/json`: a small batch."""

    rows: list[Prompt | BatchInputRow | BatchInputLine] = Field(
        min_length=1,
        max_length=options.MAX_INLINE_ROWS,
        description="As the lines of a JSONL file, or texts: prompts.",
    )


REQUEST_EXAMPLES: dict[str, dict[str, Any]] = {
    "prompts": {
        "summary": "Some prompts",
        "value": {"rows": ["A cat found a box.", "A dog found a ball."], "max_tokens": 60},
    },
    "rows": {
        "summary": "Rows that say more",
        "value": {
            "rows": [
                {"custom_id": "cat", "prompt": "A cat found a box.", "seed": 7},
                {"custom_id": "dog", "prompt": "A dog found a ball.", "n": 2},
            ],
            "max_tokens": 60,
            "temperature": 0.9,
            "completion_window": "1h",
            "callback_url": "https://example.com/hooks/slm",
            "name": "pets",
            "metadata": {"project": "animals"},
        },
    },
    "template": {
        "summary": "A template, filled by each row",
        "value": {
            "template": "animal",
            "rows": [{"variables": {"animal": "fox", "name": "Rusty"}}],
            "max_tokens": 60,
        },
    },
}

_RUNNING: dict[str, Any] = {
    "id": "batch_01K9ZX3V7Q4C8E2M5T6R0B1DAF",
    "status": "running",
    "model": "tinystories",
    "counts": {
        "total": 1000,
        "pending": 640,
        "running": 60,
        "succeeded": 298,
        "failed": 2,
        "cancelled": 0,
        "expired": 0,
    },
    "usage": {"prompt_tokens": 2400, "completion_tokens": 51000, "total_tokens": 53400},
    "created_at": "2026-01-31T09:00:00.120000Z",
    "started_at": "2026-01-31T09:00:00.131000Z",
    "finished_at": None,
    "expires_at": "2026-02-01T09:00:00.127000Z",
    "cancel_requested": False,
    "cancel_requested_at": None,
    "rows_per_second": 21.4,
    "tokens_per_second": 3650.0,
    "estimated_seconds": 32.7,
    "seed": 7,
    "params": {
        "max_tokens": 200,
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 1.0,
        "stop": [],
        "ignore_eos": False,
        "n": 1,
    },
    "name": "pets",
    "retry_of": None,
    "errors": [],
    "metadata": {"project": "animals"},
}
BATCH_EXAMPLES: dict[str, dict[str, Any]] = {
    "batch_running": {"summary": "It runs", "value": _RUNNING},
    "batch_completed": {
        "summary": "Every row has ended",
        "value": {
            **_RUNNING,
            "status": "completed",
            "counts": {**_RUNNING["counts"], "pending": 0, "running": 0, "succeeded": 998},
            "usage": {"prompt_tokens": 8000, "completion_tokens": 170500, "total_tokens": 178500},
            "finished_at": "2026-01-31T09:00:47.004000Z",
            "rows_per_second": None,
            "tokens_per_second": None,
            "estimated_seconds": None,
        },
    },
}
CONTENT = named_examples(BATCH_EXAMPLES)

TAKEN: dict[str, Any] = {
    "content": CONTENT,
    "links": BATCH_LINKS,
    "headers": {
        "Location": {"description": "Where to poll the batch.", "schema": {"type": "string"}}
    },
}


def _as_text(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """An option of a query, where null is a word, and nested values are texts."""
    shown: dict[str, Any] = {
        key: schema[key] for key in ("description", "default") if key in schema
    }
    if name == "metadata":
        return {"type": "string", "contentMediaType": "application/json", **shown, "default": "{}"}
    kinds = [kind for kind in schema.get("anyOf", [schema]) if kind != {"type": "null"}]
    if name == "top_k":
        return {"anyOf": [*kinds, {"const": "null"}], **shown}
    return {**kinds[0], **shown}


_OPTIONS = {
    name: _as_text(name, {key: value for key, value in schema.items() if key != "title"})
    for name, schema in BatchOptions.model_json_schema()["properties"].items()
}
OPTION_PARAMETERS = [
    {"name": name, "in": "query", "required": False, "schema": schema}
    for name, schema in _OPTIONS.items()
]

_FILES = {
    "jsonl": ('{"custom_id": "cat", "prompt": "A cat found a box."}\n', "A row a line."),
    "txt": ("A cat found a box.\nA dog found a ball.\n", "A prompt a line."),
    "csv": ("custom_id,prompt\ncat,A cat found a box.\n", "A row a line, under a header."),
}


def _request_body() -> dict[str, Any]:
    body = json_body(BatchRequest, **REQUEST_EXAMPLES)
    for media_type, form in MEDIA_TYPES.items():
        example, description = _FILES[form]
        schema = {"type": "string", "minLength": 1, "description": description}
        body["content"][media_type] = {"schema": schema, "example": example}
    file = {"type": "string", "format": "binary", "description": "JSONL, text or CSV; also gzip."}
    form_schema = {
        "type": "object",
        "properties": {**_OPTIONS, "file": {**file, "minLength": 1}},
        "required": ["file"],
        "dependentRequired": {"callback_events": ["callback_url"]},
        "additionalProperties": False,
    }
    body["content"][MULTIPART] = {"schema": form_schema}
    return body


BODY = _request_body()

RESULTS: dict[str, Any] = {
    "description": "A line for each row that has succeeded, in order of completion.",
    "content": {
        "application/jsonl": {
            "schema": {"type": "string"},
            "example": '{"seq": 1, "custom_id": "cat", "prompt": "A cat found a box.", "text": '
            '" It was red.", "finish_reason": "stop", "usage": {"prompt_tokens": 6, '
            '"completion_tokens": 5, "total_tokens": 11}, '
            '"finished_at": "2026-01-31T09:00:01.004000Z"}\n',
        }
    },
}
ERRORS: dict[str, Any] = {
    "description": "A line for each row that has not succeeded, in the order in which they ended.",
    "content": {
        "application/jsonl": {
            "schema": {"type": "string"},
            "example": '{"seq": 1, "custom_id": "cat", "line": 3, "error": {"code": '
            '"prompt_too_long", "message": "480 prompt tokens + 200 max_tokens = 680, more than '
            'the context of 512"}, "finished_at": "2026-01-31T09:00:01.004000Z"}\n',
        }
    },
}
