"""The HTTP client: submit a job, wait for it, read it. Knows no queue, no model, no Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from slm_client import bulk
from slm_client.errors import ApiError, JobFailed, JobTimeout, ServiceUnreachable
from slm_client.job import Job, Params
from slm_client.rows import Row

DEFAULT_URL = "http://127.0.0.1:8000"

# The request did not leave this machine, so even a POST may be sent again.
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_NOT_ACCEPTED = (429, 503)  # by their meaning: nothing was done, come back later
_GATEWAY = (502, 504)  # a proxy that found no service; whether it acted is unknown

T = TypeVar("T")


class Client:
    """Talks to one service. Use it as a context manager, or call `close()`.

    `timeout` is the seconds that one HTTP request may take. While the service is away (connection
    refused or reset, 429, 503), a call tries again for up to `retry_for` seconds. A `POST` whose
    answer was lost is not sent again, since it may have made a job.

    Every call may raise ServiceUnreachable and ApiError.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        timeout: float = 30.0,
        retry_for: float = 10.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ServiceUnreachable(f"{base_url!r} is no address: it needs http:// in front")
        self.base_url = base_url.rstrip("/")
        self.retry_for = retry_for
        try:
            # trust_env: a proxy from the environment has no business between us and loopback.
            self._http = httpx.Client(
                base_url=self.base_url, timeout=timeout, trust_env=False, transport=transport
            )
        except httpx.InvalidURL as error:
            raise ServiceUnreachable(f"{base_url!r} is no address: {error}") from None

    def submit(self, prompt: str | list[str], **params: Unpack[Params]) -> Job:
        """Queues a job and returns it as it stands: `queued`."""
        return self.submit_body({"prompt": prompt, **params})

    def submit_body(self, body: dict[str, Any], *, at_least_once: bool = False) -> Job:
        """`POST /jobs`. `at_least_once`: sent again if the answer was lost; perhaps two jobs."""
        return self._call("POST", "/jobs", Job.from_json, body=body, repeatable=at_least_once)

    def get(self, job_id: str) -> Job:
        return self._call("GET", f"/jobs/{job_id}", Job.from_json)

    def wait(self, job_id: str, timeout: float = 300.0) -> Job:
        """The job once it has ended in any way. Raises JobTimeout after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        for pause in growing(0.02, 1.0):
            job = self.get(job_id)
            if job.ended:
                return job
            left = deadline - time.monotonic()
            if left <= 0:
                raise JobTimeout(f"{job_id} is still {job.status} after {timeout:g} s")
            time.sleep(min(pause, left))
        raise AssertionError("growing() does not end")

    def generate(
        self, prompt: str | list[str], *, wait_for: float = 300.0, **params: Unpack[Params]
    ) -> Job:
        """Submits, waits up to `wait_for` seconds, and returns the succeeded job.

        Raises JobFailed if it ended otherwise, and JobTimeout.
        """
        job = self.wait(self.submit(prompt, **params).id, wait_for)
        if not job.succeeded:
            raise JobFailed(job)
        return job

    def bulk(
        self, rows: Iterable[Row | str], *, window: int = 256, **params: Unpack[Params]
    ) -> Iterator[bulk.RowResult]:
        """Generates for every row, at most `window` at once; yields each result as it comes.

        With a seed, row i (from 0) takes seed + i. A row that the service rejects or fails yields
        a result with `error`; the others go on.
        """
        return bulk.run(self, rows, window, params)

    def models(self) -> list[dict[str, Any]]:
        """What can be asked for: `name`, `context_length`, `default`, `workers`."""

        def read(document: Any) -> list[dict[str, Any]]:
            return [{"name": model["name"], **model} for model in document["data"]]

        return self._call("GET", "/models", read)

    def ready(self) -> bool:
        """Whether the service can take and run a job now. Never retries, never raises."""
        try:
            return self._http.get("/readyz", timeout=2.0).status_code == 200
        except httpx.HTTPError:
            return False

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _call(
        self,
        method: str,
        path: str,
        read: Callable[[Any], T],
        *,
        body: dict[str, Any] | None = None,
        repeatable: bool = True,
    ) -> T:
        """One request, tried again while that is safe and in time; its answer through `read`."""
        deadline = time.monotonic() + self.retry_for
        for pause in growing(0.05, 2.0):
            problem: ApiError | ServiceUnreachable
            try:
                response = self._http.request(method, path, json=body)
            except httpx.TransportError as error:
                problem = self._unreachable(error)
                if not (repeatable or isinstance(error, _NEVER_SENT)):
                    raise problem from error
            else:
                if response.is_success:
                    return self._read(response, read)
                problem = self._api_error(response)
                status = response.status_code
                if status not in _NOT_ACCEPTED and not (repeatable and status in _GATEWAY):
                    raise problem
                pause = max(pause, _retry_after(response))
            if time.monotonic() + pause > deadline:
                raise problem
            time.sleep(pause)
        raise AssertionError("growing() does not end")

    def _unreachable(self, error: httpx.TransportError) -> ServiceUnreachable:
        if isinstance(error, _NEVER_SENT):
            return ServiceUnreachable(f"nothing answers at {self.base_url}; is `slm up` running?")
        reason = str(error) or type(error).__name__
        return ServiceUnreachable(f"{self.base_url} broke off before it answered: {reason}")

    def _read(self, response: httpx.Response, read: Callable[[Any], T]) -> T:
        try:
            return read(response.json())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self._api_error(response) from None

    def _api_error(self, response: httpx.Response) -> ApiError:
        try:
            problem = response.json()
        except ValueError:
            problem = None
        if response.is_success or not isinstance(problem, dict) or "title" not in problem:
            problem = {
                "title": f"unexpected answer from {response.url}; is that our service?",
                "code": "unexpected_answer",
            }
        return ApiError(response.status_code, problem)


def growing(first: float, most: float) -> Iterator[float]:
    """Pauses in seconds, each half as long again as the last."""
    pause = first
    while True:
        yield pause
        pause = min(pause * 1.5, most)


def _retry_after(response: httpx.Response) -> float:
    """Seconds; 0 if there is none, or it is a date."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isdecimal() else 0.0
