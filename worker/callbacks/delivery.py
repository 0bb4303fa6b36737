"""One attempt to deliver a callback: signed by the Standard Webhooks specification, sent once,
judged. Knows nothing of Redis.

What the `error` of an attempt says; this table is part of the HTTP API:

    address_refused   the URL may not be called; or its name has an address now that may not, or
                      none: see `slm_jobs.callback_urls`
    dns_failed        nobody could say which addresses its name has, or not in time
    connect_failed    nobody accepts connections there, or not in time
    tls_failed        it speaks no TLS, or its certificate is not trusted, or not for this name
    timeout           it had not answered when the attempt's time was over
    connection_lost   it hung up before it answered
    bad_response      it answered something that is not HTTP
    http_<status>     it answered anything but 2xx; redirects are not followed, a 410 ends it
    key_revoked       the API key was revoked: nothing was sent, and nothing will be
    internal_error    our own mistake, which the log of the callback process tells
"""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from secrets import SystemRandom
from typing import NamedTuple

import httpcore
from standardwebhooks import Webhook

from slm_jobs.callback_schemas import Attempt, DueDelivery, Outcome
from slm_jobs.callback_urls import UrlParts, check_url, split
from slm_jobs.errors import CallbackUrlRefused
from slm_jobs.lookups import Resolve, resolve
from slm_jobs.settings import Settings
from worker.callbacks.network import GuardedNetwork, NoAnswer

log = logging.getLogger(__name__)

# The receiver could not be talked to: it may hang, or be gone.
UNREACHABLE = frozenset({"dns_failed", "connect_failed", "tls_failed", "timeout"})

_GONE = 410
_REVOKED = "key_revoked"
_COME_LATER = (429, 503)  # with Retry-After
_LONGEST_WAIT = 86_400  # seconds that a receiver may ask for
_JITTER = 0.1  # of a pause, at most; so that what failed together does not come back together
_MOST_BODY = 16_384  # bytes of a response that are read
_MOST_KEPT = 512  # characters of these
_BODY_SECONDS = 1.0  # for these: the status has already said all


class _Answer(NamedTuple):
    """What came of sending."""

    error: str | None
    status: int | None = None
    response: str = ""
    retry_after: float = 0.0


class Sender:
    """Makes attempts, any number at a time. `resolver` gives who looks names up for a key."""

    def __init__(
        self,
        settings: Settings,
        *,
        resolver: Callable[[str], Resolve] = lambda _key: resolve,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._schedule = settings.callback_schedule_seconds
        self._timeout = settings.callback_timeout_seconds
        self._connect_timeout = settings.callback_connect_timeout_seconds
        self._resolver = resolver
        self._tls = tls or httpcore.default_ssl_context()
        self._agent = f"slm-jobs/{version('slm-jobs')}"
        self._random = SystemRandom()

    async def attempt(self, due: DueDelivery) -> Outcome:
        """Sends it, and says what is to become of it. Raises nothing."""
        at, began = datetime.now(UTC), time.monotonic()
        answer = await self._try(due, at)
        attempt = Attempt(
            at=at,
            duration_ms=round((time.monotonic() - began) * 1000),
            status=answer.status,
            error=answer.error,
            response=answer.response,
        )
        pause = self._pause(due, answer) if answer.error else None
        return Outcome(due.id, due.claim, attempt, pause, delivered=not answer.error)

    def _pause(self, due: DueDelivery, answer: _Answer) -> float | None:
        """Seconds until the next attempt; None: there is none."""
        following = due.tries + 1
        ended = answer.status == _GONE or answer.error == _REVOKED
        if ended or following >= len(self._schedule):
            return None
        pause = max(self._schedule[following], answer.retry_after)
        return pause * self._random.uniform(1, 1 + _JITTER)

    async def _try(self, due: DueDelivery, at: datetime) -> _Answer:
        if due.revoked:
            return _Answer(_REVOKED)
        if due.payload is None:
            return _Answer("internal_error")
        try:
            parts = split(check_url(due.url, due.allowed))
            return await self._post(parts, due, due.payload, at)
        except CallbackUrlRefused:
            return _Answer("address_refused")
        except NoAnswer:
            return _Answer("dns_failed")
        except TimeoutError:
            return _Answer("timeout")
        except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
            by_tls = any(isinstance(cause, ssl.SSLError) for cause in _causes(error))
            return _Answer("tls_failed" if by_tls else "connect_failed")
        except httpcore.RemoteProtocolError as error:
            return _Answer("bad_response" if error.__cause__ else "connection_lost")
        except (httpcore.NetworkError, OSError):
            return _Answer("connection_lost")
        except Exception:
            log.exception("delivery %s cannot be sent", due.id)
            return _Answer("internal_error")

    async def _post(
        self, parts: UrlParts, due: DueDelivery, payload: bytes, at: datetime
    ) -> _Answer:
        url = httpcore.URL(
            scheme=parts.scheme, host=parts.host, port=parts.port, target=parts.target
        )
        request = httpcore.Request(
            "POST",
            url,
            headers=self._headers(parts, due, payload, at),
            content=payload,
            extensions={"timeout": {"connect": self._connect_timeout}},
        )
        network = GuardedNetwork(due.allowed, self._resolver(due.key))
        connection = httpcore.AsyncHTTPConnection(
            url.origin, ssl_context=self._tls, network_backend=network
        )
        try:
            async with asyncio.timeout(self._timeout):
                response = await connection.handle_async_request(request)
            # It has answered: what comes now, or does not come, changes nothing.
            status = response.status
            return _Answer(
                error=None if 200 <= status < 300 else f"http_{status}",
                status=status,
                response=await _beginning(response),
                retry_after=_retry_after(response, at) if status in _COME_LATER else 0.0,
            )
        finally:
            with suppress(Exception):
                await connection.aclose()

    def _headers(
        self, parts: UrlParts, due: DueDelivery, payload: bytes, at: datetime
    ) -> list[tuple[bytes | str, bytes | str]]:
        body = payload.decode()
        signatures = [Webhook(secret).sign(due.id, at, body) for secret in due.secrets]
        return [
            ("host", parts.origin),
            ("content-type", "application/json"),
            ("content-length", str(len(payload))),
            ("user-agent", self._agent),
            ("accept", "*/*"),
            ("accept-encoding", "identity"),
            ("connection", "close"),
            ("webhook-id", due.id),
            ("webhook-timestamp", str(math.floor(at.timestamp()))),
            ("webhook-signature", " ".join(signatures)),
        ]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


async def _beginning(response: httpcore.Response) -> str:
    """How its body begins, as far as that comes soon: a slow body makes no difference."""
    body = b""
    with suppress(Exception):
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in response.aiter_stream():
                body += part
                if len(body) >= _MOST_BODY:
                    break
    return body[:_MOST_BODY].decode(errors="replace")[:_MOST_KEPT]


def _retry_after(response: httpcore.Response, now: datetime) -> float:
    """Seconds for which the receiver wants to be left alone, a day at most."""
    values = [value for name, value in response.headers if name.lower() == b"retry-after"]
    text = values[0].decode("ascii", "replace").strip() if values else ""
    if text.isascii() and text.isdigit():
        return float(min(int(text[:9]), _LONGEST_WAIT))
    with suppress(Exception):  # the library raises many kinds for what is no date
        until = parsedate_to_datetime(text)
        until = until if until.tzinfo else until.replace(tzinfo=UTC)
        return min(max((until - now).total_seconds(), 0.0), _LONGEST_WAIT)
    return 0.0
