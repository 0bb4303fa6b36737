"""What Schemathesis must know about a running stack that its OpenAPI document cannot say.

Loaded by `st run` (see test_schemathesis.py), which passes what it needs in the environment.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

import schemathesis

OWN_KEY = os.environ["SLM_TEST_KEY_ID"]  # of the key that the run itself uses
MODEL = "tiny"
GENERATING = ("/jobs", "/batches", "/generate", "/v1/completions")  # what takes `max_tokens`
LONGEST = 8  # tokens: texts fit the context, and nothing has to wait long
MOST = 4  # outputs for each prompt: of 16 prompts 64, as many as a job may have
# The key of the run may send callbacks there; nobody listens, and no name is looked up.
CALLBACK_URL = "http://127.0.0.1:9/hook"
TEMPLATE = {"template": "animal", "variables": {"animal": "fox", "name": "Bo"}}
# Requests of the right form that are refused all the same, by what they are refused for: names of
# things that are not there, a prompt and max_tokens that do not fit the context, 16 prompts of
# 100,000 characters that do not fit into a body, and an Idempotency-Key that came with another body
# before, or whose job or batch is deleted; and more files than a key may have. To the document a
# file of rows is any text, and its name any name.
REFUSED = {
    "unknown_model",
    "unknown_template",
    "prompt_too_long",
    "context_length_exceeded",
    "body_too_large",
    "idempotency_conflict",
    "job_gone",
    "batch_gone",
    "invalid_rows",
    "empty_batch",
    "too_many_files",
}
# What it thinks is wrong with a form is not always in what it sends.
FORM = "multipart/form-data"
# Fields that may be wrong only because of another one: as many as `n`, and those of the template.
WRONG_TOGETHER = {"best_of", "/variables"}


@schemathesis.serializer("application/jsonl", "application/x-ndjson", "application/x-jsonlines")
def _as_it_is(context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Names of what there is, which the document cannot list; so requests get past that check.

    What is wrong with a body stays wrong.
    """
    if not isinstance(body, dict) or not context.operation.path.startswith(GENERATING):
        return body
    named = _named(body)
    if isinstance(body.get("template"), str) and _texts(body.get("variables", {})):
        named |= TEMPLATE if context.operation.path == "/jobs" else {}
    return named


@schemathesis.hook
def map_query(context: Any, query: Any) -> Any:
    """Likewise."""
    if not isinstance(query, dict) or context.operation.label != "POST /batches":
        return query
    return _named(query)


@schemathesis.hook
def before_call(context: Any, case: Any, **_: Any) -> None:
    """Likewise: where callbacks may go. Examples, too, get here."""
    for fields in (case.body, case.query):
        if not isinstance(fields, dict):
            continue
        if _is_text(fields.get("callback_url"), 2_048):
            fields["callback_url"] = CALLBACK_URL
        if isinstance(hosts := fields.get("callback_hosts"), list):
            fields["callback_hosts"] = ["a.example" if _is_text(h, 261) else h for h in hosts]
    if case.operation.label == "POST /batches":  # what the body says goes before the query
        if isinstance(case.body, dict) and case.body.get("callback_url", "") is None:
            del case.body["callback_url"]
        if case.query and "callback_events" in case.query:  # which needs it
            case.query.setdefault("callback_url", CALLBACK_URL)


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """The run goes on with its own key."""
    return not (case.path.startswith("/admin/keys/") and case.path_parameters.get("id") == OWN_KEY)


@schemathesis.hook
def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
    if type(failure).__name__ == "AcceptedNegativeData":
        return bool(case.media_type != FORM)
    if type(failure).__name__ != "RejectedPositiveData":
        return True
    try:
        document = response.json()
    except json.JSONDecodeError:
        return True
    error = document.get("error", document)
    fields = {error.get("param"), *(e["pointer"] for e in error.get("errors", ()))}
    refused = error.get("code") in REFUSED
    if case.operation.label == "DELETE /v1/files/{id}":  # that of an output goes with its batch
        refused = refused or error.get("param") == "id"
    if case.media_type == FORM:  # its file has some name, which says nothing
        refused = refused or error.get("code") == "unsupported_media_type"
    return not (refused or fields & WRONG_TOGETHER or _guessed(case))


def _named(fields: dict[str, Any]) -> dict[str, Any]:
    named: dict[str, Any] = {"model": MODEL} if isinstance(fields.get("model"), str) else {}
    if isinstance(fields.get("metadata"), str):  # JSON in a text
        named["metadata"] = '{"a": "b"}'
    tokens, n = fields.get("max_tokens", 300), fields.get("n")
    if isinstance(tokens, int | float) and LONGEST < tokens <= 300:
        named["max_tokens"] = tokens % LONGEST + 1
    if isinstance(n, int | float) and MOST < n <= 64:
        named["n"] = n % MOST + 1
    return {**fields, **named}


def _is_text(value: Any, longest: int) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= longest


def _texts(variables: Any) -> bool:
    return (
        isinstance(variables, dict)
        and len(variables) <= 32
        and all(isinstance(text, str) and len(text) <= 10_000 for text in variables.values())
    )


def _guessed(case: Any) -> bool:
    """Whether Schemathesis took the id of something else for that of an event, whatever the
    document says about its form."""
    event = (case.headers or {}).get("last-event-id")
    return event is not None and not re.fullmatch("[0-9]{1,4}:([0-9]{1,8}|end)", event)
