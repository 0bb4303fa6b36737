"""Which exception is which problem: the only place that decides it."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path

from api.addresses import route_path
from api.limits import quota_headers
from api.metrics import ApiMetrics
from api.openai.errors import respond
from api.problems import PROBLEMS, Problem
from slm_jobs.errors import (
    BatchGone,
    BatchInProgress,
    BatchNotEnded,
    BatchNotFound,
    CallbackUrlRefused,
    DeadLetterNotFound,
    FileNotFound,
    IdempotencyConflict,
    JobGone,
    JobNotEnded,
    JobNotFound,
    KeyRejected,
    NoSuchKey,
    PriorityTooHigh,
    QueueFull,
    RateLimited,
    SlmJobsError,
    StoreUnavailable,
    TooManyCallbacks,
    TooManyFiles,
)

log = logging.getLogger(__name__)


async def _problem(request: Request, error: Problem) -> Response:
    return respond(request.scope, error)


async def _job_not_found(request: Request, error: JobNotFound) -> Response:
    detail = f"No job {_shown(error.job_id)}: it never existed or its record has expired."
    return await _problem(request, Problem("job_not_found", detail))


async def _batch_not_found(request: Request, error: BatchNotFound) -> Response:
    detail = f"No batch {_shown(error.batch_id)}: it never existed or its record has expired."
    return await _problem(request, Problem("batch_not_found", detail))


async def _file_not_found(request: Request, error: FileNotFound) -> Response:
    detail = f"No file {_shown(error.file_id)}: it never existed or has expired."
    return await _problem(request, Problem("file_not_found", detail))


async def _dead_letter_not_found(request: Request, error: DeadLetterNotFound) -> Response:
    shown = _shown(error.job_id)
    detail = f"No dead letter {shown}: it is none, was redriven or dropped, or has expired."
    return await _problem(request, Problem("dead_letter_not_found", detail))


def _shown(given: str) -> str:
    return repr(given if len(given) <= 64 else given[:64] + "…")


async def _key_rejected(request: Request, error: KeyRejected) -> Response:  # noqa: ARG001
    detail = PROBLEMS["unauthorised"].example
    challenge = {"WWW-Authenticate": 'Bearer realm="slm"'}
    return await _problem(request, Problem("unauthorised", detail, headers=challenge))


async def _rate_limited(request: Request, error: RateLimited) -> Response:
    violated = [quota.policy for quota in error.violated]
    for policy in violated:
        _metrics(request).refused(policy)
    headers = quota_headers(error.quotas)
    seconds = error.retry_after
    if seconds is None:
        limits = ", ".join(f"{quota.limit} {quota.policy}" for quota in error.violated)
        detail = f"This request asks for more than the key will ever have: {limits}."
        problem = Problem("exceeds_limit", detail, headers=headers)
    else:
        detail = f"Limits reached: {', '.join(violated)}. Try again in {seconds} s."
        headers["Retry-After"] = str(seconds)
        problem = Problem("rate_limited", detail, headers=headers)
    problem.fields["violated-policies"] = violated
    return await _problem(request, problem)


_PLAIN: dict[type[SlmJobsError], str] = {  # what the error says is for clients
    PriorityTooHigh: "forbidden",
    IdempotencyConflict: "idempotency_conflict",
    JobGone: "job_gone",
    JobNotEnded: "job_not_ended",
    BatchNotEnded: "batch_not_ended",
    BatchInProgress: "idempotency_in_progress",
    BatchGone: "batch_gone",
    NoSuchKey: "key_not_found",
    TooManyFiles: "too_many_files",
    TooManyCallbacks: "too_many_callbacks",
}


async def _queue_full(request: Request, error: QueueFull) -> Response:
    _metrics(request).refused("queue")
    headers = {"Retry-After": str(error.retry_after)}
    return await _problem(request, Problem("queue_full", _sentence(error), headers=headers))


_LIMITS: dict[type[SlmJobsError], str] = {TooManyFiles: "files", TooManyCallbacks: "callbacks"}


async def _plain(request: Request, error: SlmJobsError) -> Response:
    if limit := _LIMITS.get(type(error)):
        _metrics(request).refused(limit)
    return await _problem(request, Problem(_PLAIN[type(error)], _sentence(error)))


def _metrics(request: Request) -> ApiMetrics:
    metrics: ApiMetrics = request.app.state.metrics
    return metrics


def _sentence(error: SlmJobsError) -> str:
    text = str(error)
    return f"{text[0].upper()}{text[1:]}."


async def _callback_url_refused(request: Request, error: CallbackUrlRefused) -> Response:
    detail = _sentence(error)
    errors = [{"pointer": "/callback_url", "detail": detail}]
    problem = Problem("callback_url_refused", detail, errors=errors, reason=error.reason)
    return await _problem(request, problem)


async def _store_unavailable(request: Request, error: StoreUnavailable) -> Response:
    # The cause names hosts and ports: it is for the log only.
    log.warning("%s", error, extra={"request_id": request.state.request_id})
    detail = "Redis does not answer. Try again in a second."
    return await _problem(request, Problem("store_unavailable", detail))


async def _http_error(request: Request, error: HTTPException) -> Response:
    """What the framework itself refuses: addresses and methods."""
    path, headers = request.scope["path"][:64], dict(error.headers or {})
    if error.status_code == 405:
        allowed = headers["Allow"] = ", ".join(_methods(request)) or headers.get("Allow", "")
        detail = f"{path} takes {allowed}, not {request.method}."
        return await _problem(request, Problem("method_not_allowed", detail, headers=headers))
    if error.status_code == 404:
        return await _problem(request, Problem("not_found", f"Nothing is at {path}."))
    raise error  # nothing of ours; it becomes an internal_error, logged


def _methods(request: Request) -> list[str]:
    """Those of every route at this address; the framework names those of the first. As in OpenAPI,
    a path goes before templates that it fits."""
    path, paths = route_path(request.scope), request.app.openapi()["paths"]
    fitting = [path] if path in paths else [t for t in paths if compile_path(t)[0].match(path)]
    return sorted(method.upper() for template in fitting for method in paths[template])


async def _parameters(request: Request, error: RequestValidationError) -> Response:
    """Wrong query or header parameters (a body never gets here: see `body`)."""
    detail = "; ".join(
        f"{' '.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()[:20]
    )
    return await _problem(request, Problem("invalid_request", detail))


def install(app: FastAPI) -> None:
    handlers: dict[Any, Any] = {
        Problem: _problem,
        JobNotFound: _job_not_found,
        BatchNotFound: _batch_not_found,
        FileNotFound: _file_not_found,
        DeadLetterNotFound: _dead_letter_not_found,
        KeyRejected: _key_rejected,
        RateLimited: _rate_limited,
        **dict.fromkeys(_PLAIN, _plain),
        QueueFull: _queue_full,
        CallbackUrlRefused: _callback_url_refused,
        StoreUnavailable: _store_unavailable,
        HTTPException: _http_error,
        RequestValidationError: _parameters,
    }
    for error, handler in handlers.items():
        app.add_exception_handler(error, handler)
