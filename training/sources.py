"""Documents out of text files: `.txt`, `.jsonl` and `.csv`, each also as `.gz`.

Files are streamed: one document is in memory at a time. Knows nothing of tokens.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO

from slm_core.tokenizer import END_OF_TEXT
from training.files import SourceError, ending, wrong_ending

BLANK_LINES, WHOLE_FILE = "blank", "file"
_LONGEST = 1 << 24  # bytes of a document, so that memory stays flat whatever the file is
_LONGEST_SAID = f"longer than {_LONGEST >> 20} MiB"
_LONGEST_GAP = 100_000  # tiktoken dies of a million
_GAP = re.compile(rf"\s{{{_LONGEST_GAP}}}")
_NAMED = 5  # places of bad input that are named; the rest is counted
_UTF8_MARK = b"\xef\xbb\xbf"
_WRONG_BEGINNINGS = {
    b"\xff\xfe": "the file is UTF-16: save it as UTF-8",
    b"\xfe\xff": "the file is UTF-16: save it as UTF-8",
    b"\x1f\x8b": "the file is packed with gzip: give it a name that ends in .gz",
}
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)
_JSON_TYPES = {dict: "an object", list: "an array", bool: "a boolean", type(None): "null"}


@dataclass(frozen=True)
class TextFormat:
    """How files are read.

    Attributes:
        separator: the line that ends a document of a `.txt` file; `blank`: any number of blank
            lines do; `file`: the file is one document. None: `<|endoftext|>` where the file has
            such a line, else `blank`.
        text_field: the column of a `.csv`, or the key of the objects of a `.jsonl`.
        skip_bad: leave out, and count, what cannot be read, instead of refusing it.
    """

    separator: str | None = None
    text_field: str = "text"
    skip_bad: bool = False


def read_documents(path: Path) -> Iterator[str]:
    """The documents of a file in the usual format, stripped. Raises SourceError."""
    return Reader().documents(path)


class Reader:
    """Yields documents, and counts what it left out.

    Attributes:
        empty: documents without text.
        bad: places that could not be read; only ever above 0 with `skip_bad`.
    """

    def __init__(self, text_format: TextFormat | None = None) -> None:
        self._format = text_format or TextFormat()
        self._raw: IO[bytes] | None = None
        self._line = 0
        self._complaints: list[str] = []
        self._marked = _Places()
        self._by_paragraph = _Places()
        self.empty = self.bad = 0

    @property
    def position(self) -> int:
        """Bytes of the file that is open that were read, as they are on the disk."""
        return self._raw.tell() if self._raw and not self._raw.closed else 0

    def documents(self, path: Path) -> Iterator[str]:
        """Every document with text, stripped, that can be tokenized.

        Raises SourceError at the first place that cannot be read, unless such are skipped.
        """
        readers = {".txt": self._txt, ".jsonl": self._jsonl, ".csv": self._csv}
        if (kind := ending(path)) not in readers:
            raise SourceError(wrong_ending(path))
        self._line, any_at_all, bad_before = 0, False, self.bad
        try:
            for line, text in readers[kind](path):
                document = text.strip()
                if not document:
                    self.empty += 1
                elif why := _cannot_be_tokenized(document):
                    self._refuse(path, line, why)
                else:
                    any_at_all = True
                    if END_OF_TEXT in document:
                        self._marked.add(f"{path}, line {line}")
                    yield document
        except _DAMAGED as error:
            what = "gzip data that is damaged, or cut off, after this line"
            self._refuse(path, self._line, f"{what if self._line else 'no gzip data'}: {error}")
        except OSError as error:
            raise SourceError(f"cannot read {path}: {error.strerror or error}") from None
        if not any_at_all and self.bad == bad_before:
            self._refuse(path, 0, "holds no document")

    def notes(self) -> list[str]:
        """What a person should know of what was read so far, a line each."""
        notes = [f"{self.bad} places could not be read:"] if self.bad else []
        notes += self._complaints
        notes += ["and more"] if self.bad > len(self._complaints) else []
        if self._by_paragraph.count:
            notes.append(
                f"{self._by_paragraph} no line {END_OF_TEXT}: there every paragraph is a document; "
                "see --separator"
            )
        if self._marked.count:
            notes.append(
                f"{self._marked} {END_OF_TEXT} within a text, where it is text like any "
                "other: only a line of its own in a .txt file ends a document"
            )
        return notes

    def _txt(self, path: Path) -> Iterator[tuple[int, str]]:
        separator = self._format.separator
        if separator is None:
            separator = self._usual_separator(path)
        mark = {WHOLE_FILE: None, BLANK_LINES: b""}.get(separator, separator.strip().encode())
        lines: list[str] = []
        begin, size, good = 1, 0, True
        for line, content in self._lines(path):
            if content.strip() == mark:
                if good and (lines or mark):
                    yield begin, "".join(lines)
                lines, begin, size, good = [], line + 1, 0, True
            elif good:
                size += len(content)
                try:
                    lines.append(content.decode())
                except UnicodeDecodeError as error:
                    self._refuse(path, line, _not_utf8(error))
                    lines, good = [], False
                if size > _LONGEST:
                    why = f"the document from here on is {_LONGEST_SAID}: see --separator"
                    self._refuse(path, begin, why)
                    lines, good = [], False
        if any(map(str.strip, lines)):
            yield begin, "".join(lines)

    def _usual_separator(self, path: Path) -> str:
        mark = END_OF_TEXT.encode()
        lines = Reader(TextFormat(skip_bad=True))._lines(path)
        with suppress(*_DAMAGED):  # which is told of when the documents are read
            if any(content.strip() == mark for _, content in lines):
                return END_OF_TEXT
        self._by_paragraph.add(str(path))
        return BLANK_LINES

    def _jsonl(self, path: Path) -> Iterator[tuple[int, str]]:
        for line, content in self._lines(path):
            if not content.strip():
                continue
            try:
                value = json.loads(content.rstrip().decode())
            except UnicodeDecodeError as error:
                self._refuse(path, line, _not_utf8(error))
            except json.JSONDecodeError as error:
                self._refuse(path, line, f"no JSON: {error.msg}, column {error.colno}")
            except (ValueError, RecursionError) as error:
                self._refuse(path, line, f"no JSON that can be read: {error}")
            else:
                what, field = "it", self._format.text_field
                if isinstance(value, dict):
                    what = f"field {field!r}"
                    if field not in value:
                        self._refuse(path, line, _lacks(what, value))
                        continue
                    value = value[field]
                if isinstance(value, str):
                    yield line, value
                else:
                    found = _JSON_TYPES.get(type(value), "a number")
                    self._refuse(path, line, f"{what} is {found}, not a string")

    def _csv(self, path: Path) -> Iterator[tuple[int, str]]:
        csv.field_size_limit(_LONGEST)
        lines = (content.decode(errors="surrogateescape") for _, content in self._lines(path))
        rows = csv.reader(lines, strict=True)
        header: list[str] = []
        while True:
            begin = rows.line_num + 1
            try:
                row = next(rows, None)
            except csv.Error as error:  # where the next row would begin is not known then
                self._refuse(path, begin, _bad_row(error))
                return
            if row is None:
                return
            if not row:
                continue
            if not header:
                header = row
                if self._format.text_field not in header:
                    self._refuse(path, begin, _lacks(f"column {self._format.text_field!r}", header))
                    return
            elif len(row) != len(header):
                why = f"{len(row)} columns where the first line has {len(header)}"
                self._refuse(path, begin, f"{why}: text with a comma in it needs quotes")
            else:
                yield begin, row[header.index(self._format.text_field)]

    def _lines(self, path: Path) -> Iterator[tuple[int, bytes]]:
        """Numbered lines, ending in `\\n`, without a byte order mark."""
        with path.open("rb") as raw:
            self._raw = raw
            file = gzip.GzipFile(fileobj=raw) if path.suffix.lower() == ".gz" else raw
            for number in count(1):
                line = file.readline(_LONGEST + 1)
                if not line:
                    return
                self._line = number
                if number == 1:
                    for beginning, why in _WRONG_BEGINNINGS.items():
                        if line.startswith(beginning):
                            self._refuse(path, 0, why)
                            return
                    line = line.removeprefix(_UTF8_MARK)
                if len(line) > _LONGEST:
                    self._refuse(path, number, f"the line is {_LONGEST_SAID}")
                    return
                yield number, line[:-2] + b"\n" if line.endswith(b"\r\n") else line

    def _refuse(self, path: Path, line: int, why: str) -> None:
        place = f"{path}, line {line}: {why}" if line else f"{path}: {why}"
        if not self._format.skip_bad:
            raise SourceError(place)
        self.bad += 1
        if len(self._complaints) < _NAMED:
            self._complaints.append(place)


class _Places:
    """The first of some places, and how many they are."""

    def __init__(self) -> None:
        self._first = ""
        self.count = 0

    def add(self, place: str) -> None:
        self._first = self._first or place
        self.count += 1

    def __str__(self) -> str:
        """The beginning of a sentence about them."""
        more = f"and {self.count - 1} more have" if self.count > 1 else "has"
        return f"{self._first} {more}"


def _cannot_be_tokenized(text: str) -> str:
    """Why; empty if it can."""
    if len(text) > _LONGEST_GAP and _GAP.search(text):
        return f"{_LONGEST_GAP:,} spaces or line breaks one after another"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "half of a surrogate pair, or bytes that are no UTF-8"
    return ""


def _not_utf8(error: UnicodeDecodeError) -> str:
    return (
        f"not UTF-8: byte 0x{error.object[error.start]:02x} at byte {error.start + 1} of the line"
    )


def _lacks(what: str, there_are: Sequence[str] | dict[str, object]) -> str:
    names = ", ".join(map(repr, list(there_are)[:8])) or "none"
    return f"no {what}; there are {names}. --text-field names the one with the text"


def _bad_row(error: csv.Error) -> str:
    said = str(error)
    if "unexpected end of data" in said or "field limit" in said:
        said = f"a quote is opened and never closed, or its text is {_LONGEST_SAID}"
    return f"no CSV from here on: {said}"
