"""What the OpenAPI document says beyond what the code declares by itself, and the page at /docs.

Knows the shapes and no behaviour. Tests check every example here against the schemas.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from api.links import JOB_LINKS
from api.problems import MEDIA_TYPE, PROBLEMS, ProblemDocument
from slm_jobs.schemas import JobRequest

DESCRIPTION = """\
Text generation with small language models, as jobs: `POST /jobs` takes one at once and answers
`202`; wait for its text, poll for it, or follow it token by token. Workers generate many jobs
together. `POST /batches` takes a file of prompts, of any size; its rows run when no job waits.
`/v1/completions` is the same for programs that speak OpenAI's API.

Send an API key with every request: `Authorization: Bearer slm_...`. It has limits, which responses
tell in `RateLimit` and `x-ratelimit-*`; 429 names those that were reached, and `Retry-After` when
to come again. `Idempotency-Key` makes it safe to send a request again. With a `callback_url` the
service tells by itself when a job or batch has ended, signed as Standard Webhooks are.

Errors are problem documents (RFC 9457) with a stable `code`. Every response carries
`X-Request-Id`; send your own (up to 64 of `A-Za-z0-9._-`) to find a request in the logs again, also
in those of the worker.
"""

TAGS = [
    {"name": "jobs", "description": "Generate text."},
    {"name": "batches", "description": "Generate texts for files of prompts."},
    {"name": "callbacks", "description": "Be told what happens, by signed requests."},
    {"name": "simple", "description": "A text at once."},
    {"name": "openai", "description": "What OpenAI's clients call; errors have OpenAI's form."},
    {"name": "service", "description": "What is served, and whether it works."},
    {"name": "admin", "description": "For admin keys."},
]

REQUEST_EXAMPLES: dict[str, dict[str, Any]] = {
    "simple": {
        "summary": "One prompt",
        "value": {"prompt": "Once upon a time"},
    },
    "sampling": {
        "summary": "Own sampling, repeatable",
        "value": {
            "prompt": "The little dragon was afraid of",
            "max_tokens": 120,
            "temperature": 0.9,
            "top_k": 100,
            "top_p": 0.95,
            "seed": 7,
            "stop": ["The end"],
            "metadata": {"story": "dragon-12"},
        },
    },
    "several": {
        "summary": "Several prompts, two continuations each",
        "value": {"prompt": ["A cat found a box.", "A dog found a ball."], "n": 2},
    },
    "template": {
        "summary": "A template of the model",
        "value": {"template": "animal", "variables": {"animal": "fox", "name": "Rusty"}},
    },
    "callback": {
        "summary": "Tell when it has ended, with the text",
        "value": {
            "prompt": "Once upon a time",
            "callback_url": "https://example.com/hooks/slm",
            "callback_events": ["succeeded", "failed"],
            "callback_outputs": True,
        },
    },
    "deadlines": {
        "summary": "Soon, or not at all",
        "value": {"prompt": "Once upon a time", "queue_timeout": 10, "run_timeout": 5},
    },
    "greedy": {
        "summary": "Always the likeliest token",
        "value": {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 50},
    },
}

_QUEUED: dict[str, Any] = {
    "id": "job_01K9ZX3V7Q4C8E2M5T6R0B1DAF",
    "status": "queued",
    "model": "tinystories",
    "created_at": "2026-01-31T09:00:00.120000Z",
    "started_at": None,
    "finished_at": None,
    "attempt": 0,
    "priority": 0,
    "seed": 7,
    "queue": {"ahead": 3, "estimated_wait_seconds": 0.4},
    "cancel_requested": False,
    "outputs": [],
    "usage": None,
    "fingerprint": None,
    "error": None,
    "metadata": {},
    "retry_of": None,
}
JOB_EXAMPLES: dict[str, dict[str, Any]] = {
    "queued": {"summary": "It waits", "value": _QUEUED},
    "succeeded": {
        "summary": "It is done",
        "value": {
            **_QUEUED,
            "status": "succeeded",
            "queue": None,
            "fingerprint": "int8/cpu-avx512_bf16/kernels-8f03e8cd0387",
            "started_at": "2026-01-31T09:00:00.131000Z",
            "finished_at": "2026-01-31T09:00:01.004000Z",
            "attempt": 1,
            "outputs": [
                {"index": 0, "text": ", there was a little girl.", "finish_reason": "stop"}
            ],
            "usage": {"prompt_tokens": 4, "completion_tokens": 7, "total_tokens": 11},
        },
    },
    "failed": {
        "summary": "It failed",
        "value": {
            **_QUEUED,
            "status": "failed",
            "queue": None,
            "started_at": "2026-01-31T09:00:00.131000Z",
            "finished_at": "2026-01-31T09:00:46.310000Z",
            "attempt": 3,
            "error": {
                "code": "attempts_exhausted",
                "message": "3 times the worker that ran this job fell silent",
            },
        },
    },
}


_examples = dict(JOB_EXAMPLES)  # only referred to


def job_examples(*names: str) -> dict[str, Any]:
    """By reference: FastAPI drops nulls from what a route declares, and a job has nulls."""
    examples = {name: {"$ref": f"#/components/examples/{name}"} for name in names}
    return {"application/json": {"examples": examples}}


def named_examples(examples: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """These, by reference."""
    _examples.update(examples)
    return job_examples(*examples)


TAKEN: dict[str, Any] = {
    "content": job_examples("queued"),
    "links": JOB_LINKS,
    "headers": {
        "Location": {"description": "Where to poll the job.", "schema": {"type": "string"}}
    },
}

_REF = "#/components/schemas/{model}"
_NULL = {"type": "null"}
_PROMPT_OR_TEMPLATE = {  # what the fields of `JobRequest` say only together
    "if": {"required": ["template"], "properties": {"template": {"type": "string"}}},
    "then": {"properties": {"prompt": _NULL}},
    "else": {
        "required": ["prompt"],
        "properties": {"prompt": {"type": ["string", "array"]}, "variables": {"maxProperties": 0}},
    },
}

_URL_FOR_CALLBACKS = {  # likewise of `JobRequest` and `BatchRequest`
    "anyOf": [
        {"required": ["callback_url"], "properties": {"callback_url": {"type": "string"}}},
        {"properties": {"callback_events": _NULL, "callback_outputs": {"const": False}}},
    ]
}

_bodies: dict[str, type[BaseModel]] = {"Problem": ProblemDocument}  # schemas only referred to


def json_body(model: type[BaseModel], **examples: dict[str, Any]) -> dict[str, Any]:
    """A `requestBody` for a body that the route reads by itself."""
    _bodies[model.__name__] = model
    schema = {"$ref": _REF.format(model=model.__name__)}
    return {
        "required": True,
        "content": {"application/json": {"schema": schema, "examples": examples}},
    }


JOB_BODY = json_body(JobRequest, **REQUEST_EXAMPLES)

STREAM: dict[str, Any] = {
    "description": "Events until the job has ended.",
    "content": {
        "text/event-stream": {
            "example": 'event: status\ndata: {"status": "running", "attempt": 1}\n\n'
            'event: token\ndata: {"index": 0, "text": ", there was"}\nid: 0:3\n\n'
        }
    },
}


# What a route may answer with that reads a body, and one that takes a job.
BODY_PROBLEMS = (
    "malformed_json",
    "body_timeout",
    "body_too_large",
    "unsupported_media_type",
    "invalid_request",
)
TAKING_PROBLEMS = (
    *BODY_PROBLEMS,
    "unauthorised",
    "forbidden",
    "job_gone",
    "exceeds_limit",
    "idempotency_conflict",
    "rate_limited",
    "queue_full",
    "store_unavailable",
)


def problems(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these problems, and any with the default."""
    documented: dict[int | str, dict[str, Any]] = {}
    for code in (*codes, "internal_error"):
        kind = PROBLEMS[code]
        key = "default" if code == "internal_error" else kind.status
        response = documented.setdefault(
            key,
            {
                "description": "Any other problem",
                "content": {
                    MEDIA_TYPE: {"schema": {"$ref": _REF.format(model="Problem")}, "examples": {}}
                },
            },
        )
        examples = response["content"][MEDIA_TYPE]["examples"]
        examples[code] = {"summary": kind.title, "value": _example(code)}
        if key != "default":
            response["description"] = " · ".join(f"`{name}`" for name in examples)
        if kind.retry_after is not None:
            seconds = {"description": "Seconds to wait.", "schema": {"type": "integer"}}
            response["headers"] = {"Retry-After": seconds}
    return documented


def _example(code: str) -> dict[str, Any]:
    kind = PROBLEMS[code]
    return {
        "type": f"urn:slm:problem:{code}",
        "title": kind.title,
        "status": kind.status,
        "detail": kind.example,
        "instance": "urn:slm:request:5b1f6c0e9a3d4e7f8a2b",
        "code": code,
    }


def operation_id(route: APIRoute) -> str:
    """What generated clients call a route: the name of its function, which must not change."""
    return f"openai_{route.name}" if route.path.startswith("/v1/") else route.name


def _correct(operation: dict[str, Any]) -> None:
    """Takes out what the framework says and OpenAPI 3.1 does not know, or what is not so."""
    for parameter in operation.get("parameters", ()):
        parameter["schema"] = _without_null(parameter["schema"])
    for response in operation["responses"].values():
        for content in response.get("content", {}).values():
            content.pop("itemSchema", None)  # of 3.2


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """An address or a header leaves a parameter out; it cannot send null for it."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != _NULL]
    if len(kinds) != 1:
        return schema
    return {**kinds[0], **{name: value for name, value in schema.items() if name != "anyOf"}}


class DocumentedAPI(FastAPI):
    """FastAPI whose document also has what routes only refer to."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        schemas = document["components"]["schemas"]
        document["components"]["examples"] = _examples
        if "Problem" not in schemas:
            for name, model in _bodies.items():
                schema = model.model_json_schema(ref_template=_REF)
                schemas |= schema.pop("$defs", {})
                schemas[name] = schema
            schemas["JobRequest"] |= _PROMPT_OR_TEMPLATE | _URL_FOR_CALLBACKS
            schemas["BatchRequest"] |= _URL_FOR_CALLBACKS
        for operations in document["paths"].values():
            for operation in operations.values():
                _correct(operation)
        return document


def add_docs_page(app: FastAPI) -> None:
    """`/docs`, with the page's script and style from here: many networks reach no CDN."""
    assets = StaticFiles(packages=[("fastapi_offline", "static")])
    app.mount("/docs/assets", assets, name="assets")

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        root = request.scope.get("root_path", "").rstrip("/")
        page = get_swagger_ui_html(
            openapi_url=f"{root}/openapi.json",
            title=app.title,
            swagger_js_url=f"{root}/docs/assets/swagger-ui-bundle.js",
            swagger_css_url=f"{root}/docs/assets/swagger-ui.css",
            swagger_favicon_url=f"{root}/docs/assets/favicon.png",
            # Without it the page sends the address of our document to a public validator.
            swagger_ui_parameters={"validatorUrl": None},
        )
        page.headers["Content-Security-Policy"] = (
            "default-src 'self'; script-src 'self' 'unsafe-inline'; "
            "style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"
        )
        return page
