"""What must hold before a job is taken: its model exists, and its text fits into that model."""

from __future__ import annotations

from api.problems import Problem
from slm_core.tokenizer import Tokenizer
from slm_jobs.errors import UnknownModel
from slm_jobs.manifest import Manifest, ModelSpec
from slm_jobs.schemas import JobRequest

_SHOWN = 64  # of a name that a client made up


def admit(request: JobRequest, manifest: Manifest, tokenizer: Tokenizer) -> ModelSpec:
    """The model that will serve the request. Raises Problem."""
    model = _resolve(request.model, manifest)
    _check_length(request, model, tokenizer)
    return model


def _resolve(name: str | None, manifest: Manifest) -> ModelSpec:
    try:
        return manifest.resolve(name)
    except UnknownModel as unknown:
        known = list(manifest.models)
        detail = f"No model {unknown.name[:_SHOWN]!r}; there are: {', '.join(known)}."
        errors = [{"pointer": "/model", "detail": detail}]
        raise Problem("unknown_model", detail, errors=errors, models=known) from None


def _check_length(request: JobRequest, model: ModelSpec, tokenizer: Tokenizer) -> None:
    too_long: list[tuple[str, int]] = []
    for index, prompt in enumerate(request.prompts):
        tokens = len(tokenizer.encode(prompt))
        if tokens + request.max_tokens > model.context_length:
            pointer = "/prompt" if isinstance(request.prompt, str) else f"/prompt/{index}"
            too_long.append((pointer, tokens))
    if not too_long:
        return
    raise Problem(
        "prompt_too_long",
        _advice(too_long[0][1], request, model),
        errors=[
            {"pointer": pointer, "detail": _advice(tokens, request, model)}
            for pointer, tokens in too_long
        ],
        prompt_tokens=too_long[0][1],
        max_tokens=request.max_tokens,
        context_length=model.context_length,
    )


def _advice(tokens: int, request: JobRequest, model: ModelSpec) -> str:
    by_default = "" if "max_tokens" in request.model_fields_set else " (the default)"
    needed, room = tokens + request.max_tokens, model.context_length - tokens
    advice = f"Shorten the prompt, or set max_tokens to {room} or less."
    return (
        f"{tokens} prompt tokens + {request.max_tokens} max_tokens{by_default} = {needed}, more "
        f"than the context of {model.context_length}. "
        f"{advice if room > 0 else 'Shorten the prompt.'}"
    )
