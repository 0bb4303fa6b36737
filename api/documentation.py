"""What the OpenAPI document says beyond what the code declares by itself, and the page at /docs.

Knows the shapes and no behaviour. Tests check every example here against the schemas.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from api.problems import MEDIA_TYPE, PROBLEMS, ProblemDocument
from slm_jobs.schemas import JobRequest

DESCRIPTION = """\
Text generation with small language models, as jobs: `POST /jobs` takes one at once and answers
`202`; poll `GET /jobs/{id}` for its text. Workers generate many jobs together.

Errors are problem documents (RFC 9457) with a stable `code`. Every response carries
`X-Request-Id`; send your own (up to 64 of `A-Za-z0-9._-`) to find a request in the logs again.
"""

TAGS = [
    {"name": "jobs", "description": "Generate text."},
    {"name": "service", "description": "What is served, and whether it works."},
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
    "seed": 7,
    "outputs": [],
    "usage": None,
    "error": None,
    "metadata": {},
}
JOB_EXAMPLES: dict[str, dict[str, Any]] = {
    "queued": {"summary": "It waits", "value": _QUEUED},
    "succeeded": {
        "summary": "It is done",
        "value": {
            **_QUEUED,
            "status": "succeeded",
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


def job_examples(*names: str) -> dict[str, Any]:
    """By reference: FastAPI drops nulls from what a route declares, and a job has nulls."""
    examples = {name: {"$ref": f"#/components/examples/{name}"} for name in names}
    return {"application/json": {"examples": examples}}


TAKEN: dict[str, Any] = {
    "content": job_examples("queued"),
    "headers": {
        "Location": {"description": "Where to poll the job.", "schema": {"type": "string"}}
    },
}

_REF = "#/components/schemas/{model}"
JOB_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"$ref": _REF.format(model="JobRequest")},
            "examples": REQUEST_EXAMPLES,
        }
    },
}


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
        if kind.status == 503:
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


class DocumentedAPI(FastAPI):
    """FastAPI whose document also has what routes only refer to."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        schemas = document["components"]["schemas"]
        document["components"]["examples"] = JOB_EXAMPLES
        if "Problem" not in schemas:
            for name, model in (("JobRequest", JobRequest), ("Problem", ProblemDocument)):
                schema = model.model_json_schema(ref_template=_REF)
                schemas |= schema.pop("$defs", {})
                schemas[name] = schema
        return document


def add_docs_page(app: FastAPI) -> None:
    """`/docs`, with the page's script and style from here: many networks reach no CDN."""
    assets = StaticFiles(packages=[("fastapi_offline", "static")])
    app.mount("/docs/assets", assets, name="assets")

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        root = request.scope.get("root_path", "").rstrip("/")
        return get_swagger_ui_html(
            openapi_url=f"{root}/openapi.json",
            title=app.title,
            swagger_js_url=f"{root}/docs/assets/swagger-ui-bundle.js",
            swagger_css_url=f"{root}/docs/assets/swagger-ui.css",
            swagger_favicon_url=f"{root}/docs/assets/favicon.png",
            # Without it the page sends the address of our document to a public validator.
            swagger_ui_parameters={"validatorUrl": None},
        )
