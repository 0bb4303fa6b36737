"""Around every request: its id, its line in the log, and an answer when something broke.

Pure ASGI, so that streamed responses pass through untouched. Knows no route.
"""

from __future__ import annotations

import logging
import re
import time
from urllib.parse import quote
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import PROBLEMS, Problem

HEADER = "X-Request-Id"
_SANE = re.compile(r"[A-Za-z0-9._-]{1,64}")

log = logging.getLogger(__name__)


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
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        # Quoted: a path may hold line breaks, and a log line must be one line.
        what = f"{scope['method']} {quote(scope['path'])}"
        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = 499  # as nginx logs it; nobody is left to answer
        except Exception:
            log.exception("%s failed (request %s)", what, request_id)
            if status:  # too late for an answer: let the server break the connection off
                raise
            failure = Problem("internal_error", PROBLEMS["internal_error"].example)
            await failure.response(request_id)(scope, receive, send_with_id)
        finally:
            # Clients poll and submit in bulk; that must not drown the rest.
            level = logging.DEBUG if 200 <= status < 400 else logging.INFO
            took = (time.perf_counter() - started) * 1000
            log.log(level, "%s %d %.1f ms (request %s)", what, status, took, request_id)
