"""A file on its way in: its bytes are unpacked, counted and hashed as they pass, never gathered.

Knows no HTTP and no rows.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from api.problems import Problem

_GZIP = b"\x1f\x8b"
_PIECE = 1 << 16  # bytes unpacked at once


class Content:
    """The chunks of a file, once. `digest` is that of `about` and of the whole file.

    `about` is what else makes two uploads the same: a JSON value. `on_chunk` is called at each
    chunk, which may come slowly.
    """

    def __init__(self, chunks: Iterable[bytes], *, about: Any) -> None:
        canonical = json.dumps(about, sort_keys=True, separators=(",", ":"))
        self._hash = hashlib.sha256(canonical.encode() + b"\n")
        self._chunks = iter(chunks)
        self.on_chunk: Callable[[], None] = lambda: None

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self._hash.update(chunk)
            self.on_chunk()
            yield chunk

    def digest(self) -> str:
        """SHA-256, in hex. Reads what is left."""
        for _ in self:
            pass
        return self._hash.hexdigest()


def limited(chunks: Iterable[bytes], most: int) -> Iterator[bytes]:
    """Raises Problem `body_too_large` at the chunk that exceeds it."""
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > most:
            detail = f"The file is larger than {most} bytes, unpacked."
            raise Problem("body_too_large", detail, max_bytes=most)
        yield chunk


def unpacked(chunks: Iterable[bytes], *, gzip: bool = False) -> Iterator[bytes]:
    """The chunks without gzip, which is known by its first bytes; with `gzip` it must be there.

    Members may follow each other, and zeros the last. Raises Problem `malformed_gzip`.
    """
    chunks = iter(chunks)
    head = b""
    while len(head) < len(_GZIP) and (chunk := next(chunks, None)) is not None:
        head += chunk
    whole = chain((head,), chunks)
    return _inflate(whole) if gzip or head.startswith(_GZIP) else whole


def _inflate(chunks: Iterator[bytes]) -> Iterator[bytes]:
    member = None  # that is being unpacked
    ended = False  # at least one
    left = b""  # the beginning of a next member, perhaps
    for chunk in chunks:
        data = left + chunk
        left = b""
        while data:
            if member is None:
                data = data.lstrip(b"\0") if ended else data
                if len(data) < len(_GZIP):
                    left, data = data, b""
                    continue
                if not data.startswith(_GZIP):
                    raise _malformed("it does not begin as gzip does")
                member = zlib.decompressobj(zlib.MAX_WBITS | 16)
            try:
                piece = member.decompress(data, _PIECE)
            except zlib.error:
                raise _malformed("it is damaged") from None
            if piece:
                yield piece
            data = member.unconsumed_tail
            if member.eof:
                data, member, ended = member.unused_data, None, True
    while member and not member.eof:  # what it still holds back
        if not (piece := member.decompress(member.unconsumed_tail, _PIECE)):
            raise _malformed("it ends too early")
        yield piece
    if left or not (ended or member):
        raise _malformed("it ends too early")


def _malformed(why: str) -> Problem:
    return Problem("malformed_gzip", f"The file is no valid gzip: {why}.")
