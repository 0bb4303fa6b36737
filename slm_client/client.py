"""The HTTP client: submit a job, wait for it, read it; many at once as a batch. Knows no queue, no
model, no Redis."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, Unpack
from urllib.parse import quote
from uuid import uuid4

import httpx

from slm_client import stream
from slm_client.batch import BatchParams, Result
from slm_client.batches import Batches
from slm_client.callbacks import Callbacks
from slm_client.dead_letters import DeadLetters
from slm_client.errors import ApiError, JobFailed
from slm_client.job import Job, Params
from slm_client.keys import Keys
from slm_client.transport import Connection
from slm_client.waiting import until_ended, whole

DEFAULT_URL = "http://127.0.0.1:8000"


class Client:
    """Talks to one service. Use it as a context manager, or call `close()`.

    `api_key`: by default SLM_API_KEY of the environment; "" sends none. `timeout` is the seconds
    that one HTTP request may take, besides those that it asks the service to wait. While the
    service is away (connection refused or reset, 429, 503), a call tries again for up to
    `retry_for` seconds. A repeated `POST /jobs` makes no second job: each submission carries an
    `Idempotency-Key`.

    Every call may raise ServiceUnreachable and ApiError.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        api_key: str | None = None,
        *,
        timeout: float = 30.0,
        retry_for: float = 10.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        given = os.environ.get("SLM_API_KEY") if api_key is None else api_key
        key = (given or "").strip() or None
        self._connection = Connection(base_url, key, timeout, retry_for, transport)
        self.base_url = self._connection.base_url
        self.batches = Batches(self._connection)
        self.callbacks = Callbacks(self._connection)
        self.dead_letters = DeadLetters(self._connection)
        self.keys = Keys(self._connection)

    def submit(self, prompt: str | list[str] | None = None, **params: Unpack[Params]) -> Job:
        """Queues a job and returns it as it stands: `queued`."""
        return self.submit_body(_body(prompt, params))

    def submit_body(self, body: dict[str, Any], *, wait: float = 0.0) -> Job:
        """`POST /jobs`. Returns the job, ended if that happens within `wait` seconds (at most 30,
        cut to whole ones)."""
        seconds = whole(wait)
        headers = {"Idempotency-Key": str(uuid4())}
        if seconds:
            headers["Prefer"] = f"wait={seconds}"
        return self._connection.call(
            "POST", "/jobs", Job.from_json, body=body, headers=headers, wait=seconds
        )

    def get(self, job_id: str, *, wait: float = 0.0) -> Job:
        """The job as it stands, or as soon as it has ended within `wait` seconds (at most 30, cut
        to whole ones)."""
        seconds = whole(wait)
        query = {"wait": str(seconds)} if seconds else None
        return self._connection.call("GET", _path(job_id), Job.from_json, query=query, wait=seconds)

    def wait(self, job_id: str, timeout: float = 300.0) -> Job:
        """The job once it has ended in any way. Raises JobTimeout after `timeout` seconds."""
        return self._ended(job_id, time.monotonic() + timeout, timeout)

    def generate(
        self,
        prompt: str | list[str] | None = None,
        *,
        wait_for: float = 300.0,
        **params: Unpack[Params],
    ) -> Job:
        """Submits, waits up to `wait_for` seconds, and returns the succeeded job.

        Raises JobFailed if it ended otherwise, and JobTimeout.
        """
        deadline = time.monotonic() + wait_for
        job = self.submit_body(_body(prompt, params), wait=wait_for)
        if not job.ended:
            job = self._ended(job.id, deadline, wait_for)
        if not job.succeeded:
            raise JobFailed(job)
        return job

    def stream(self, job_id: str) -> Iterator[stream.StreamEvent]:
        """What becomes of the job: StatusEvent, TokenEvent and RestartEvent, and at last DoneEvent.

        Tokens come while the job runs if it was submitted with `stream=True`. A connection that
        breaks is made anew and goes on where it was. Begins with all of the text so far.
        """
        return stream.events(self._connection, f"{_path(job_id)}/stream")

    def cancel(self, job_id: str) -> Job:
        """Asks for the job's end; a running one ends at its next step and keeps its text so far.

        Returns the job as it stands. Does nothing to a job that has ended.
        """
        return self._connection.call("POST", f"{_path(job_id)}/cancel", Job.from_json)

    def delete(self, job_id: str) -> None:
        """Forgets an ended job and its texts. Raises ApiError `job_not_ended` for another."""
        self._connection.call("DELETE", _path(job_id), lambda _: None)

    def jobs(self, *, status: str | None = None, limit: int | None = None) -> Iterator[Job]:
        """Your jobs, the newest first, at most `limit`; those of one `status`, if it is given."""
        query = {"status": status} if status else {}
        return self._connection.pages("/jobs", Job.from_json, query=query, limit=limit)

    def bulk(
        self, rows: Iterable[str | Mapping[str, Any]], **options: Unpack[BatchParams]
    ) -> Iterator[Result]:
        """Makes a batch of prompts, or of rows with `prompt` and, if you like, `custom_id` and
        sampling fields; yields each row's result as it comes, until all have ended.

        With a seed, row i (from 0) takes seed + i * n. A row that the service rejects or fails
        yields a result with `error`; the others go on. Leaving the loop early cancels the rest.
        """
        return self.batches.run(rows, **options)

    def models(self) -> list[dict[str, Any]]:
        """What can be asked for: `name`, `context_length`, `default`, `workers`, …"""

        def read(document: Any) -> list[dict[str, Any]]:
            return [{"name": model["name"], **model} for model in document["data"]]

        return self._connection.call("GET", "/models", read)

    def queue(self) -> list[dict[str, Any]]:
        """How busy each model is: `waiting`, `running`, `estimated_wait_seconds`, …"""

        def read(document: Any) -> list[dict[str, Any]]:
            return [{"model": entry["model"], **entry} for entry in document["data"]]

        return self._connection.call("GET", "/queue", read)

    def ready(self) -> bool:
        """Whether the service can take and run a job now. Never retries, never raises."""
        return self._connection.succeeds("/readyz", timeout=2.0)

    def why_not_ready(self) -> str:
        """Why the service cannot take and run a job now; empty if it can."""
        try:
            self._connection.call("GET", "/readyz", lambda _: None)
        except ApiError as error:
            if error.status != 503:
                raise
            return str(error.problem.get("detail") or error.problem.get("title"))
        return ""

    def _ended(self, job_id: str, deadline: float, timeout: float) -> Job:
        """Raises JobTimeout; see `until_ended`."""
        return until_ended(lambda seconds: self.get(job_id, wait=seconds), deadline, timeout)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _body(prompt: str | list[str] | None, params: Params) -> dict[str, Any]:
    return {**({} if prompt is None else {"prompt": prompt}), **params}


def _path(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"
