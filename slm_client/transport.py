"""HTTP with one service: the key, what is sent again and when, and what errors say. Knows no routes
and no jobs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

import httpx

from slm_client.errors import ApiError, BadInput, ServiceUnreachable

# The request did not leave this machine.
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
# Refused before anything was done: come back later.
_REFUSED = ("queue_full", "not_ready")  # the codes of such a 503; a 429 always is one
# What was asked may have been done: of a proxy, or of a service that lost its store meanwhile.
_PERHAPS_DONE = (502, 503, 504)
# An upload that takes longer flows: what is accepted at once may be held by buffers on the way.
_FLOWS_AFTER = 5.0  # seconds
_MOST_FLOWS = 5  # uploads that flowed, and broke off all the same
_STREAM_SILENCE = 60.0  # seconds; a stream that lives says something more often
_PAGE = 100  # entries of a list
COME_AGAIN = (429, 502, 503, 504)  # to a stream, which changes nothing

T = TypeVar("T")
Query: TypeAlias = Mapping[str, str | Sequence[str]]
Again: TypeAlias = Callable[[ApiError | ServiceUnreachable], None]


class Patience:
    """How long to go on trying: `seconds` from the first trouble after things last went well."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        """Things go well."""
        self._deadline: float | None = None
        self._pauses = growing(0.05, 2.0)

    def pause(self, problem: ApiError | ServiceUnreachable) -> None:
        """Sleeps until the next try. Raises the problem if that would be too late."""
        at_least = problem.retry_after if isinstance(problem, ApiError) else 0.0
        now, pause = time.monotonic(), max(next(self._pauses), at_least)
        if self._deadline is None:
            self._deadline = now + self._seconds
        if now + pause > self._deadline:
            raise problem
        time.sleep(pause)


class _Flow:
    """Renews the patience as long as bytes of an upload are taken, a few times over."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._left = _MOST_FLOWS

    def of(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        began, flows = time.monotonic(), False
        for chunk in chunks:
            yield chunk
            if not flows and self._left and time.monotonic() - began >= _FLOWS_AFTER:
                self._left -= 1
                flows = True
            if flows:
                self._patience.renew()


class Connection:
    """See `Client` for what the arguments mean. `api_key` None: none is sent."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        timeout: float,
        retry_for: float,
        transport: httpx.BaseTransport | None,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ServiceUnreachable(f"{base_url!r} is no address: it needs http:// in front")
        self.base_url = base_url.rstrip("/")
        self.retry_for = retry_for
        self._timeout = timeout
        self._key = api_key
        if api_key and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise BadInput("the API key holds what no key has: white space or odd characters")
        try:
            # trust_env: a proxy from the environment has no business between us and loopback.
            self._http = httpx.Client(
                base_url=self.base_url,
                headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
                timeout=timeout,
                trust_env=False,
                transport=transport,
            )
        except httpx.InvalidURL as error:
            raise ServiceUnreachable(f"{base_url!r} is no address: {error}") from None

    def call(
        self,
        method: str,
        path: str,
        read: Callable[[Any], T],
        *,
        body: dict[str, Any] | None = None,
        query: Query | None = None,
        headers: dict[str, str] | None = None,
        wait: float = 0.0,
        repeatable: bool = True,
    ) -> T:
        """One request, tried again while that is safe and in time; its answer through `read`.

        `wait`: seconds for which the service was asked to hold its answer back. `repeatable`: that
        it may be done twice, so that it is sent again when it is unknown whether it was done.
        """
        response = self.send(
            method,
            path,
            body=body,
            query=query,
            headers=headers,
            wait=wait,
            repeatable=repeatable,
        )
        return self.read(response, read)

    def send(
        self,
        method: str,
        path: str,
        *,
        body: dict[str, Any] | None = None,
        content: Callable[[], Iterable[bytes]] | None = None,
        query: Query | None = None,
        headers: dict[str, str] | None = None,
        wait: float = 0.0,
        repeatable: bool = True,
        on_again: Again | None = None,
    ) -> httpx.Response:
        """As `call`, but the successful answer as it is. `content` gives the bytes to send, anew
        for each try; `headers` then say how many. `on_again` is told why they are sent again."""
        patience = Patience(self.retry_for)
        flow = _Flow(patience)
        timeout = httpx.Timeout(self._timeout, read=self._timeout + wait)
        perhaps_done = False
        while True:
            problem: ApiError | ServiceUnreachable
            try:
                response = self._http.request(
                    method,
                    path,
                    json=body,
                    content=flow.of(content()) if content else None,
                    params=query,
                    headers=headers,
                    timeout=timeout,
                )
            except httpx.TransportError as error:
                problem = self.unreachable(error)
                never_sent = isinstance(error, _NEVER_SENT)
                if not (repeatable or never_sent):
                    raise problem from error
                perhaps_done |= not never_sent
            else:
                status = response.status_code
                # What we deleted, but were not told, is not there any more.
                if response.is_success or (method == "DELETE" and status == 404 and perhaps_done):
                    return response
                problem = self.api_error(response)
                if not _refused(problem):
                    if not (repeatable and status in _PERHAPS_DONE):
                        raise problem
                    perhaps_done = True
            patience.pause(problem)
            if on_again:
                on_again(problem)

    def pages(
        self,
        path: str,
        read: Callable[[Any], T],
        *,
        query: dict[str, str] | None = None,
        limit: int | None = None,
    ) -> Iterator[T]:
        """What a list has, page by page, each entry through `read`; at most `limit`."""

        def read_page(page: Any) -> tuple[list[T], str | None]:
            return [read(entry) for entry in page["data"]], page["next_cursor"]

        query, left = dict(query or {}), limit
        while left is None or left > 0:
            query["limit"] = str(_PAGE if left is None else min(left, _PAGE))
            found, cursor = self.call("GET", path, read_page, query=query)
            yield from found
            left = None if left is None else left - len(found)
            if cursor is None:
                return
            query["cursor"] = cursor

    @contextmanager
    def open_stream(
        self, path: str, headers: dict[str, str], query: Query | None = None
    ) -> Iterator[httpx.Response]:
        """A GET whose answer comes bit by bit. Tries once: raises ApiError or TransportError."""
        timeout = httpx.Timeout(self._timeout, read=_STREAM_SILENCE)
        with self._http.stream(
            "GET", path, params=query, headers=headers, timeout=timeout
        ) as response:
            if not response.is_success:
                response.read()
                raise self.api_error(response)
            yield response

    def succeeds(self, path: str, timeout: float) -> bool:
        """Whether a GET does. Never retries, never raises."""
        try:
            return self._http.get(path, timeout=timeout).status_code == 200
        except httpx.HTTPError:
            return False

    def close(self) -> None:
        self._http.close()

    def unreachable(self, error: httpx.TransportError) -> ServiceUnreachable:
        if isinstance(error, _NEVER_SENT):
            return ServiceUnreachable(f"nothing answers at {self.base_url}; is `slm up` running?")
        reason = str(error) or type(error).__name__
        return ServiceUnreachable(f"{self.base_url} broke off before it answered: {reason}")

    def api_error(self, response: httpx.Response) -> ApiError:
        """What a response says that is no success, or that could not be read as one."""
        try:
            problem = None if response.is_success else response.json()
        except ValueError:
            problem = None
        if not isinstance(problem, dict) or "title" not in problem:
            problem = {
                "title": f"unexpected answer from {response.url}; is that our service?",
                "code": "unexpected_answer",
            }
        status = response.status_code
        return ApiError(status, problem, self._advice(status), _retry_after(response))

    def read(self, response: httpx.Response, read: Callable[[Any], T]) -> T:
        """The answer's JSON through `read`. Raises ApiError if it is not what `read` can."""
        try:
            return read(response.json() if response.content else None)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self.api_error(response) from None

    def _advice(self, status: int) -> str:
        if status == 401 and self._key is None:
            return "No API key was sent: set SLM_API_KEY; `slm up` says where its own key is."
        if status == 401:
            name = re.match(r"slm_[a-z0-9]{10}_", self._key or "")  # which may be shown
            shown = f" {name[0]}…" if name else ""
            return f"The API key{shown} is wrong or was revoked; is SLM_API_KEY the right one?"
        if status == 403:
            return "Another API key may; an admin key changes what a key may do (`slm keys`)."
        return ""


def growing(first: float, most: float) -> Iterator[float]:
    """Pauses in seconds, each half as long again as the last."""
    pause = first
    while True:
        yield pause
        pause = min(pause * 1.5, most)


def _refused(problem: ApiError) -> bool:
    """Whether it says that nothing was done, and that it may be later."""
    return problem.status == 429 or (problem.status == 503 and problem.code in _REFUSED)


def _retry_after(response: httpx.Response) -> float:
    """Seconds; 0 if there is none, or it is a date."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isdecimal() else 0.0
