"""Refuses names that are not ours: a page elsewhere could point a name of its own at this address,
and so speak to the api through its visitors' browsers (DNS rebinding)."""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.addresses import route_path
from api.openai.errors import respond
from api.problems import Problem

_PORT = re.compile(r":\d*$")
_PROBES = ("/healthz", "/readyz")  # tell nothing, and are asked by address


class HostCheck:
    def __init__(self, app: ASGIApp, allowed: str) -> None:
        """`allowed`: names with commas between them, without ports; `*` for any."""
        self._app = app
        self._allowed = {name.strip().lower() for name in allowed.split(",")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not ("*" in self._allowed or route_path(scope) in _PROBES):
            host = Headers(scope=scope).get("host", "")
            if _PORT.sub("", host).lower() not in self._allowed:
                detail = (
                    f"This service is not called {host[:64]!r}; SLM_ALLOWED_HOSTS lists its names."
                )
                response = respond(scope, Problem("unknown_host", detail))
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)
