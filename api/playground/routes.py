"""Serves the page and its few files. Knows nothing of jobs, and asks for no key: the page does."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.problems import Problem

_FOLDER = Path(__file__).parent / "static"
_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript"}
_METHODS = ["GET", "HEAD"]
_POLICY = (  # only what comes from here runs and is asked; what a model says can do nothing
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class _File(NamedTuple):
    content: bytes
    headers: dict[str, str]


def router() -> APIRouter:
    routes = APIRouter(include_in_schema=False)
    files = {path.name: _read(path) for path in _FOLDER.iterdir() if path.suffix in _TYPES}

    @routes.api_route("/", methods=_METHODS)
    async def playground(request: Request) -> Response:
        return _answer(request, files["index.html"])

    @routes.api_route("/playground/{name}", methods=_METHODS)
    async def playground_file(name: str, request: Request) -> Response:
        if name not in files:
            raise Problem("not_found", f"Nothing is at /playground/{name[:64]}.")
        return _answer(request, files[name])

    return routes


def _read(path: Path) -> _File:
    content = path.read_bytes()
    return _File(
        content,
        {
            "Cache-Control": "no-cache",  # kept, but asked about each time: upgrades show at once
            "Content-Security-Policy": _POLICY,
            "Content-Type": f"{_TYPES[path.suffix]}; charset=utf-8",
            "ETag": f'"{sha256(content).hexdigest()[:32]}"',
        },
    )


def _answer(request: Request, file: _File) -> Response:
    """The file, or 304 to who has it. That says the policy again, since browsers take headers of a
    304 over into what they have kept."""
    known = request.headers.get("if-none-match", "")
    tags = {tag.strip().removeprefix("W/") for tag in known.split(",")}
    if file.headers["ETag"] in tags or known.strip() == "*":
        return Response(status_code=304, headers=file.headers)
    return Response(file.content, headers=file.headers)
