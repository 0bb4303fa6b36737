"""Whether an answer looks as a page shows it: what its fields are, not its texts and numbers.

In what a page shows as `text`, and at the end of `http` and JSON lines, `…` stands for anything,
on a line of its own also for no line.
"""

from __future__ import annotations

import json
import re
from typing import Any

# What is the same in every run.
_FIXED = {"code", "model", "object", "status", "title", "type"}
# What may be there or not, by how fast it went.
_BY_SPEED = {
    "estimated_seconds",
    "estimated_wait_seconds",
    "rows_per_second",
    "started_at",
    "tokens_per_second",
}


class Mismatch(AssertionError):
    """What is shown is not what came."""


class Shapes:
    """Compares, and learns: an id that a page shows is from then on the one that came."""

    def __init__(self) -> None:
        self.ids: dict[str, str] = {}

    def compare(self, language: str, shown: str, real: str) -> None:
        """Raises Mismatch."""
        if language == "json":
            self._compare_json(shown, real)
        elif language == "http":
            self._compare_http(shown, real)
        else:
            self._compare_text(shown, real)

    def _compare_text(self, shown: str, real: str) -> None:
        pattern = "".join(
            r"(?:.*\n)?" if line == "…" else ".*".join(map(re.escape, line.split("…"))) + r"\n"
            for line in _without_space(self.translate(shown)).splitlines()
        )
        if not re.fullmatch(pattern, _without_space(real) + "\n", re.DOTALL):
            raise Mismatch(f"shown:\n{shown}\ncame:\n{real}")

    def _compare_http(self, shown: str, real: str) -> None:
        """The first line, the headers that are shown, and a JSON body."""
        shown_head, _, shown_body = shown.partition("\n\n")
        real_head, _, real_body = real.replace("\r", "").partition("\n\n")
        shown_first, *shown_headers = shown_head.splitlines()
        real_first, *real_headers = real_head.splitlines()
        if shown_first.split()[:2] != real_first.split()[:2]:
            raise Mismatch(f"shown: {shown_first}; came: {real_head}")
        names = {line.partition(":")[0].lower() for line in real_headers}
        for line in shown_headers:
            if line != "…" and line.partition(":")[0].lower() not in names:
                raise Mismatch(f"shown: {line}; came: {real_head}")
        if shown_body:
            self._compare_json(shown_body, real_body)

    def _compare_json(self, shown: str, real: str) -> None:
        cut = shown.rstrip().endswith("\n…")
        wanted, came = documents(shown.rstrip().removesuffix("…")), documents(real)
        if not (len(wanted) == len(came) or (cut and len(wanted) < len(came))):
            raise Mismatch(f"{len(wanted)} documents are shown; came:\n{real}")
        for one, other in zip(wanted, came, strict=False):
            self._same(one, other, "$")

    def _same(self, shown: Any, real: Any, place: str) -> None:
        name = place.rpartition(".")[2].partition("[")[0]
        if name in _BY_SPEED and (shown is None or real is None):
            return
        if _kind(shown) is not _kind(real):
            raise Mismatch(f"{place}: shown: {shown!r}; came: {real!r}")
        if isinstance(shown, dict):
            if shown.keys() != real.keys():
                raise Mismatch(f"{place}: shown: {[*shown]}; came: {[*real]}")
            for key in shown:
                self._same(shown[key], real[key], f"{place}.{key}")
        elif isinstance(shown, list):
            if bool(shown) is not bool(real):
                raise Mismatch(f"{place}: shown: {shown}; came: {real}")
            for index, (one, other) in enumerate(zip(shown, real, strict=False)):
                self._same(one, other, f"{place}[{index}]")
        elif isinstance(shown, str) and shown != real:
            if name in _FIXED:
                raise Mismatch(f"{place}: shown: {shown!r}; came: {real!r}")
            if name == "id":
                self.ids[shown] = real

    def translate(self, text: str) -> str:
        """`text` with the ids that came in place of those that are shown."""
        for shown, real in self.ids.items():
            text = re.sub(rf"(?<!\w){re.escape(shown)}(?!\w)", real, text)
        return text


def documents(text: str) -> list[Any]:
    """The JSON values that stand one after the other in `text`. Raises Mismatch."""
    found, rest, decoder = [], text.strip(), json.JSONDecoder()
    while rest:
        try:
            value, end = decoder.raw_decode(rest)
        except ValueError:
            raise Mismatch(f"this is no JSON: {rest}") from None
        found.append(value)
        rest = rest[end:].lstrip()
    return found


def _kind(value: Any) -> type:
    """Whole numbers are numbers."""
    return float if type(value) is int else type(value)


def _without_space(text: str) -> str:
    return "\n".join(" ".join(line.split()) for line in text.splitlines() if line.strip())
