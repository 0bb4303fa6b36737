"""Where prompts come from: a file, bytes, a pipe. Knows nothing of what is in them."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO

from slm_client.errors import BadInput

_CHUNK = 1 << 18  # bytes
_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"

Progress = Callable[[int, int], None]  # bytes so far, of how many


class Format(StrEnum):
    TXT = "txt"
    CSV = "csv"
    JSONL = "jsonl"

    @property
    def media_type(self) -> str:
        return {"txt": "text/plain", "csv": "text/csv", "jsonl": "application/jsonl"}[self]


class Source:
    """Bytes from where `file` stands to its end, which can be read again and again."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._start = file.tell()
        self.size = file.seek(0, os.SEEK_END) - self._start

    def chunks(self, on_progress: Progress | None = None) -> Iterator[bytes]:
        """All of it. Raises BadInput if it has become shorter; what has grown is not seen."""
        self._file.seek(self._start)
        left = self.size
        while left:
            chunk = self._file.read(min(_CHUNK, left))
            if not chunk:
                raise BadInput("the prompts changed while they were read; start again")
            yield chunk
            left -= len(chunk)
            if on_progress:
                on_progress(self.size - left, self.size)

    def digest(self) -> str:
        """SHA-256, in hex."""
        digest = hashlib.sha256()
        for chunk in self.chunks():
            digest.update(chunk)
        return digest.hexdigest()

    def guess(self) -> Format:
        """JSONL if it begins with `{`, else text; unpacked where it is packed."""
        self._file.seek(self._start)
        head = self._file.read(_CHUNK)
        if head.startswith(_GZIP):
            try:
                head = gzip.GzipFile(fileobj=io.BytesIO(head)).read(64)
            except (EOFError, OSError):
                head = b""  # the service says what is wrong with it
        return Format.JSONL if head.removeprefix(_BOM).lstrip().startswith(b"{") else Format.TXT


@contextmanager
def named(name: str, format: Format | None = None) -> Iterator[tuple[Source, Format]]:  # noqa: A002
    """The file of that name, or standard input for `-`, and its format: the one given, or what its
    name or, for a pipe, its beginning says. Raises BadInput."""
    path = Path(name)
    is_pipe = name == "-" or (path.exists() and not (path.is_file() or path.is_dir()))
    known = format or format_of(name)
    if known is None and not is_pipe:
        raise BadInput(
            f"{name}: prompts come from a .txt, .csv or .jsonl file, or one of these with .gz; "
            "--format says what another file holds."
        )
    with opened(sys.stdin.buffer if name == "-" else path) as source:
        yield source, known or source.guess()


def format_of(name: str) -> Format | None:
    """By its ending, before `.gz`; None if that says nothing."""
    ending = Path(name.lower().removesuffix(".gz")).suffix[1:]
    return Format(ending) if ending in list(Format) else None


@contextmanager
def opened(source: Source | Path | IO[bytes] | bytes) -> Iterator[Source]:
    """A pipe is read to its end first, into a temporary file. Raises BadInput."""
    if isinstance(source, Source):
        yield source
    elif isinstance(source, bytes):
        yield Source(io.BytesIO(source))
    elif isinstance(source, Path):
        try:
            file = source.open("rb")
        except OSError as error:
            raise BadInput(f"cannot read {source}: {error.strerror}") from None
        with file, opened(file) as content:
            yield content
    elif source.seekable():
        yield Source(source)
    else:
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(source, copy, _CHUNK)
            copy.seek(0)
            yield Source(copy)
