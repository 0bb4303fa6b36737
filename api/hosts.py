"""Refuses names that are not ours: a page elsewhere could point a name of its own at this address,
and so speak to the api through its visitors' browsers (DNS rebinding)."""

from __future__ import annotations

import re
from contextlib import suppress
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.addresses import route_path
from api.openai.errors import respond
from api.problems import Problem

_PORT = re.compile(r":\d*$")
_PROBES = ("/healthz", "/readyz")  # tell nothing, and are asked by address
_METRICS = "/metrics"


class HostCheck:
    def __init__(self, app: ASGIApp, allowed: str) -> None:
        """`allowed`: names with commas between them, without ports; `*` for any."""
        self._app = app
        self._allowed = {name.strip().lower() for name in allowed.split(",")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host", "") if scope["type"] == "http" else ""
        if scope["type"] != "http" or self._is_ours(route_path(scope), _PORT.sub("", host).lower()):
            await self._app(scope, receive, send)
            return
        detail = f"This service is not called {host[:64]!r}; SLM_ALLOWED_HOSTS lists its names."
        await respond(scope, Problem("unknown_host", detail))(scope, receive, send)

    def _is_ours(self, path: str, name: str) -> bool:
        """Prometheus asks by address, as Kubernetes' probes do. That is safe to answer: the trick
        works with a name only, as a browser tells by whose page it was sent."""
        return (
            bool({"*", name} & self._allowed)
            or path in _PROBES
            or (path == _METRICS and _is_address(name))
        )


def _is_address(name: str) -> bool:
    with suppress(ValueError):
        return bool(ip_address(name.removeprefix("[").removesuffix("]")))
    return False
