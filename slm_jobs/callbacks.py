"""CallbackStore: the outbox of callbacks. What happens to a job or batch writes its delivery in the
same script (`lua/prelude/outbox.lua`); callback processes claim what is due, and settle it.

Knows nothing of HTTP: how a delivery is signed and sent is the callback process's concern.
"""

from __future__ import annotations

import base64
import json
import logging
import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from slm_jobs import keys
from slm_jobs.batch_records import to_batch
from slm_jobs.callback_schemas import (
    Attempt,
    CallbackSecret,
    CallbackTarget,
    Delivery,
    DeliveryStatus,
    DueDelivery,
    Outcome,
)
from slm_jobs.callback_urls import split
from slm_jobs.connection import store_errors
from slm_jobs.errors import TooManyCallbacks
from slm_jobs.records import fields, to_job, to_time

if TYPE_CHECKING:
    from redis import Redis

    from slm_jobs.api_keys import ApiKey
    from slm_jobs.batches import Run

log = logging.getLogger(__name__)

MOST_ATTEMPTS = 50  # that are kept of a delivery
MOST_PENDING = 100_000  # deliveries of a key; each takes Redis about a KiB, and its outputs twice
SECRET_BYTES = 32
_COPY = "record_"  # in front of the names of copied fields
_JOB = {"id", "status", "model", "created_at", "started_at", "finished_at", "usage", "error"}
_JOB |= {"metadata"}
_BATCH = {"id", "status", "model", "counts", "usage", "created_at", "started_at", "finished_at"}
_BATCH |= {"errors", "name", "retry_of", "metadata"}


def target_fields(target: CallbackTarget | None, key: str, request_id: str = "") -> dict[str, str]:
    """What the record of a job or batch of `key` keeps of how to tell about it."""
    if target is None:
        return {}
    parts = split(target.url)
    return {
        "callback_url": target.url,
        "callback_events": " ".join(dict.fromkeys(target.events)),
        "callback_outputs": str(int(target.outputs)),
        "callback_link": target.link,
        "callback_lane": f"{key} {parts.host}:{parts.port}",
        "callback_request": request_id,
    }


class CallbackStore:
    """The callbacks of a `JobStore`, which makes it. Methods raise StoreUnavailable as its do.

    Delivery is at least once: a process that dies between a receiver's answer and `settle` leaves
    the delivery due again.
    """

    def __init__(self, redis: Redis, run: Run) -> None:
        self._redis = redis
        self._run = run
        self._process = secrets.token_hex(8)
        self._claim = self._answered = 0  # the number of the last, and of that whose reply came
        self._claiming = threading.Lock()

    # The callback process

    def claim(
        self,
        room: int,
        *,
        per_lane: int = 8,
        per_host: int = 32,
        running: Mapping[str, int] | None = None,
        limits: Mapping[str, int] | None = None,
        lease_seconds: float = 60.0,
    ) -> tuple[list[DueDelivery], float]:
        """Up to `room` deliveries that are due, and the seconds until more may be, 60 at most.

        `running` tells how many the caller has of each lane, the deliveries of one key to one host:
        `per_lane` at most, or what `limits` say of some. `per_host` is for the lanes of all keys to
        a host. A key is left as much room as it takes, at most: something stays free for others.

        A claim that is not settled lapses after `lease_seconds`. What one gave whose reply was lost
        comes again with the next.
        """
        running, limits = running or {}, limits or {}
        lanes = [
            part
            for lane in {**running, **limits}
            for part in (lane, running.get(lane, 0), limits.get(lane, per_lane))
        ]
        with self._claiming:  # they are numbered
            self._claim += 1
            wait_ms, found, signing = self._run(
                "callback_claim",
                room,
                per_lane,
                per_host,
                round(lease_seconds * 1000),
                self._process,
                self._claim,
                self._answered,
                _new_secret(),
                *lanes,
            )
            owners = dict(zip(signing[::2], signing[1::2], strict=True))
            due = [
                _to_due(delivery_id, lane, fields(flat), owners[lane.partition(" ")[0]])
                for delivery_id, lane, flat in found
            ]
            self._answered = self._claim
        return due, wait_ms / 1000

    def settle(self, outcomes: Sequence[Outcome]) -> list[bool]:
        """Writes how attempts ended, all in one call. False where the claim is stale; there nothing
        has changed."""
        if not outcomes:
            return []
        parts: list[Any] = []
        for outcome in outcomes:
            ended = DeliveryStatus.DELIVERED if outcome.delivered else DeliveryStatus.FAILED
            status = DeliveryStatus.PENDING if outcome.next is not None else ended
            pause_ms = round((outcome.next or 0) * 1000)
            attempt = outcome.attempt.model_dump_json()
            parts += [outcome.delivery_id, outcome.claim, attempt, status, pause_ms]
        settled = self._run("callback_settle", MOST_ATTEMPTS, *parts)
        return [bool(done) for done in settled]

    def release(self, claimed: Sequence[DueDelivery]) -> None:
        """Gives claims back that were not attempted, or not to their end."""
        if claimed:
            parts = (part for due in claimed for part in (due.id, due.claim))
            self._run("callback_release", *parts)

    # People

    def of(self, work_id: str, *, viewer: ApiKey | None = None) -> list[Delivery]:
        """The callbacks of a job or batch, which may be gone before them, the oldest first; none
        for a viewer who neither owns them nor is an admin."""
        with store_errors():
            ids = cast("list[str]", self._redis.lrange(keys.DELIVERIES_OF + work_id, 0, -1))
        return self._read(ids, None if viewer is None or viewer.admin else viewer.id)

    def failed(
        self, key: str, *, limit: int = 50, cursor: int | None = None
    ) -> tuple[list[Delivery], int | None]:
        """A key's dead-letter list: callbacks that were given up, the newest first, and the cursor
        of the next page; None after the last."""
        start = cursor or 0
        with store_errors():
            ids = cast(
                "list[str]",
                self._redis.zrevrange(keys.UNDELIVERED + key, start, start + limit),
            )
        return self._read(ids[:limit]), start + limit if len(ids) > limit else None

    def replay(self, delivery_ids: Sequence[str]) -> int:
        """Makes callbacks that were delivered, or given up, due once more, with the same ids and a
        fresh schedule. Returns how many; pending and unknown ones are left alone."""
        return int(self._run("callback_replay", *delivery_ids)) if delivery_ids else 0

    def check_room(self, key: str) -> None:
        """Raises TooManyCallbacks if as many of the key's are pending as may be."""
        with store_errors():
            pending = cast("str | None", self._redis.hget(keys.PENDING_CALLBACKS, key))
        if int(pending or 0) >= MOST_PENDING:
            raise TooManyCallbacks(MOST_PENDING)

    def secrets(self, key: str) -> list[CallbackSecret]:
        """What the key's callbacks are signed with, the newest first; made at the first call."""
        return self._secrets(key)

    def rotate_secret(self, key: str, *, overlap_seconds: int) -> list[CallbackSecret]:
        """A new secret signs from now on; the three before it sign, too, for `overlap_seconds`."""
        return self._secrets(key, overlap_seconds * 1000)

    def _secrets(self, key: str, *overlap_ms: int) -> list[CallbackSecret]:
        flat = self._run("callback_secrets", key, _new_secret(), *overlap_ms)
        return [
            CallbackSecret(secret=secret, expires_at=to_time(at) if at else None)
            for secret, at in fields(flat).items()
        ]

    def _read(self, ids: Iterable[str], key: str | None = None) -> list[Delivery]:
        """Those that there are; with a `key`, its own."""
        ids = list(ids)
        if not ids:
            return []
        found = zip(ids, self._run("callback_read", *ids), strict=True)
        return [
            _to_delivery(delivery_id, fields(flat), attempts, due)
            for delivery_id, (flat, attempts, due) in found
            if flat and key in (None, fields(flat)["key"])
        ]


def _to_delivery(
    delivery_id: str, record: Mapping[str, str], attempts: Sequence[str], due: str = ""
) -> Delivery:
    return Delivery(
        id=delivery_id,
        type=record["type"],
        of=record["of"],
        url=record["url"],
        status=DeliveryStatus(record["status"]),
        created_at=to_time(record["created_at"]),
        next_attempt_at=to_time(due) if due else None,
        attempts=[Attempt.model_validate_json(attempt) for attempt in attempts],
    )


def _to_due(
    delivery_id: str, lane: str, record: Mapping[str, str], owner: Sequence[Any]
) -> DueDelivery:
    """Of whatever a record holds: one that cannot be read must not hold up others."""
    hosts, revoked, signing = owner
    payload: bytes | None = None
    try:
        payload = _payload(record)
    except Exception:
        log.exception("callback %s cannot be read", delivery_id)
    return DueDelivery(
        id=delivery_id,
        type=record.get("type", ""),
        url=record.get("url", ""),
        payload=payload,
        tries=int(record.get("tries", 0)),
        claim=int(record["claim"]),
        lane=lane,
        secrets=tuple(fields(signing)),
        allowed=tuple(json.loads(hosts or "[]")),
        revoked=bool(revoked),
        request_id=record.get("request_id", ""),
    )


def _new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def _payload(record: Mapping[str, str]) -> bytes:
    """The body, of what was copied when it happened, so that each attempt sends the same."""
    copy = {name.removeprefix(_COPY): v for name, v in record.items() if name.startswith(_COPY)}
    about: dict[str, Any]
    if record["of"].startswith("batch_"):
        batch = to_batch(record["of"], copy, int(record["created_at"]))
        about = batch.model_dump(mode="json", include=_BATCH)
    else:
        outputs = {"outputs"} if "outputs" in copy else set()
        about = to_job(record["of"], copy).model_dump(mode="json", include=_JOB | outputs)
    document = {
        "type": record["type"],
        "timestamp": to_time(record["created_at"]).isoformat().replace("+00:00", "Z"),
        "data": {**about, "url": record["link"] or None},
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
