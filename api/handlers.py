"""Which exception is which problem: the only place that decides it."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from api.problems import Problem
from slm_jobs.errors import JobNotFound, StoreUnavailable

log = logging.getLogger(__name__)


async def _problem(request: Request, error: Problem) -> Response:
    return error.response(request.state.request_id)


async def _job_not_found(request: Request, error: JobNotFound) -> Response:
    shown = error.job_id if len(error.job_id) <= 64 else error.job_id[:64] + "…"
    detail = f"No job {shown!r}: it never existed or its record has expired."
    return await _problem(request, Problem("job_not_found", detail))


async def _store_unavailable(request: Request, error: StoreUnavailable) -> Response:
    # The cause names hosts and ports: it is for the log only.
    log.warning("%s (request %s)", error, request.state.request_id)
    detail = "Redis does not answer. Try again in a second."
    return await _problem(request, Problem("store_unavailable", detail))


async def _http_error(request: Request, error: HTTPException) -> Response:
    """What the framework itself refuses: addresses and methods."""
    path, headers = request.scope["path"][:64], dict(error.headers or {})
    if error.status_code == 405:
        detail = f"{path} takes {headers.get('Allow', 'other methods')}, not {request.method}."
        return await _problem(request, Problem("method_not_allowed", detail, headers=headers))
    if error.status_code == 404:
        return await _problem(request, Problem("not_found", f"Nothing is at {path}."))
    raise error  # nothing of ours; it becomes an internal_error, logged


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
        StoreUnavailable: _store_unavailable,
        HTTPException: _http_error,
        RequestValidationError: _parameters,
    }
    for error, handler in handlers.items():
        app.add_exception_handler(error, handler)
