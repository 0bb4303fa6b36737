"""Callbacks: what became of those of a job or batch, how to send them again, and the secrets that
they are signed with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote

from slm_client.job import read_time
from slm_client.transport import Connection

_DAY = 86_400  # seconds


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try to deliver. `status` is that of the HTTP response, None if there was none; `error` a
    stable code, None if the receiver took it; `response` how the response's body began."""

    at: datetime
    duration_ms: int
    status: int | None
    error: str | None
    response: str

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Attempt:
        return cls(
            at=datetime.fromisoformat(document["at"]),
            duration_ms=document["duration_ms"],
            status=document.get("status"),
            error=document.get("error"),
            response=document.get("response") or "",
        )


@dataclass(frozen=True, slots=True)
class Delivery:
    """A callback: something that happened to the job or batch `of`, and how far telling it has
    come. `status` is `pending`, `delivered`, or `failed`: given up. `id` is also its `webhook-id`.
    `raw` is the whole document, with what this version does not know."""

    id: str
    type: str
    of: str
    url: str
    status: str
    created_at: datetime
    next_attempt_at: datetime | None
    attempts: tuple[Attempt, ...]
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Delivery:
        """Raises KeyError, TypeError or ValueError if `document` is no delivery."""
        return cls(
            id=document["id"],
            type=document["type"],
            of=document["of"],
            url=document["url"],
            status=document["status"],
            created_at=datetime.fromisoformat(document["created_at"]),
            next_attempt_at=read_time(document.get("next_attempt_at")),
            attempts=tuple(map(Attempt.from_json, document.get("attempts") or ())),
            raw=document,
        )


@dataclass(frozen=True, slots=True)
class CallbackSecret:
    """`expires_at` None: the current one, with which receivers verify from now on."""

    secret: str = field(repr=False)
    expires_at: datetime | None
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> CallbackSecret:
        return cls(document["secret"], read_time(document.get("expires_at")), document)


class Callbacks:
    """`client.callbacks`. Every call may raise ServiceUnreachable and ApiError."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def of(self, work_id: str) -> list[Delivery]:
        """Those of a job or batch, the oldest first."""
        return self._connection.call("GET", _path(work_id), _read_deliveries)

    def replay(self, work_id: str) -> int:
        """Sends those of a job or batch again that are not pending anyway, with their old ids;
        returns how many. Raises ApiError `nothing_to_replay` if there are none."""

        def read(answer: Any) -> int:
            return int(answer["replayed"])

        return self._connection.call("POST", f"{_path(work_id)}/replay", read)

    def failed(self, *, limit: int | None = None) -> Iterator[Delivery]:
        """Those of your jobs and batches that were given up, the newest first, at most `limit`."""
        return self._connection.pages("/callbacks", Delivery.from_json, limit=limit)

    def secrets(self) -> list[CallbackSecret]:
        """What callbacks of your API key are signed with, the current secret first."""
        return self._connection.call("GET", "/callbacks/secret", _read_secrets)

    def rotate_secret(self, *, overlap_seconds: int = _DAY) -> list[CallbackSecret]:
        """Makes a new secret, which signs from now on; those before sign too for so long.

        Not repeated where it may have been done: `secrets` tells whether it was.
        """
        return self._connection.call(
            "POST",
            "/callbacks/secret/rotate",
            _read_secrets,
            body={"overlap_seconds": overlap_seconds},
            repeatable=False,
        )


def _read_deliveries(answer: Any) -> list[Delivery]:
    return [Delivery.from_json(document) for document in answer["data"]]


def _read_secrets(answer: Any) -> list[CallbackSecret]:
    return [CallbackSecret.from_json(document) for document in answer["secrets"]]


def _path(work_id: str) -> str:
    kind = "batches" if work_id.startswith("batch_") else "jobs"
    return f"/{kind}/{quote(work_id, safe='')}/callbacks"
