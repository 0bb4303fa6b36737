"""Around every request: its id, its line in the log, headers that keep browsers from harm, and an
answer when something broke.

Pure ASGI, so that streamed responses pass through untouched. Knows no route.
"""

from __future__ import annotations

import logging
import re
import time
from urllib.parse import quote
from uuid import uuid4

from anyio import BrokenResourceError
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.openai.errors import respond
from api.problems import PROBLEMS, Problem

HEADER = "X-Request-Id"
_SANE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SAFE = [
    (b"cache-control", b"no-store"),  # prompts and texts are nobody else's business
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
]

log = logging.getLogger(__name__)


def _is_gone(error: Exception) -> bool:
    """Whether only the client's going away raised it; the framework wraps that in groups."""
    if isinstance(error, ExceptionGroup):
        return all(_is_gone(part) for part in error.exceptions)
    return isinstance(error, ClientDisconnect | BrokenResourceError)


class RequestContext:
    """Gives `request.state.request_id` to handlers, and `X-Request-Id` to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if _SANE.fullmatch(given) else uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name for name, _ in message["headers"]}  # a route may have said otherwise
                message["headers"] = [
                    *message["headers"],
                    *(header for header in _SAFE if header[0] not in given),
                    (HEADER.lower().encode(), request_id.encode()),
                ]
            await send(message)

        # Quoted: a path may hold line breaks, and a log line must be one line.
        what = f"{scope['method']} {quote(scope['path'])}"
        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            if _is_gone(error):
                status = 499  # as nginx logs it; nobody is left to answer
                return
            log.exception("%s failed", what, extra={"request_id": request_id})
            if status:  # too late for an answer: let the server break the connection off
                raise
            failure = Problem("internal_error", PROBLEMS["internal_error"].example)
            await respond(scope, failure)(scope, receive, send_with_id)
        finally:
            # Clients poll and submit in bulk; that must not drown the rest.
            level = logging.DEBUG if 200 <= status < 400 else logging.INFO
            took = (time.perf_counter() - started) * 1000
            extra = {"request_id": request_id, "status": status, "took_ms": round(took, 1)}
            log.log(level, "%s %d %.1f ms", what, status, took, extra=extra)
