"""Where results go: lines of JSON, a table, a folder of stories. Knows no HTTP, no screen."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol, TextIO

from slm_client.batch import Result
from slm_client.errors import BadInput

_COLUMNS = (
    *("custom_id", "prompt", "text", "finish_reason", "tokens", "seq"),
    *("index", "error"),
)
_ERRORS = "errors.jsonl"  # in a folder
_STATE = ".batch"  # after a file's name, or in a folder
_LONGEST_NAME = 200  # bytes; file systems allow 255, and there is more to come
_BEYOND_LETTERS = "-_. "  # and digits, in names
_NOT_AT_THE_ENDS = "-. "


class Writer(Protocol):
    def write(self, result: Result) -> None:
        """At once, and all of it. Raises BadInput, or BrokenPipeError if nobody reads on."""


class Output:
    """What `-o` names: `-`, a `.jsonl` or `.csv` file, or a folder.

    `state_file` is where to note which batch fills it; None where nothing can be kept.
    """

    def __init__(self, name: str) -> None:
        """Raises BadInput if no results can go there; writes nothing."""
        self.name = name
        self.path = Path(name)
        self.is_stdout = name == "-"
        # A device or a pipe; a new file's kind is in its name.
        self._is_stream = self.path.exists() and not (self.path.is_file() or self.path.is_dir())
        self.is_folder = not self.is_stdout and (name.endswith("/") or self.path.is_dir())
        self.state_file: Path | None = None
        if self.is_folder:
            self.state_file = self.path / _STATE
        elif not (self.is_stdout or self._is_stream):
            self.state_file = self.path.with_name(self.path.name + _STATE)
            if self.path.suffix not in (".jsonl", ".csv"):
                raise BadInput(f"{name}: results go to a .jsonl or .csv file, a folder/, or -")
        if self.state_file:
            self._check_writable()

    def is_empty(self) -> bool:
        """Whether writing to it would lose nothing."""
        if self.is_folder:
            return not self.path.exists() or all(e.name == _STATE for e in self.path.iterdir())
        return self.state_file is None or not self.path.exists() or not self.path.stat().st_size

    @contextmanager
    def opened(self) -> Iterator[Writer]:
        """Emptied; a folder keeps what has other names. Raises BadInput if it cannot be written,
        or another process writes it."""
        if self.is_stdout:
            yield _Lines(sys.stdout, self.name)
        elif self._is_stream:
            with _open(self.path, "w") as stream:
                yield _Lines(stream, self.name)
        elif self.is_folder:
            with _written(self.path / _ERRORS) as errors:
                yield _Folder(self.path, _Lines(errors, str(self.path / _ERRORS)))
            if not (self.path / _ERRORS).stat().st_size:
                (self.path / _ERRORS).unlink()
        else:
            with _written(self.path) as file:
                kind = _Table if self.path.suffix == ".csv" else _Lines
                yield kind(file, self.name)

    def _check_writable(self) -> None:
        try:
            if self.is_folder:
                self.path.mkdir(exist_ok=True)
            folder = self.path if self.is_folder else self.path.parent
            os.listdir(folder)  # noqa: PTH208 - there, and a folder
            if not os.access(folder, os.W_OK) or (
                self.path.is_file() and not os.access(self.path, os.W_OK)
            ):
                raise PermissionError(13, "Permission denied")
        except OSError as error:
            raise BadInput(f"cannot write {self.name}: {error.strerror}") from None


class _Lines:
    """Results as the service sends them."""

    def __init__(self, file: TextIO, name: str) -> None:
        self._file = file
        self._name = name

    def write(self, result: Result) -> None:
        _write(self._file, json.dumps(result.raw, ensure_ascii=False) + "\n", self._name)


class _Table:
    """A line for each output; a row's tokens are counted in the line of its first."""

    def __init__(self, file: TextIO, name: str) -> None:
        self._file = file
        self._name = name
        self._line(_COLUMNS)

    def write(self, result: Result) -> None:
        error = result.error and f"{result.error.code}: {result.error.message}"
        tokens = result.usage and result.usage.completion_tokens
        head = (result.custom_id, result.prompt)
        if not result.outputs:
            self._line((*head, "", "", tokens, result.seq, 0, error))
        for place, output in enumerate(result.outputs):
            said = (output.text, output.finish_reason, None if place else tokens)
            self._line((*head, *said, result.seq, output.index, error))

    def _line(self, cells: tuple[object, ...]) -> None:
        text = _Text()
        csv.writer(text).writerow(cells)
        _write(self._file, text.line, self._name)


class _Text:
    """Takes the one line that csv writes, so that it goes out in one piece."""

    line = ""

    def write(self, line: str) -> None:
        self.line = line


class _Folder:
    """A file for each story; rows that did not succeed go to `errors`."""

    def __init__(self, path: Path, errors: _Lines) -> None:
        self._path = path
        self._errors = errors
        self._taken: set[str] = set()

    def write(self, result: Result) -> None:
        if result.error:
            self._errors.write(result)
            return
        for output in result.outputs:
            several = f"-{output.index}" if len(result.outputs) > 1 else ""
            path = self._path / f"{self._name(result.custom_id + several)}.txt"
            with _open(path, "w") as file:
                _write(file, f"{result.prompt}{output.text}\n", str(path))

    def _name(self, wanted: str) -> str:
        """As a file name: safe everywhere, and no other's, also where case does not count."""
        mark = hashlib.sha256(wanted.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        name = _safe(wanted)
        if name != wanted:
            name = f"{name}-{mark}"
        while _folded(name) in self._taken:
            name = f"{name}-{mark}"
        self._taken.add(_folded(name))
        return name


def _safe(text: str) -> str:
    letters = (letter if letter.isalnum() or letter in _BEYOND_LETTERS else "_" for letter in text)
    cut = "".join(letters).strip(_NOT_AT_THE_ENDS).encode()[:_LONGEST_NAME].decode(errors="ignore")
    return cut.strip(_NOT_AT_THE_ENDS) or "_"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


@contextmanager
def _written(path: Path) -> Iterator[TextIO]:
    """Locked, then emptied."""
    with _open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadInput(f"another process writes {path}; wait for it, or stop it.") from None
        file.truncate(0)
        yield file


@contextmanager
def _open(path: Path, mode: Literal["w", "a"]) -> Iterator[TextIO]:
    try:
        with path.open(mode, encoding="utf-8", newline="") as file:
            yield file
    except BrokenPipeError:
        raise
    except OSError as error:  # also from closing it, which tries to write what is left
        raise BadInput(f"cannot write {path}: {error.strerror}") from None


def _write(file: TextIO, text: str, name: str) -> None:
    try:
        file.write(text)
        file.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise BadInput(f"cannot write {name}: {error.strerror}") from None
