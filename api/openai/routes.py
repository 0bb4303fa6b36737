"""`/v1/completions` and `/v1/models`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.concurrency import run_in_threadpool

from api.admission import resolve
from api.auth import Caller, Viewer
from api.body import check, json_bytes, load
from api.desk import Desk
from api.documentation import TAKING_PROBLEMS, json_body
from api.openai.errors import errors
from api.openai.schemas import (
    END_OF_TEXT,
    Choice,
    Completion,
    CompletionRequest,
    ModelCard,
    ModelList,
)
from api.openai.streaming import Chunks, TextStream, completion
from api.synchronous import Call, IdempotencyKey

_EXAMPLES: dict[str, dict[str, Any]] = {
    "simple": {
        "summary": "One prompt",
        "value": {"model": "tinystories", "prompt": "Once upon a time", "max_tokens": 100},
    },
    "several": {
        "summary": "Two prompts, two choices each, repeatable",
        "value": {
            "model": "tinystories",
            "prompt": ["A cat found a box.", "A dog found a ball."],
            "n": 2,
            "max_tokens": 60,
            "temperature": 0.8,
            "top_k": 40,
            "seed": 7,
        },
    },
    "stream": {
        "summary": "Sent as it is made",
        "value": {
            "model": "tinystories",
            "prompt": "Once upon a time",
            "max_tokens": 100,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    },
}
_BODY = json_body(CompletionRequest, **_EXAMPLES)
_STREAMED = {
    "description": "The completion; with `stream`, chunks of it as server-sent events, up to"
    " `data: [DONE]`.",
    "content": {
        "text/event-stream": {
            "example": 'data: {"id": "cmpl-job_01K9ZX3V7Q4C8E2M5T6R0B1DAF", "choices": [{'
            '"index": 0, "text": ", there was", "finish_reason": null}], ...}\n\ndata: [DONE]\n\n'
        }
    },
}


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["openai"])
    cards = {
        name: ModelCard(id=name, created=int((spec.checkpoint / "config.json").stat().st_mtime))
        for name, spec in desk.manifest.models.items()
    }

    @routes.post(
        "/completions",
        summary="Complete a text",
        response_model=Completion,
        openapi_extra={"requestBody": _BODY},
        responses={
            200: _STREAMED,
            **errors(
                *TAKING_PROBLEMS,
                "prompt_too_long",
                "unsupported_parameter",
                "unknown_model",
                "generation_failed",
                "timeout",
            ),
        },
    )
    async def create_completion(
        caller: Caller,
        body: Annotated[bytes, Depends(json_bytes)],
        http: Request,
        response: Response,
        idempotency_key: IdempotencyKey = None,  # noqa: ARG001 - documented here, read by Call
    ) -> Response | Completion:
        """OpenAI's legacy completions: a job that the call waits for.

        A client that goes away cancels it, unless it sent an `Idempotency-Key`.
        """

        def begin() -> tuple[CompletionRequest, Call]:
            data = load(body)
            wanted = check(CompletionRequest, data)
            wanted.refuse_unsupported()
            prompts = [prompt or [END_OF_TEXT] for prompt in wanted.prompts]
            return wanted, Call.begin(desk, wanted.job_request(), prompts, caller, http, data)

        wanted, call = await run_in_threadpool(begin)
        before = _before_choices(wanted, desk)
        if wanted.stream:
            usage = wanted.stream_options.include_usage
            chunks = Chunks(call.job, before, include_usage=usage)
            return TextStream(call, chunks, desk.follow(call.job.id))
        job = await call.succeeded(http)
        response.headers.update(call.headers)
        choices = [
            Choice(index=o.index, text=before[o.index] + o.text, finish_reason=o.finish_reason)
            for o in job.outputs
        ]
        return completion(job, choices).model_copy(update={"usage": job.usage})

    @routes.get(
        "/models",
        summary="List the models",
        responses=errors("unauthorised", "store_unavailable"),
    )
    def list_models(viewer: Viewer) -> ModelList:  # noqa: ARG001
        """The models that a completion may ask for, as OpenAI lists its own."""
        return ModelList(data=list(cards.values()))

    @routes.get(
        "/models/{id}",
        summary="Read a model",
        responses=errors("unauthorised", "unknown_model", "store_unavailable"),
    )
    def get_model(
        viewer: Viewer,  # noqa: ARG001
        name: Annotated[str, Path(alias="id", description="As `GET /v1/models` lists it.")],
    ) -> ModelCard:
        """One model, if there is one of this name."""
        return cards[resolve(name, desk.manifest).name]

    return routes


def _before_choices(wanted: CompletionRequest, desk: Desk) -> list[str]:
    """For each choice what stands before its continuation: its prompt, if it is to be echoed."""
    texts = [
        (prompt if isinstance(prompt, str) else desk.decode(prompt)) if wanted.echo else ""
        for prompt in wanted.prompts
    ]
    return [text for text in texts for _ in range(wanted.n)]
