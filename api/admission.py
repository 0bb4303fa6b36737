"""What must hold before a job is taken: its model and template exist, and its text fits."""

from __future__ import annotations

from collections.abc import Sequence

from api.problems import Problem
from slm_jobs.errors import TemplateError, UnknownModel
from slm_jobs.manifest import Manifest, ModelSpec
from slm_jobs.schemas import JobRequest

_SHOWN = 64  # of a name that a client made up


def resolve(name: str | None, manifest: Manifest) -> ModelSpec:
    """The named model, or the default. Raises Problem."""
    try:
        return manifest.resolve(name)
    except UnknownModel as unknown:
        known = list(manifest.models)
        detail = f"No model {unknown.name[:_SHOWN]!r}; there are: {', '.join(known)}."
        errors = [{"pointer": "/model", "detail": detail}]
        raise Problem("unknown_model", detail, errors=errors, models=known) from None


def prompts_of(request: JobRequest, model: ModelSpec) -> list[str]:
    """The request's own prompts, or its template's text. Raises Problem."""
    if request.template is None:
        return request.prompts
    template = model.templates.get(request.template)
    if template is None:
        known = list(model.templates)
        there = f"there are: {', '.join(known)}" if known else "it has none"
        detail = f"{model.name} has no template {request.template[:_SHOWN]!r}; {there}."
        errors = [{"pointer": "/template", "detail": detail}]
        raise Problem("unknown_template", detail, errors=errors, templates=known)
    try:
        return [template.render(request.variables)]
    except TemplateError as error:
        errors = [{"pointer": "/variables", "detail": str(error)}]
        raise Problem("invalid_request", f"/variables: {error}", errors=errors) from None


def check_length(request: JobRequest, model: ModelSpec, lengths: Sequence[int]) -> None:
    """Raises Problem unless each prompt, of so many tokens, leaves room for max_tokens."""
    too_long = [
        (index, tokens)
        for index, tokens in enumerate(lengths)
        if tokens + request.max_tokens > model.context_length
    ]
    if not too_long:
        return
    raise Problem(
        "prompt_too_long",
        _advice(too_long[0][1], request, model),
        errors=[
            {"pointer": _pointer(request, index), "detail": _advice(tokens, request, model)}
            for index, tokens in too_long
        ],
        prompt_tokens=too_long[0][1],
        max_tokens=request.max_tokens,
        context_length=model.context_length,
    )


def _pointer(request: JobRequest, index: int) -> str:
    if request.template is not None:
        return "/template"
    return "/prompt" if isinstance(request.prompt, str) else f"/prompt/{index}"


def _advice(tokens: int, request: JobRequest, model: ModelSpec) -> str:
    by_default = "" if "max_tokens" in request.model_fields_set else " (the default)"
    needed, room = tokens + request.max_tokens, model.context_length - tokens
    advice = f"Shorten the prompt, or set max_tokens to {room} or less."
    return (
        f"{tokens} prompt tokens + {request.max_tokens} max_tokens{by_default} = {needed}, more "
        f"than the context of {model.context_length}. "
        f"{advice if room > 0 else 'Shorten the prompt.'}"
    )
