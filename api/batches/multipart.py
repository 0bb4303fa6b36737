"""`multipart/form-data` as a stream: parts one after the other, each in chunks.

Knows no batches: what the parts mean is for the routes.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from api.problems import Problem

MAX_FIELD_BYTES = 1 << 16
_MOST_PARTS = 100

# What it warns of is what clients send; they are told.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


class Part(NamedTuple):
    name: str
    filename: str | None
    content_type: str  # empty if it does not say
    chunks: Iterator[bytes]  # to be read before the next part

    def text(self) -> str:
        """A field's value. Raises Problem `malformed_multipart`."""
        value = bytearray()
        for chunk in self.chunks:
            value += chunk
            if len(value) > MAX_FIELD_BYTES:
                raise malformed(f"the field {self.name[:64]!r} is longer than {MAX_FIELD_BYTES}")
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise malformed(f"the field {self.name[:64]!r} is not UTF-8") from None


def parts(chunks: Iterable[bytes], content_type: str) -> Iterator[Part]:
    """The parts of a form, in order. What of a part was not read is skipped.

    Raises Problem `malformed_multipart`, also if the form does not come to its end.
    """
    form = _Form(chunks, content_type)
    for _ in range(_MOST_PARTS):
        if (part := form.next_part()) is None:
            return
        yield part
        for _ in part.chunks:
            pass
    raise malformed(f"it has more than {_MOST_PARTS} parts")


def malformed(why: str) -> Problem:
    return Problem("malformed_multipart", f"The form cannot be read: {why}.")


class _Form:
    """Feeds the parser, and keeps what it found until that is asked for."""

    def __init__(self, chunks: Iterable[bytes], content_type: str) -> None:
        _, parameters = parse_options_header(content_type)
        if not (boundary := parameters.get(b"boundary")):
            raise malformed("its Content-Type names no boundary")
        self._chunks = iter(chunks)
        self._found: deque[dict[str, bytes] | bytes | None] = deque()  # headers, data, end of part
        self._ended = False
        self._headers: dict[str, bytes] = {}
        self._name = self._value = b""
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_header_field": self._on_name,
                    "on_header_value": self._on_value,
                    "on_header_end": self._on_header,
                    "on_headers_finished": self._on_headers,
                    "on_part_data": self._on_data,
                    "on_part_end": lambda: self._found.append(None),
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise malformed(str(error)) from None

    def next_part(self) -> Part | None:
        """None after the last."""
        while not self._found:
            if not self._read():
                return None
        headers = self._found.popleft()
        assert isinstance(headers, dict)  # noqa: S101 - the parser's order
        disposition, parameters = parse_options_header(headers.get("content-disposition"))
        if disposition != b"form-data" or b"name" not in parameters:
            raise malformed("a part has no name")
        filename = parameters.get(b"filename")
        return Part(
            parameters[b"name"].decode(errors="replace"),
            None if filename is None else filename.decode(errors="replace"),
            headers.get("content-type", b"").decode("latin-1"),
            self._data(),
        )

    def _data(self) -> Iterator[bytes]:
        while True:
            while self._found:
                data = self._found.popleft()
                if not isinstance(data, bytes):
                    return
                yield data
            self._read()

    def _read(self) -> bool:
        """Parses the next chunk; False if there is none, and the form is complete."""
        chunk = next(self._chunks, None)
        if chunk is None:
            if not self._ended:
                raise malformed("it ends too early")
            return False
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise malformed(str(error)) from None
        return True

    def _on_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header(self) -> None:
        self._headers[self._name.decode("latin-1").lower()] = self._value
        self._name = self._value = b""

    def _on_headers(self) -> None:
        self._found.append(self._headers)
        self._headers = {}

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self._found.append(data[start:end])

    def _on_end(self) -> None:
        self._ended = True
