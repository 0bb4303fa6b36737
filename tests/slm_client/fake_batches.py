"""Batches of the stand-in for the api: rows run first come first served, and tell stories."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import itertools
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx

from tests.slm_client.fake_http import Answer, Lines

if TYPE_CHECKING:
    from tests.slm_client.fake_service import Request

_TICK = 0.01  # seconds
_REASONS = {"FAIL": "engine_error", "POISON": "attempts_exhausted"}


def problem(
    status: int, code: str, detail: str, headers: dict[str, str] | None = None, **more: Any
) -> Answer:
    body = {"type": f"/problems/{code}", "title": code, "status": status, "detail": detail}
    return status, headers or {}, {**body, "code": code, **more}


class FakeBatches:
    """`slots` rows run at a time, each for `seconds()`. In a prompt, REJECT makes the row invalid,
    FAIL and POISON how it ends. `breaks`: after so many lines, the next answer of lines breaks."""

    def __init__(self, slots: int, seconds: Callable[[], float]) -> None:
        self.made: dict[str, dict[str, Any]] = {}
        self.breaks: list[int] = []
        self._slots = slots
        self._seconds = seconds
        self._numbers = itertools.count(1)
        self._replays: dict[str, str] = {}  # Idempotency-Key -> batch id

    def answer(self, request: Request, rest: list[str]) -> Answer:
        if not rest:
            return self._create(request) if request.method == "POST" else self._list(request.query)
        if rest[0] not in self.made:
            return problem(404, "batch_not_found", "there is no such batch")
        batch, query = self.made[rest[0]], request.query
        match request.method, rest[1:]:
            case "GET", []:
                until = time.monotonic() + int(query.get("wait", 0))
                while time.monotonic() < min(until, batch["end"]):
                    time.sleep(_TICK)
                return 200, {}, self.view(batch)
            case "GET", ["results" | "errors" as which]:
                return 200, {}, self._lines(batch, which, query)
            case "POST", ["cancel"]:
                batch["end"] = min(batch["end"], time.monotonic())
                return 200, {}, self.view(batch)
            case "POST", ["retry"]:
                return self._retry(batch, request.headers.get("idempotency-key", ""))
            case "DELETE", []:
                if time.monotonic() < batch["end"]:
                    return problem(409, "batch_not_ended", "cancel it first")
                del self.made[batch["id"]]
                return 204, {}, None
        return problem(404, "not_found", "there is no such thing")

    def _create(self, request: Request) -> Answer:
        body, query = request.body, request.query
        inline = isinstance(body, dict)
        content = json.dumps(body).encode() if inline else body
        asked = json.dumps([request.query, request.headers["content-type"]]).encode()
        digest = hashlib.sha256(content + asked).hexdigest()
        key = request.headers.get("idempotency-key", "")
        if batch_id := self._replays.get(key):
            if batch_id not in self.made:
                return problem(410, "batch_gone", "its batch is gone")
            if self.made[batch_id]["digest"] != digest:
                return problem(422, "idempotency_conflict", "the key came with another content")
            headers = {"idempotent-replayed": "true", "location": f"/batches/{batch_id}"}
            return 202, headers, self.view(self.made[batch_id])
        given = self._rows(body, request.headers["content-type"])
        options = body if inline else query
        rows = [row for row in given if "error" not in row]
        wrong = [row for row in given if "error" in row]
        if not given:
            return problem(422, "empty_batch", "there are no rows")
        if wrong and options.get("on_invalid", "refuse") == "refuse":
            problems = [{**row["error"], **_without(row, "error", "prompt")} for row in wrong]
            detail = f"{len(wrong)} rows cannot run"
            more = {"invalid": len(wrong), "rows": problems[:100]}
            return problem(422, "invalid_rows", detail, **more)
        batch = self._make(rows, wrong, options)
        batch["digest"] = digest
        self._replays[key] = batch["id"]
        return 202, {"location": f"/batches/{batch['id']}"}, self.view(batch)

    def _retry(self, batch: dict[str, Any], key: str) -> Answer:
        if before := self._replays.get(key):
            return 202, {"idempotent-replayed": "true"}, self.view(self.made[before])
        rows = [row for row, _ in self._ended(batch, "errors") if "line" not in row]
        if not rows:
            return problem(409, "nothing_to_retry", "every row succeeded")
        made = self._make(rows, [], {}, retry_of=batch["id"])
        self._replays[key] = made["id"]
        return 202, {}, self.view(made)

    def _rows(self, body: Any, media_type: str) -> list[dict[str, Any]]:
        if isinstance(body, dict):
            rows = [{"prompt": row} if isinstance(row, str) else row for row in body["rows"]]
            return [_checked(row, number) for number, row in enumerate(rows, 1)]
        text = (gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body).decode()
        if media_type == "text/csv":
            table = csv.DictReader(io.StringIO(text))
            return [_checked(row, number) for number, row in enumerate(table, 2)]
        rows = []
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                row = {"prompt": line.strip()} if media_type == "text/plain" else _loaded(line)
                rows.append(_checked(row, number))
        return rows

    def _make(
        self,
        rows: list[dict[str, Any]],
        wrong: list[dict[str, Any]],
        options: dict[str, Any],
        retry_of: str | None = None,
    ) -> dict[str, Any]:
        now, seconds = time.monotonic(), self._seconds()
        ends = [now + (place // self._slots + 1) * seconds for place in range(len(rows))]
        batch = {
            "id": f"batch_{next(self._numbers)}",
            "options": options,
            "retry_of": retry_of,
            "rows": list(zip(rows, ends, strict=True)),
            "wrong": wrong,
            "began": now,
            "end": ends[-1] if ends else now,
            "created": datetime.now(UTC),
        }
        self.made[str(batch["id"])] = batch
        return batch

    def _list(self, query: dict[str, str]) -> Answer:
        """Two in a page at most."""
        newest = list(reversed(self.made.values()))
        first, size = int(query.get("cursor", 0)), min(2, int(query["limit"]))
        more = str(first + size) if first + size < len(newest) else None
        page = [self.view(batch) for batch in newest[first : first + size]]
        return 200, {}, {"data": page, "next_cursor": more}

    def _ended(self, batch: dict[str, Any], which: str) -> list[tuple[dict[str, Any], float]]:
        """Rows of a list, in the order in which they ended, with the times."""
        now = min(time.monotonic(), batch["end"])
        rows = [(row, end) for row, end in batch["rows"] if end <= now]
        good = [(row, end) for row, end in rows if _failure(row) is None]
        if which == "results":
            return good
        bad = [(row, batch["began"]) for row in batch["wrong"]]
        bad += [(row, end) for row, end in rows if _failure(row) is not None]
        if time.monotonic() >= batch["end"]:  # cancelled: what never started
            bad += [({**row, "cancelled": True}, now) for row, end in batch["rows"] if end > now]
        return bad

    def _lines(self, batch: dict[str, Any], which: str, query: dict[str, str]) -> Lines:
        breaks = self.breaks.pop(0) if self.breaks else None

        def lines() -> Iterator[bytes | Exception]:
            told = int(query.get("after", 0))
            left = breaks
            while True:
                ended = time.monotonic() >= batch["end"]
                for row, when in self._ended(batch, which)[told:]:
                    told += 1
                    if left is not None and (left := left - 1) < 0:
                        yield b'{"seq": 12'
                        yield httpx.ReadError("connection reset")
                    yield json.dumps(
                        self._line(batch, row, told, when), ensure_ascii=False
                    ).encode()
                    yield b"\n"
                if ended or query.get("follow") != "true":
                    return
                yield b"\n"
                time.sleep(_TICK)

        return Lines(lines())

    def _line(self, batch: dict[str, Any], row: dict[str, Any], seq: int, when: float) -> Any:
        moment = batch["created"] + timedelta(seconds=when - batch["began"])
        line = {"seq": seq, "custom_id": row.get("custom_id"), "prompt": row.get("prompt")}
        line["finished_at"] = _text(moment)
        if "error" in row:
            return {**_without(line, "prompt"), "line": row["line"], "error": row["error"]}
        if error := _failure(row):
            return {**line, "error": error}
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        if (n := int(batch["options"].get("n", 1))) > 1:
            texts = [{"index": i, "text": f" and {i}.", "finish_reason": "stop"} for i in range(n)]
            return {**line, "outputs": texts, "usage": usage}
        return {**line, "text": " and so on.", "finish_reason": "stop", "usage": usage}

    def view(self, batch: dict[str, Any]) -> dict[str, Any]:
        good, bad = self._ended(batch, "results"), self._ended(batch, "errors")
        ended = time.monotonic() >= batch["end"]
        cancelled = sum("cancelled" in row for row, _ in bad)
        was_cancelled = cancelled or "emptied" in batch  # while its rows came in
        total = len(batch["rows"]) + len(batch["wrong"])
        done, options = len(good) + len(bad), batch["options"]
        running = min(self._slots, total - done)
        tokens = {"prompt_tokens": 3 * len(good), "completion_tokens": 4 * len(good)}
        finished = batch["created"] + timedelta(seconds=batch["end"] - batch["began"])
        return {
            "id": batch["id"],
            "status": ("cancelled" if was_cancelled else "completed") if ended else "running",
            "model": options.get("model") or "tiny",
            "counts": {
                "total": total,
                "pending": total - done - running,
                "running": running,
                "succeeded": len(good),
                "failed": len(bad) - cancelled,
                "cancelled": cancelled,
                "expired": 0,
            },
            "usage": {**tokens, "total_tokens": sum(tokens.values())},
            "created_at": _text(batch["created"]),
            "started_at": _text(batch["created"]),
            "finished_at": _text(finished) if ended else None,
            "expires_at": _text(batch["created"] + timedelta(days=1)),
            "cancel_requested": False,
            "rows_per_second": None if ended else 12.5,
            "tokens_per_second": None if ended else 2000.4,
            "estimated_seconds": None if ended else 61.0,
            "seed": int(options.get("seed") or 7),
            "params": {"max_tokens": int(options.get("max_tokens", 200)), "top_k": None},
            "name": options.get("name"),
            "retry_of": batch["retry_of"],
            "errors": [],
            "metadata": {},
        }


def _checked(row: Any, number: int) -> dict[str, Any]:
    """With an id, and what is wrong with it."""
    if not isinstance(row, dict):
        error = {"code": "malformed_json", "message": "it is no JSON object"}
        return {"custom_id": None, "line": number, "error": error}
    row = {**row, "custom_id": row.get("custom_id") or str(number)}
    if "REJECT" in row.get("prompt", ""):
        error = {"code": "prompt_too_long", "message": "the prompt is too long"}
        return {**row, "line": number, "error": error}
    return row


def _failure(row: dict[str, Any]) -> dict[str, str] | None:
    if row.get("cancelled"):
        return {"code": "cancelled", "message": "the batch was cancelled"}
    code = next((code for word, code in _REASONS.items() if word in row.get("prompt", "")), None)
    return {"code": code, "message": "the engine broke"} if code else None


def _loaded(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def _text(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
