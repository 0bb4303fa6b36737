"""From the bytes of a file to its records. Flat in memory: no line is longer than 1 MiB.

Knows no model: `rows` says what a record asks for.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from api.problems import Problem
from slm_jobs.batch_schemas import RowProblem

MAX_LINE_BYTES = 1 << 20
MOST_BLANK_LINES = 1_000_000  # gzip makes them cheap to send, but they take time to read
_BOM = b"\xef\xbb\xbf"  # Windows tools like to write one

Format = Literal["jsonl", "txt", "csv"]


class JsonLine(NamedTuple):
    """A JSON value, not parsed yet."""

    line: int  # from 1
    raw: bytes


class TextLine(NamedTuple):
    line: int
    text: str


class Cells(NamedTuple):
    """A line of a table, or several where a cell holds line breaks."""

    line: int  # the first
    cells: dict[str, str]  # by column


class Columns(NamedTuple):
    """Of a table."""

    needed: tuple[str, ...]
    possible: tuple[str, ...]  # besides


Record = JsonLine | TextLine | Cells | RowProblem


def json_lines(chunks: Iterable[bytes]) -> Iterator[Record]:
    """A record a line, but for blank ones; a RowProblem for what is none."""
    for line, raw in _lines(chunks):
        if raw is None:
            yield _too_large(line)
        elif raw and not raw.isspace():
            yield JsonLine(line, raw)


def text_lines(chunks: Iterable[bytes]) -> Iterator[Record]:
    """A record a line, but for blank ones; a RowProblem for what is none."""
    for line, raw in _lines(chunks):
        if raw is None:
            yield _too_large(line)
            continue
        try:
            text = raw.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            yield _not_utf8(line, error)
            continue
        if text.strip():
            yield TextLine(line, text)


def _lines(chunks: Iterable[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Lines with their ends, from 1; None for one that is too long, whose bytes are dropped.

    Raises Problem `body_too_large` for too many blank ones.
    """
    number, parts, size, blank = 1, list[bytes](), 0, 0
    for chunk in chunks:
        first, *more = chunk.split(b"\n")
        for part in more:
            line = _line(number, parts, size, first + b"\n")
            blank += line is not None and line.isspace()
            if blank > MOST_BLANK_LINES:
                detail = f"The file has more than {MOST_BLANK_LINES} blank lines."
                raise Problem("body_too_large", detail)
            yield number, line
            number, parts, size = number + 1, [], 0
            first = part
        size += len(first)
        if size > MAX_LINE_BYTES:
            parts = []
        elif first:
            parts.append(first)
    if size:
        yield number, _line(number, parts, size, b"")


def _line(number: int, parts: list[bytes], size: int, last: bytes) -> bytes | None:
    if size + len(last) > MAX_LINE_BYTES:
        return None
    line = b"".join((*parts, last)) if parts else last
    return line.removeprefix(_BOM) if number == 1 else line


def _too_large(line: int) -> RowProblem:
    message = f"The line is longer than {MAX_LINE_BYTES} bytes"
    return RowProblem(line=line, code="row_too_large", message=message)


def _not_utf8(line: int, error: UnicodeDecodeError) -> RowProblem:
    message = f"Byte {error.start} is not UTF-8"
    return RowProblem(line=line, code="not_utf8", message=message)


# Tables


def table(chunks: Iterable[bytes], columns: Columns) -> Iterator[Record]:
    """A record for each but the first, which names the columns; a RowProblem for what is none.

    Raises Problem `invalid_rows` if the header is wrong.
    """
    feed = _Feed(chunks)
    rows = _rows(feed)
    header: list[str] = []
    for line, found in rows:
        if isinstance(found, RowProblem):
            raise _bad_header(line, found.code, found.message)
        header = [name.strip() for name in found]
        _check_header(line, header, columns)
        break
    for line, found in rows:
        if isinstance(found, RowProblem):
            yield found
        elif len(found) != len(header):
            message = f"It has {len(found)} cells, the header {len(header)}"
            yield RowProblem(line=line, code="invalid_row", message=message)
        else:
            yield Cells(line, dict(zip(header, found, strict=True)))


class _BadRecord(Exception):
    def __init__(self, problem: RowProblem) -> None:
        self.problem = problem


class _Feed:
    """Gives a csv reader its lines, and counts them. What is wrong with one ends its record."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._lines = _lines(chunks)
        self.line = 0
        self._size = 0  # of the record so far
        self._first = 1  # line of the record

    def begin(self) -> int:
        """The line at which the next record begins."""
        self._size = 0
        self._first = self.line + 1
        return self._first

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.line, raw = next(self._lines)
        self._size += len(raw or b"")
        if raw is None or self._size > MAX_LINE_BYTES:
            raise _BadRecord(_too_large(self._first))
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise _BadRecord(_not_utf8(self.line, error)) from None


def _rows(feed: _Feed) -> Iterator[tuple[int, list[str] | RowProblem]]:
    reader = csv.reader(feed, strict=True)
    while True:
        line = feed.begin()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except _BadRecord as bad:
            yield line, bad.problem
        except csv.Error as error:
            message = f"It is no CSV: {error}"
            yield line, RowProblem(line=line, code="invalid_row", message=message)
        else:
            if cells:
                yield line, cells


def _check_header(line: int, header: list[str], columns: Columns) -> None:
    known = (*columns.needed, *columns.possible)
    message = ""
    if unknown := [name for name in header if name not in known]:
        message = f"No column {unknown[0][:64]!r} is known; there may be: {', '.join(known)}"
    elif missing := [name for name in columns.needed if name not in header]:
        message = f"The column {missing[0]!r} is missing"
    elif len(set(header)) < len(header):
        message = "A column is there twice"
    if message:
        raise _bad_header(line, "invalid_row", message)


def _bad_header(line: int, code: str, message: str) -> Problem:
    row = RowProblem(line=line, code=code, message=message)
    detail = f"1 row is invalid. Line {line}: {message}."
    return Problem("invalid_rows", detail, invalid=1, rows=[row.model_dump()])
