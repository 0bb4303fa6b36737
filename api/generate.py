"""`/generate`: the smallest way to a text. Fits a request into the model's context by itself."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field

from api.auth import Caller
from api.body import check, json_bytes, load
from api.desk import Desk
from api.documentation import TAKING_PROBLEMS, json_body, problems
from api.problems import Problem
from api.synchronous import Call, IdempotencyKey
from slm_jobs.manifest import ModelSpec
from slm_jobs.schemas import GenerationParams, JobRequest, Prompt

_CUSTOM = "custom"  # the model trained here, whatever its name
_INSTALLABLE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class GenerateRequest(GenerationParams):
    """The body of `POST /generate`."""

    prompt: Prompt = Field(description="The text to continue; if it is too long, its end.")
    max_tokens: int = Field(
        100, ge=1, le=300, description="Most tokens to generate; fewer if the context is full."
    )
    n: Literal[1] = Field(1, description="One text is the answer.")


class Generated(BaseModel):
    output: str = Field(description="The prompt and its continuation.")


class GeneratedText(BaseModel):
    generated_text: str = Field(description="The prompt and its continuation.")


_BODY = json_body(
    GenerateRequest,
    simple={
        "summary": "One prompt",
        "value": {"prompt": "Once upon a time", "max_tokens": 100},
    },
    sampling={
        "summary": "Own sampling, repeatable",
        "value": {"prompt": "A fox met", "temperature": 0.9, "top_k": 100, "seed": 7},
    },
)
_PROBLEMS = (*TAKING_PROBLEMS, "generation_failed", "timeout")


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(tags=["simple"])

    async def generated(
        model: ModelSpec, caller: Caller, body: bytes, http: Request, response: Response
    ) -> str:
        def begin() -> tuple[str, Call]:
            data = load(body)
            wanted = check(GenerateRequest, data)
            prompt, max_tokens = _fit(wanted, model, desk)
            fields = wanted.model_dump(exclude={"max_tokens"})
            request = JobRequest(**fields, max_tokens=max_tokens, model=model.name)
            return wanted.prompt, Call.begin(desk, request, [prompt], caller, http, data)

        prompt, call = await run_in_threadpool(begin)
        job = await call.succeeded(http)
        response.headers.update(call.headers)
        return prompt + job.outputs[0].text

    @routes.post(
        "/generate",
        summary="Generate a text",
        response_description="The prompt and its continuation.",
        openapi_extra={"requestBody": _BODY},
        responses={**problems(*_PROBLEMS)},
    )
    async def generate(
        caller: Caller,
        body: Annotated[bytes, Depends(json_bytes)],
        http: Request,
        response: Response,
        idempotency_key: IdempotencyKey = None,  # noqa: ARG001 - documented here, read by Call
    ) -> Generated:
        """Continues a prompt with the default model, and waits for the text.

        The request is made to fit: `max_tokens` is cut to the room that the prompt leaves, and a
        prompt that fills the context by itself keeps its end. A client that goes away cancels the
        job, unless it sent an `Idempotency-Key`.
        """
        text = await generated(desk.manifest.default, caller, body, http, response)
        return Generated(output=text)

    @routes.post(
        "/generate/{model}",
        summary="Generate a text with a model",
        response_description="The prompt and its continuation.",
        openapi_extra={"requestBody": _BODY},
        responses={**problems("model_not_installed", *_PROBLEMS)},
    )
    async def generate_with(
        caller: Caller,
        model: Annotated[
            str, Path(description="A name from `GET /models`, or `custom`: the default model.")
        ],
        body: Annotated[bytes, Depends(json_bytes)],
        http: Request,
        response: Response,
        idempotency_key: IdempotencyKey = None,  # noqa: ARG001 - documented here, read by Call
    ) -> GeneratedText:
        """As `POST /generate`, with the named model."""
        spec = _installed(model, desk)
        return GeneratedText(generated_text=await generated(spec, caller, body, http, response))

    return routes


def _fit(wanted: GenerateRequest, model: ModelSpec, desk: Desk) -> tuple[str | list[int], int]:
    """Prompt and max_tokens that fill the context at most.

    A prompt that leaves room stays whole. One that leaves none keeps as much of its end as leaves
    room for max_tokens, though at least one token.
    """
    tokens = desk.encode(wanted.prompt)
    room = model.context_length - len(tokens)
    if room > 0:
        return wanted.prompt, min(wanted.max_tokens, room)
    max_tokens = min(wanted.max_tokens, model.context_length - 1)
    return tokens[-(model.context_length - max_tokens) :], max_tokens


def _installed(name: str, desk: Desk) -> ModelSpec:
    models = desk.manifest.models
    if name in models:
        return models[name]
    if name == _CUSTOM:
        return desk.manifest.default
    detail = f"No model {name[:64]!r}; there are: {', '.join(models)}."
    if _INSTALLABLE.fullmatch(name):
        detail += f" `slm models add {name} --from <directory or hub id>` installs it."
    raise Problem("model_not_installed", detail, models=list(models))
