"""Dead letters of the stand-in for the api: those that a test puts there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.slm_client.fake_batches import problem
from tests.slm_client.fake_http import Answer

if TYPE_CHECKING:
    from tests.slm_client.fake_service import Request

MOST = 2  # of a page, or redriven by one request


class FakeDeadLetters:
    """`letters` and `redriven` by the ids of the jobs that failed; the oldest first. `fails_again`:
    what is redriven becomes a dead letter at once."""

    def __init__(self) -> None:
        self.letters: dict[str, dict[str, Any]] = {}
        self.redriven: dict[str, dict[str, Any]] = {}
        self.fails_again = False

    def put(self, job_id: str, code: str = "attempts_exhausted", **changes: Any) -> None:
        self.letters[job_id] = {
            "id": job_id,
            "status": "failed",
            "model": "tiny",
            "created_at": "2026-11-21T12:00:00Z",
            "started_at": "2026-11-21T12:00:01Z",
            "finished_at": "2026-11-21T12:00:46.500000Z",
            "attempt": 3,
            "priority": 0,
            "seed": 7,
            "outputs": [{"index": 0, "text": " and [so]", "finish_reason": "cancelled"}],
            "error": {"code": code, "message": "it went [red]"},
            "metadata": {},
            "retry_of": None,
            **changes,
        }

    def answer(self, request: Request, rest: list[str]) -> Answer:
        """`rest` is what comes after `dead-letters` in the path."""
        match request.method, rest:
            case "GET", []:
                return self._page(request.query)
            case "POST", ["redrive"]:
                return self._redrive(request.body)
            case "POST", [job_id, "redrive"] if job_id in {**self.letters, **self.redriven}:
                return 202, {}, self._again(job_id)
            case "GET", [job_id] if job_id in self.letters:
                asked = {"prompts": ["Once", [1, 2]], "seed": 7, "stop": [], "run_timeout": None}
                job = self.letters[job_id]
                return 200, {}, {"job": job, "key": "x7k2m9q4ab", "request": asked}
            case "DELETE", [job_id] if job_id in self.letters:
                del self.letters[job_id]
                return 204, {}, None
        return problem(404, "dead_letter_not_found", "No such dead letter.")

    def _page(self, query: dict[str, str]) -> Answer:
        found = list(self.letters.values())[::-1]
        first, size = int(query.get("cursor", 0)), min(MOST, int(query["limit"]))
        more = str(first + size) if first + size < len(found) else None
        page = found[first : first + size]
        return 200, {}, {"data": page, "next_cursor": more, "total": len(found)}

    def _redrive(self, body: dict[str, Any]) -> Answer:
        most = min(MOST, body.get("limit", MOST))
        ids = list(self.letters)[:most] if body.get("all") else body["ids"]
        known = {**self.letters, **self.redriven}
        jobs = [self._again(job_id) for job_id in ids if job_id in known]
        missing = [job_id for job_id in ids if job_id not in known]
        return 202, {}, {"data": jobs, "not_found": missing, "left": len(self.letters)}

    def _again(self, job_id: str) -> dict[str, Any]:
        if job_id not in self.redriven:
            made = {"id": f"{job_id}x", "status": "queued", "error": None, "retry_of": job_id}
            self.redriven[job_id] = {**self.letters.pop(job_id), **made}
            if self.fails_again:
                self.put(f"{job_id}x", retry_of=job_id)
        return self.redriven[job_id]
