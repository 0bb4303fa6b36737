"""Steady load of every kind: jobs that are waited for, followed, cancelled, deleted, sent twice,
with priorities and deadlines; batches; floods. What comes of it goes to the ledger."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx

from slm_client import Client
from slm_client.errors import SlmClientError
from slm_client.stream import DoneEvent, RestartEvent, TokenEvent
from tests.chaos.ledger import Asked, AskedBatch, Ledger
from tests.chaos.receiver import Receiver
from tests.chaos.stack import Stack

WORDS = ("once upon a time there was a little fox who lived under the old oak tree " * 2).split()
JOB_EVENTS = ["running", "succeeded", "failed", "cancelled", "expired"]
BATCH_EVENTS = ["running", "progress", "completed", "failed", "cancelled", "expired"]
KEYS: dict[str, dict[str, Any]] = {  # API keys, and what they may do beyond the default
    "free": {"requests_per_minute": None, "tokens_per_minute": None, "max_priority": 9},
    "busy": {"requests_per_minute": 3_000, "jobs_in_flight": 30, "max_priority": 5},
    "small": {"requests_per_minute": 20, "queued_tokens": 4_000},
}
_THREADS = 96
_MOST_TRIES = 60  # of a request for a job; each waits as long as it is told to
_BATCH_PAUSE = 15.0  # seconds at most between two batches
_PATIENCE = 180.0  # seconds with a service that does not answer


def job_body(rng: random.Random) -> dict[str, Any]:
    """Mostly short ones, some of several outputs, some with a deadline."""
    body: dict[str, Any] = {
        "prompt": " ".join(rng.choices(WORDS, k=rng.randint(1, 25))),
        "max_tokens": rng.choices([rng.randint(2, 60), rng.randint(100, 400)], [2, 1])[0],
        "temperature": rng.choice([0.0, 0.8, 1.2]),
        "top_k": rng.choice([None, 5, 40]),
        "ignore_eos": rng.random() < 0.8,
        "n": rng.choices([1, 2, 4], [8, 1, 1])[0],
        "stream": rng.random() < 0.2,
    }
    if rng.random() < 0.8:
        body["seed"] = rng.randrange(2**53)
    if rng.random() < 0.1:
        body["prompt"] = [body["prompt"], "The end"]
    if rng.random() < 0.1:
        body["queue_timeout"] = rng.choice([0.5, 3, 300])
    if rng.random() < 0.1:
        body["run_timeout"] = rng.choice([0.3, 5, 300])
    return body


class Load:
    """Begins to send with `start`; `finish` ends it, and returns when every client has its end."""

    def __init__(
        self, stack: Stack, receiver: Receiver, ledger: Ledger, *, seed: int, per_second: float
    ) -> None:
        self.ledger = ledger
        self._stack = stack
        self._receiver = receiver
        self._seed = seed
        self._per_second = per_second
        self._stopping = threading.Event()
        self._clients: dict[str, list[Client]] = {}  # of a key, one for each api
        self._tokens: dict[str, str] = {}
        self._http = httpx.Client(timeout=10, trust_env=False, limits=httpx.Limits())
        self._pool = ThreadPoolExecutor(_THREADS, "client")
        self._running: set[Future[None]] = set()
        self._threads = [
            threading.Thread(target=self._send_jobs, name="jobs"),
            threading.Thread(target=self._send_batches, name="batches"),
        ]

    def start(self) -> None:
        with self._stack.client(self._stack.api_key, self._stack.urls[0]) as admin:
            for name, settings in KEYS.items():
                made = admin.keys.create(name, callback_hosts=["127.0.0.1"], **settings)
                self._tokens[name] = made["token"]
        for name, token in self._tokens.items():
            clients = [self._stack.client(token, url, _PATIENCE) for url in self._stack.urls]
            self._clients[name] = clients
            self._receiver.secrets[name] = clients[0].callbacks.secrets()[0].secret
        for thread in self._threads:
            thread.start()

    def finish(self, timeout: float) -> int:
        """How many clients have not come to an end by then."""
        self._stopping.set()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        while self._running and time.monotonic() < deadline:
            time.sleep(0.1)
        left = len(self._running) + sum(thread.is_alive() for thread in self._threads)
        if not left:
            self._pool.shutdown()
        for clients in self._clients.values():
            for client in clients:
                client.close()
        self._http.close()
        return left

    def flood(self, count: int, seed: int) -> None:
        """Many short jobs at once: more than may wait."""
        rng = random.Random(seed)
        for _ in range(count):
            self._do(rng, {**job_body(rng), "max_tokens": 8, "n": 1, "stream": False}, tries=2)

    def cancel_some(self, share: float, seed: int) -> None:
        """Of the jobs that may still run."""
        rng = random.Random(seed)
        for asked in [a for a in self.ledger.jobs[-100:] if a.ids and not a.seen]:
            if rng.random() < share:
                asked.cancelled = True
                self._spawn(asked, lambda a=asked: self._api(a, rng).cancel(min(a.ids)))

    # Jobs

    def _send_jobs(self) -> None:
        rng, began, sent = random.Random(self._seed), time.monotonic(), 0
        while not self._stopping.wait(max(0.0, began + sent / self._per_second - time.monotonic())):
            sent += 1
            body = job_body(rng)
            if len(self._running) < _THREADS:  # else the service has been away for long
                self._do(rng, body)

    def _do(self, rng: random.Random, body: dict[str, Any], tries: int = _MOST_TRIES) -> None:
        key = rng.choices(list(KEYS), [6, 3, 1])[0]
        if KEYS[key].get("max_priority") and rng.random() < 0.3:
            body = {**body, "priority": rng.randint(0, KEYS[key]["max_priority"])}
        if rng.random() < 0.4:
            events = rng.choice([JOB_EVENTS, JOB_EVENTS, JOB_EVENTS[1:]])
            body |= {"callback_url": self._receiver.url(key), "callback_events": events}
            body["callback_outputs"] = rng.random() < 0.5
        named = rng.random() < 0.9
        asked = self.ledger.open(key, body, f"{rng.getrandbits(64):x}" if named else None)
        mine = random.Random(rng.getrandbits(64))
        self._spawn(asked, lambda: self._live(asked, mine, tries))

    def _spawn(self, asked: Asked | AskedBatch, call: Callable[[], object]) -> None:
        def run() -> None:
            try:
                call()
            except (SlmClientError, httpx.HTTPError) as error:
                asked.troubles.append(f"{type(error).__name__}: {error}")

        future = self._pool.submit(run)
        self._running.add(future)
        future.add_done_callback(self._running.discard)

    def _live(self, asked: Asked, rng: random.Random, tries: int) -> None:
        """A client's whole life with one job."""
        if not self._submit(asked, rng, tries):
            return
        job_id = min(asked.ids)
        if rng.random() < 0.1:
            self._stopping.wait(rng.uniform(0, 2))
            asked.cancelled = True
            self._api(asked, rng).cancel(job_id)
        if asked.idempotency_key and rng.random() < 0.1:
            self._submit(asked, rng, tries)
        if asked.body["stream"]:
            self._follow(asked, self._api(asked, rng), job_id)
        else:
            asked.note_end(self._api(asked, rng).wait(job_id, timeout=300))
        asked.note_end(self._api(asked, rng).get(job_id))
        if rng.random() < 0.1 and "callback_url" not in asked.body:
            self._api(asked, rng).delete(job_id)
            asked.deleted = True

    def _api(self, asked: Asked, rng: random.Random) -> Client:
        return rng.choice(self._clients[asked.key])

    def _submit(self, asked: Asked, rng: random.Random, tries: int) -> bool:
        """Until it is taken; with an Idempotency-Key also after a request without an answer."""
        headers = {"Authorization": f"Bearer {self._tokens[asked.key]}"}
        if asked.idempotency_key:
            headers["Idempotency-Key"] = asked.idempotency_key
        for _ in range(tries):
            url, began = rng.choice(self._stack.urls), time.monotonic()
            try:
                answer = self._http.post(f"{url}/jobs", json=asked.body, headers=headers)
            except httpx.ConnectError:
                time.sleep(0.5)
                continue
            except httpx.TransportError as error:
                if isinstance(error, httpx.ReadTimeout):
                    asked.troubles.append("POST /jobs: no answer in 10 s")
                asked.uncertain = True
                if not asked.idempotency_key:
                    return False
                continue
            finally:
                self.ledger.note_seconds(time.monotonic() - began)
            if answer.status_code == 202:
                asked.ids.add(answer.json()["id"])
                asked.replays += answer.headers.get("idempotent-replayed") == "true"
                return True
            code = answer.json()["code"]
            if answer.status_code not in (429, 503):
                asked.troubles.append(f"POST /jobs: {answer.status_code} {answer.text}")
                return False
            asked.refusals += 1
            asked.uncertain |= code == "store_unavailable"
            if asked.uncertain and not asked.idempotency_key:
                return False
            time.sleep(float(answer.headers["retry-after"]))
        return False

    def _follow(self, asked: Asked, client: Client, job_id: str) -> None:
        texts: dict[int, str] = {}
        for event in client.stream(job_id):
            match event:
                case TokenEvent(index, text):
                    texts[index] = texts.get(index, "") + text
                case RestartEvent():
                    texts.clear()
                case DoneEvent(job):
                    asked.note_end(job)
                    final = {output.index: output.text for output in job.outputs if output.text}
                    if job.outputs and texts != final:
                        asked.streamed_wrong = f"{texts} instead of {final}"

    # Batches

    def _send_batches(self) -> None:
        rng = random.Random(self._seed + 1)
        while not self._stopping.wait(rng.uniform(0, _BATCH_PAUSE)):
            asked = _batch(rng, self._receiver)
            self.ledger.batches.append(asked)
            try:
                self._run_batch(asked, rng, cancelled=len(self.ledger.batches) % 4 == 0)
            except SlmClientError as error:
                asked.troubles.append(f"{type(error).__name__}: {error}")

    def _run_batch(self, asked: AskedBatch, rng: random.Random, *, cancelled: bool) -> None:
        file = "".join(json.dumps(row) + "\n" for row in asked.rows).encode()
        name = f"{rng.getrandbits(64):x}"
        first, second = rng.sample(self._clients[asked.key], 2)
        for client in (first, second):  # the other one finds what the first has made
            batch = client.batches.create(
                file, format="jsonl", idempotency_key=name, **asked.options
            )
            asked.ids.add(batch.id)
        for result in second.batches.results(batch.id, follow=True):
            asked.results.append(result)
            if cancelled and len(asked.results) == len(asked.rows) // 2:
                asked.cancelled = True
                first.batches.cancel(batch.id)


def _batch(rng: random.Random, receiver: Receiver) -> AskedBatch:
    key = rng.choice(["free", "busy"])
    rows = [
        {"custom_id": f"row-{i}", "prompt": " ".join(rng.choices(WORDS, k=rng.randint(1, 12)))}
        for i in range(rng.randint(80, 200))
    ]
    options = {
        "seed": rng.randrange(2**40),
        "max_tokens": 16,
        "ignore_eos": True,
        "n": rng.choice([1, 1, 2]),
        "callback_url": receiver.url(key),
        "callback_events": BATCH_EVENTS,
    }
    return AskedBatch(key, rows, options)
