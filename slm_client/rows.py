"""Prompts from a file, checked row by row before anything is submitted. Knows no HTTP."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slm_client.errors import BadInput


@dataclass(frozen=True, slots=True)
class Row:
    custom_id: str
    prompt: str


def read_rows(source: str) -> list[Row]:
    """All rows of a `.txt` or `.jsonl` file, or of standard input for `-`.

    Standard input is JSONL if it begins with `{`, else text. Raises BadInput, naming file and line.
    """
    if source == "-":
        data = sys.stdin.buffer.read()
        return parse("standard input", data, jsonl=data.lstrip().startswith(b"{"))
    path = Path(source)
    if path.suffix not in (".txt", ".jsonl"):
        raise BadInput(f"{source}: prompts come from a .txt or a .jsonl file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {source}: {error.strerror}") from None
    return parse(source, data, jsonl=path.suffix == ".jsonl")


def parse(name: str, data: bytes, *, jsonl: bool) -> list[Row]:
    """The rows of a file called `name`. A row's id is its own, or else its line number from 1."""
    rows: list[Row] = []
    line_of: dict[str, int] = {}
    for number, line in _lines(name, data):
        row = _json_row(line, f"{name}, line {number}", number) if jsonl else Row(str(number), line)
        if (first := line_of.setdefault(row.custom_id, number)) != number:
            raise BadInput(
                f"{name}, line {number}: custom_id {row.custom_id!r} is taken by line {first}"
            )
        rows.append(row)
    if not rows:
        raise BadInput(f"{name} has no prompts")
    return rows


def _lines(name: str, data: bytes) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, stripped, with their numbers from 1."""
    # Only \n ends a line: str.splitlines would also cut at U+2028 and others, inside a prompt.
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            line = raw.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise BadInput(f"{name}, line {number}: not UTF-8") from None
        if line:
            yield number, line


def _json_row(line: str, where: str, number: int) -> Row:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise BadInput(f"{where}: not JSON") from None
    if not isinstance(value, dict):
        raise BadInput(f'{where}: not an object like {{"prompt": "…"}}')
    # A field that we would silently ignore, such as max_tokens, must not look accepted.
    if unknown := sorted(value.keys() - {"prompt", "custom_id"}):
        raise BadInput(f"{where}: unknown field {unknown[0]!r}; a row has prompt and custom_id")
    prompt = _text(value.get("prompt"), f"{where}: prompt")
    return Row(_text(value.get("custom_id", str(number)), f"{where}: custom_id"), prompt)


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise BadInput(f"{what} must be a string that is not empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadInput(f"{what} holds half a character (a lone surrogate)") from None
    return value
