"""Receives callbacks, verifies and remembers each, and is at times as bad as receivers are."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook, WebhookVerificationError

_FAULTS = {"fine": 80, "wrong": 12, "broken": 6, "late": 2}  # of 100 requests


class Receiver:
    """Use it as a context manager. `secrets`: of each key, by its name, which ends the address."""

    def __init__(self, seed: int, late_seconds: float) -> None:
        self.secrets: dict[str, str] = {}
        self.taken: Counter[str] = Counter()  # by webhook-id: how often it was answered with 2xx
        self.forged: list[str] = []  # ids of what was not signed as it should be
        self.changed: list[str] = []  # ids that came with two bodies
        self._bodies: dict[str, bytes] = {}
        self._random = random.Random(seed)
        self._late_seconds = late_seconds
        self._lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                match receiver.take(self.path.rpartition("/")[2], body, headers):
                    case "broken":
                        return
                    case "late":
                        time.sleep(receiver._late_seconds)
                        return
                    case fault:
                        self.send_response(204 if fault == "fine" else 500)
                        self.send_header("content-length", "0")
                        self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def url(self, key: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/hook/{key}"

    def take(self, key: str, body: bytes, headers: dict[str, str]) -> str:
        """How to answer."""
        name, digest = headers["webhook-id"], hashlib.sha256(body).digest()
        try:
            Webhook(self.secrets[key]).verify(body, headers)
        except WebhookVerificationError:
            self.forged.append(name)
            return "wrong"
        with self._lock:
            [fault] = self._random.choices(list(_FAULTS), list(_FAULTS.values()))
            if self._bodies.setdefault(name, digest) != digest:
                self.changed.append(name)
            # a broken answer may have been a handled one: the same may come again
            if fault in ("fine", "broken"):
                self.taken[name] += 1
        return fault

    @property
    def repeats(self) -> int:
        """How many came again after they had been handled."""
        return self.taken.total() - len(self.taken)

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
