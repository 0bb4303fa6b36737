"""A stand-in for the api: the same HTTP, made-up stories. Jobs run first come first served."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx

from tests.slm_client import fake_http
from tests.slm_client.fake_batches import FakeBatches, problem
from tests.slm_client.fake_callbacks import FakeCallbacks
from tests.slm_client.fake_dead_letters import FakeDeadLetters
from tests.slm_client.fake_http import Answer, Events

KEY = f"slm_{'a' * 10}_{'s' * 43}"
AUTHORISED = {"authorization": f"Bearer {KEY}"}
STORY = [" and", " so", " on", "."]
_OPEN = ("/healthz", "/readyz")
_FOREVER = 1e9  # seconds
_LIMITS = {
    "requests_per_minute": 600,
    "tokens_per_minute": 1_000_000,
    "jobs_in_flight": 1_000,
    "queued_tokens": 5_000_000,
    "batch_rows": 1_000_000,
    "batch_tokens": 1_000_000_000,
}


def event(name: str, data: object, event_id: str = "") -> bytes:
    """As it is sent."""
    lines = [f"event: {name}", *([f"id: {event_id}"] if event_id else [])]
    return "\n".join([*lines, f"data: {json.dumps(data, ensure_ascii=False)}", "", ""]).encode()


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]  # by lower-case names
    body: Any


class FakeService:
    """`slots` jobs run at a time, each for `seconds`. In a prompt, REJECT makes the answer a 422,
    and FAIL, EXPIRE, CANCEL how the job ends. `next_answers` come before the real ones: an answer,
    an exception to raise, or "lose": act, but do not answer. `tokens` are the API keys that it
    knows; None: every well-formed one."""

    def __init__(
        self, slots: int = 8, seconds: float = 0.0, tokens: dict[str, str] | None = None
    ) -> None:
        self.seconds = seconds
        self.next_answers: deque[Answer | Exception | str] = deque()
        self.seen: list[Request] = []
        self.jobs: dict[str, dict[str, Any]] = {}
        self.keys: dict[str, dict[str, Any]] = {}
        self.tokens = tokens
        self.is_ready = True
        self.batches = FakeBatches(slots, lambda: self.seconds)
        self.callbacks = FakeCallbacks()
        self.dead_letters = FakeDeadLetters()
        self._replays: dict[str, str] = {}  # Idempotency-Key -> job id
        self._free_at = [0.0] * slots
        self._changed = threading.Condition()

    @property
    def requests(self) -> list[tuple[str, str, Any]]:
        return [(request.method, request.path, request.body) for request in self.seen]

    def transport(self) -> httpx.MockTransport:
        return fake_http.transport(self.answer)

    def served(self, port: int = 0) -> AbstractContextManager[str]:
        """On a real port; yields its address."""
        return fake_http.served(self.answer, port)

    def answer(
        self, method: str, target: str, body: Any, headers: Mapping[str, str] | None = None
    ) -> Answer:
        url = urlsplit(target)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        request = Request(method, url.path, query, headers or {}, body)
        with self._changed:
            self.seen.append(request)
            canned = self.next_answers.popleft() if self.next_answers else None
            if isinstance(canned, Exception):
                raise canned
            if isinstance(canned, tuple):
                return canned
            answer = self._guarded(request)
            if canned == "lose":
                raise httpx.ReadError("connection reset")
            return answer

    def count(self, method: str) -> int:
        return sum(request.method == method for request in self.seen)

    def _guarded(self, request: Request) -> Answer:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.tokens is None:
            known = re.fullmatch(r"slm_[a-z0-9]{10}_[A-Za-z0-9_-]{43}", given) is not None
        else:
            known = given in self.tokens
        if not known and request.path not in _OPEN:
            detail = "send a key that is known here"
            return problem(401, "unauthorised", detail, {"WWW-Authenticate": "Bearer"})
        if request.path.startswith("/admin/") and self.tokens and self.tokens[given] != "admin":
            return problem(403, "forbidden", "this key is no admin's")
        return self._route(request)

    def _route(self, request: Request) -> Answer:
        match request.method, request.path.strip("/").split("/"):
            case "POST", ["jobs"]:
                return self._create(request)
            case "GET", ["jobs"]:
                return self._list(request.query)
            case _, ["callbacks", *rest] | ["jobs" | "batches", _, "callbacks", *rest]:
                return self.callbacks.answer(request, rest)
            case method, ["jobs", job_id, *rest]:
                if job_id not in self.jobs:
                    return problem(404, "not_found", "there is no such job")
                return self._job(method, self.jobs[job_id], rest, request)
            case _, ["batches", *rest]:
                return self.batches.answer(request, rest)
            case "GET", ["models"]:
                template = {"text": "A {animal}", "variables": {"animal": "such as fox"}}
                model = {
                    "name": "tiny",
                    "context_length": 512,
                    "default": True,
                    "templates": {"animal": template},
                    "workers": 1,
                }
                return 200, {}, {"data": [model]}
            case "GET", ["queue"]:
                entry = {"model": "tiny", "waiting": 1200, "running": 8, "workers": 1, "slots": 8}
                pace = {"tokens_per_second": 2000.4, "estimated_wait_seconds": 34.5}
                return 200, {}, {"data": [{**entry, **pace}]}
            case method, ["admin", "keys", *rest]:
                return self._admin(method, rest, request.body)
            case _, ["admin", "dead-letters", *rest]:
                return self.dead_letters.answer(request, rest)
            case "GET", ["readyz"] if not self.is_ready:
                return problem(503, "not_ready", "no worker is alive")
            case "GET", ["healthz"]:
                return 200, {}, {"status": "ok"}
            case "GET", ["readyz"]:
                return 200, {}, {}
        return problem(404, "not_found", "there is no such thing")

    def _job(self, method: str, job: dict[str, Any], rest: list[str], request: Request) -> Answer:
        match method, rest:
            case "GET", []:
                self._wait(job, int(request.query.get("wait", 0)))
                return 200, {}, self.view(job)
            case "DELETE", []:
                if self.view(job)["status"] in ("queued", "running"):
                    return problem(409, "job_not_ended", "cancel it first")
                del self.jobs[job["id"]]
                return 204, {}, None
            case "POST", ["cancel"]:
                if time.monotonic() < job["end"]:
                    job.update(end=time.monotonic(), cancelled=True)
                    self._changed.notify_all()
                return 200, {}, self.view(job)
            case "GET", ["stream"]:
                return 200, {}, self._events(job, request.headers.get("last-event-id", ""))
        return problem(404, "not_found", "there is no such thing")

    def _create(self, request: Request) -> Answer:
        body, key = request.body, request.headers.get("idempotency-key", "")
        if key and (job_id := self._replays.get(key)):
            if self.jobs[job_id]["body"] != body:
                return problem(422, "idempotency_conflict", "the key came with another body")
            return 202, {"idempotent-replayed": "true"}, self.view(self.jobs[job_id])
        if "REJECT" in body.get("prompt", ""):
            return problem(422, "prompt_too_long", "the prompt is too long")
        slot = min(range(len(self._free_at)), key=self._free_at.__getitem__)
        start = max(time.monotonic(), self._free_at[slot])
        self._free_at[slot] = start + self.seconds
        job = {"id": f"job_{len(self.jobs) + 1}", "body": body, "cancelled": False}
        job |= {"start": start, "end": start + self.seconds, "created": datetime.now(UTC)}
        self._replays[key] = job["id"]
        self.jobs[job["id"]] = job
        seconds = re.fullmatch(r"wait=(\d+)", request.headers.get("prefer", ""))
        if seconds and self._wait(job, int(seconds[1])):
            return 200, {}, self.view(job)
        return 202, {"location": f"/jobs/{job['id']}"}, self.view(job, "queued")

    def _wait(self, job: dict[str, Any], seconds: float) -> bool:
        """Whether it has ended."""
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < min(job["end"], until):
            self._changed.wait(min(job["end"], until) - now)
        return time.monotonic() >= float(job["end"])

    def _list(self, query: dict[str, str]) -> Answer:
        """Two in a page at most; one that would not be listed takes its place in the page."""
        newest = list(reversed(self.jobs.values()))
        first, size = int(query.get("cursor", 0)), min(2, int(query["limit"]))
        page = [self.view(job) for job in newest[first : first + size]]
        wanted = [job for job in page if query.get("status") in (None, job["status"])]
        more = str(first + size) if first + size < len(newest) else None
        return 200, {}, {"data": wanted, "next_cursor": more}

    def _events(self, job: dict[str, Any], after: str) -> Events:
        self._wait(job, _FOREVER)
        view = self.view(job)
        told = int(after.partition(":")[2]) if after else 0
        text = STORY if view["outputs"] else []
        return Events(
            [
                b": hello\n\n",
                event("status", {"status": "running", "attempt": 1}),
                *(
                    event("token", {"index": 0, "text": piece}, f"0:{number}")
                    for number, piece in enumerate(text, 1)
                    if number > told
                ),
                event("done", view),
            ]
        )

    def _admin(self, method: str, rest: list[str], body: Any) -> Answer:
        match method, rest:
            case "GET", []:
                return 200, {}, {"data": list(self.keys.values())}
            case "POST", []:
                key_id = f"{len(self.keys):010}"
                self.keys[key_id] = {
                    "id": key_id,
                    "prefix": f"slm_{key_id}",
                    "admin": False,
                    "created_at": "2026-11-21T01:06:24.151000Z",
                    "revoked_at": None,
                    **_LIMITS,
                    "max_priority": 0,
                    "callback_hosts": [],
                    **body,
                }
                return 201, {}, {**self.keys[key_id], "token": f"slm_{key_id}_{'n' * 43}"}
            case "POST", [key_id, "rotate"] if key_id in self.keys:
                return 200, {}, {**self.keys[key_id], "token": f"slm_{key_id}_{'r' * 43}"}
            case "DELETE", [key_id] if key_id in self.keys:
                self.keys[key_id]["revoked_at"] = "2026-11-21T02:00:00Z"
                return 204, {}, None
        return problem(404, "key_not_found", "there is no such key")

    def view(self, job: dict[str, Any], status: str | None = None) -> dict[str, Any]:
        body, now = job["body"], time.monotonic()
        prompt = body.get("prompt", "")
        if status is None:
            running = "running" if now < job["end"] else "succeeded"
            status = "queued" if now < job["start"] else running
        ended = status == "succeeded"
        view = {
            "id": job["id"],
            "status": "cancelled" if job["cancelled"] else status,
            "model": body.get("model") or "tiny",
            "created_at": _text(job["created"]),
            "started_at": None,
            "finished_at": _text(datetime.now(UTC)) if ended or job["cancelled"] else None,
            "attempt": 0 if status == "queued" else 1,
            "priority": body.get("priority", 0),
            "seed": body.get("seed") or 0,
            "queue": {"ahead": 3, "estimated_wait_seconds": 2.5} if status == "queued" else None,
            "outputs": [],
            "usage": None,
            "error": None,
            "metadata": body.get("metadata") or {},
        }
        if not ended or job["cancelled"]:
            return view
        if "FAIL" in prompt:
            error = {"code": "engine_error", "message": "the engine broke"}
            return {**view, "status": "failed", "error": error}
        for word, ending in (("EXPIRE", "expired"), ("CANCEL", "cancelled")):
            if word in prompt:
                return {**view, "status": ending}
        return {
            **view,
            "outputs": [{"index": 0, "text": "".join(STORY), "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
        }


def _text(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
