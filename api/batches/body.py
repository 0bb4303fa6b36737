"""The body of an upload, read from a thread as it comes, and what file is in it."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from pathlib import PurePath
from typing import NamedTuple

from anyio import from_thread
from starlette.requests import ClientDisconnect, Request

from api.batches.content import limited, unpacked
from api.batches.formats import Format
from api.batches.multipart import malformed, parts
from api.problems import Problem

LEAST_RATE = 16 << 10  # bytes a second
SLACK_SECONDS = 30.0

MEDIA_TYPES: dict[str, Format] = {
    "application/jsonl": "jsonl",
    "application/x-ndjson": "jsonl",
    "application/x-jsonlines": "jsonl",
    "text/plain": "txt",
    "text/csv": "csv",
}
MULTIPART = "multipart/form-data"
_EXTENSIONS: dict[str, Format] = {".jsonl": "jsonl", ".txt": "txt", ".csv": "csv"}
_CHARSET = re.compile(r";\s*charset\s*=\s*\"?([^\s;\"]*)", re.IGNORECASE)


class Body:
    """The chunks of a request's body, for a thread. Its sender may fall `SLACK_SECONDS` behind
    `LEAST_RATE`, whatever it sent before; time that passes here does not count."""

    def __init__(self, request: Request) -> None:
        self._stream = request.stream()
        self._slack = SLACK_SECONDS

    def __iter__(self) -> Iterator[bytes]:
        """Raises Problem `body_timeout`, and ClientDisconnect."""
        while True:
            try:
                chunk = from_thread.run(self._next)
            except RuntimeError:  # the server has stopped
                raise ClientDisconnect from None
            if chunk is None:
                return
            if chunk:
                yield chunk

    async def _next(self) -> bytes | None:
        asked = time.monotonic()
        try:
            async with asyncio.timeout(self._slack):
                chunk = await anext(self._stream, None)
        except TimeoutError:
            detail = (
                f"The body comes too slowly: it is {SLACK_SECONDS:g} s behind "
                f"{LEAST_RATE >> 10} KiB a second."
            )
            raise Problem("body_timeout", detail, headers={"Connection": "close"}) from None
        slack = self._slack - (time.monotonic() - asked) + len(chunk or b"") / LEAST_RATE
        self._slack = min(slack, SLACK_SECONDS)
        return chunk


class File(NamedTuple):
    form: Format
    chunks: Iterator[bytes]  # unpacked
    fields: list[tuple[str, str]]  # of the form that it came in


def file_of(body: Iterator[bytes], content_type: str, encoding: str, most: int) -> File:
    """The file in a body, of `most` bytes at most. Raises Problem, also while it is read."""
    encoding = encoding.strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip"):
        raise Problem(
            "unsupported_media_type",
            f"Send the body as it is, or with Content-Encoding gzip, not {encoding[:64]}.",
            headers={"Accept-Encoding": "gzip, identity"},
        )
    chunks = limited(body, most)
    if "gzip" in encoding:
        chunks = limited(unpacked(chunks, gzip=True), most)
    kind = _media_type(content_type)
    if kind != MULTIPART:
        form = MEDIA_TYPES.get(kind)
        if not form:
            raise _unsupported(content_type)
        return File(form, limited(unpacked(chunks), most), [])
    fields = []
    form_parts = parts(chunks, content_type)
    for part in form_parts:
        if part.name != "file":
            fields.append((part.name, part.text()))
            continue
        form = MEDIA_TYPES.get(_media_type(part.content_type)) or _by_name(part.filename or "")
        if not form:
            raise _unsupported(f"a file {part.filename or ''!r} of type {part.content_type!r}")
        rest = limited(unpacked(part.chunks), most)
        return File(form, _last(rest, form_parts), fields)
    raise malformed("it has no part named file")


def _last(chunks: Iterator[bytes], form_parts: Iterator[object]) -> Iterator[bytes]:
    yield from chunks
    if next(form_parts, None):
        raise malformed("fields must come before the file")


def _media_type(content_type: str) -> str:
    """Raises Problem if its text is in another encoding than UTF-8."""
    charset = _CHARSET.search(content_type)
    if charset and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise Problem("unsupported_media_type", f"Send UTF-8, not {charset[1][:64]}.")
    return content_type.partition(";")[0].strip().lower()


def _by_name(filename: str) -> Format | None:
    path = PurePath(filename.lower())
    if path.suffix == ".gz":
        path = path.with_suffix("")
    return _EXTENSIONS.get(path.suffix)


def _unsupported(given: str) -> Problem:
    accepted = ["application/json", *MEDIA_TYPES, MULTIPART]
    shown = f"not {given[:200]}" if given else "and say so in Content-Type"
    detail = f"Send {', '.join(accepted)}, {shown}."
    return Problem("unsupported_media_type", detail, headers={"Accept": ", ".join(accepted)})
