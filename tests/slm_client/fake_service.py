"""A stand-in for the api: the same HTTP, made-up stories. Jobs run first come first served."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

from slm_client.redis_server import free_port

Answer = tuple[int, dict[str, str], Any]


def problem(status: int, code: str, detail: str, headers: dict[str, str] | None = None) -> Answer:
    body = {"type": f"/problems/{code}", "title": code, "status": status, "detail": detail}
    return status, headers or {}, {**body, "code": code}


class FakeService:
    """`slots` jobs run at a time, each for `seconds`. In a prompt, REJECT makes the answer a 422,
    and FAIL, EXPIRE, CANCEL how the job ends. `next_answers` come before the real ones: an answer,
    an exception to raise, or "lose": act, but do not answer."""

    def __init__(self, slots: int = 8, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.next_answers: deque[Answer | Exception | str] = deque()
        self.requests: list[tuple[str, str, Any]] = []
        self.jobs: dict[str, dict[str, Any]] = {}
        self.is_ready = True
        self._free_at = [0.0] * slots
        self._lock = threading.Lock()

    def transport(self) -> httpx.MockTransport:
        def handle(request: httpx.Request) -> httpx.Response:
            body = json.loads(request.content) if request.content else None
            status, headers, answer = self.answer(request.method, request.url.path, body)
            return httpx.Response(status, headers=headers, json=answer)

        return httpx.MockTransport(handle)

    @contextmanager
    def served(self, port: int = 0) -> Iterator[str]:
        """On a real port; yields its address."""
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def _handle(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                status, headers, answer = service.answer(self.command, self.path, body)
                data = json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {**headers, "content-length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = _handle  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        server = ThreadingHTTPServer(("127.0.0.1", port or free_port()), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def answer(self, method: str, path: str, body: Any) -> Answer:
        with self._lock:
            self.requests.append((method, path, body))
            canned = self.next_answers.popleft() if self.next_answers else None
            if isinstance(canned, Exception):
                raise canned
            if isinstance(canned, tuple):
                return canned
            answer = self._route(method, path, body)
            if canned == "lose":
                raise httpx.ReadError("connection reset")
            return answer

    def count(self, method: str) -> int:
        return sum(request[0] == method for request in self.requests)

    def _route(self, method: str, path: str, body: Any) -> Answer:
        match method, path.strip("/").split("/"):
            case "POST", ["jobs"]:
                return self._create(body)
            case "GET", ["jobs", job_id] if job_id in self.jobs:
                return 200, {}, self._view(self.jobs[job_id])
            case "GET", ["models"]:
                model = {"name": "tiny", "context_length": 512, "default": True, "workers": 1}
                return 200, {}, {"data": [model]}
            case "GET", ["readyz"] if not self.is_ready:
                return problem(503, "not_ready", "no worker is alive")
            case "GET", ["readyz" | "healthz"]:
                return 200, {}, {}
        return problem(404, "not_found", "there is no such thing")

    def _create(self, body: Any) -> Answer:
        if "REJECT" in body["prompt"]:
            return problem(422, "prompt_too_long", "the prompt is too long")
        slot = min(range(len(self._free_at)), key=self._free_at.__getitem__)
        start = max(time.monotonic(), self._free_at[slot])
        self._free_at[slot] = start + self.seconds
        job_id = f"job_{len(self.jobs) + 1}"
        self.jobs[job_id] = {"id": job_id, "body": body, "start": start}
        return 202, {"location": f"/jobs/{job_id}"}, self._view(self.jobs[job_id], "queued")

    def _view(self, job: dict[str, Any], status: str | None = None) -> dict[str, Any]:
        body, age = job["body"], time.monotonic() - job["start"]
        if status is None:
            status = "queued" if age < 0 else "running" if age < self.seconds else "succeeded"
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        view = {
            "id": job["id"],
            "status": status,
            "model": body.get("model") or "tiny",
            "created_at": now,
            "started_at": None,
            "finished_at": None,
            "attempt": 1,
            "seed": body.get("seed") or 0,
            "outputs": [],
            "usage": None,
            "error": None,
            "metadata": body.get("metadata") or {},
        }
        if status != "succeeded":
            return view
        view["finished_at"] = now
        if "FAIL" in body["prompt"]:
            error = {"code": "engine_error", "message": "the engine broke"}
            return {**view, "status": "failed", "error": error}
        for word, ending in (("EXPIRE", "expired"), ("CANCEL", "cancelled")):
            if word in body["prompt"]:
                return {**view, "status": ending}
        return {
            **view,
            "outputs": [{"index": 0, "text": " and so on.", "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
        }
