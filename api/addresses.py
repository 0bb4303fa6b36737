"""The address of a request, as routes and as callers have it."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import Scope


def route_path(scope: Scope) -> str:
    """The path without the prefix under which a proxy has put the service (`root_path`)."""
    path, prefix = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path[len(prefix) :] if path.startswith(f"{prefix}/") else path


def absolute(request: Request, path: str) -> str:
    """The URL of a path of ours, under the name by which the request's caller reached us."""
    return str(request.base_url).rstrip("/") + path
