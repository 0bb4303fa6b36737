"""CallbackStore: the outbox of callbacks. What happens to a job or batch writes its delivery in the
same script (`lua/prelude/outbox.lua`); callback processes claim what is due, and settle it.

Knows nothing of HTTP: how a delivery is signed and sent is the callback process's concern.
"""

from __future__ import annotations

import base64
import json
import secrets
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
from slm_jobs.records import fields, to_job, to_time

if TYPE_CHECKING:
    from redis import Redis

    from slm_jobs.api_keys import ApiKey
    from slm_jobs.batches import Run

MOST_ATTEMPTS = 50  # that are kept of a delivery
SECRET_BYTES = 32
_COPY = "record_"  # in front of the names of copied fields
_JOB = {"id", "status", "model", "created_at", "started_at", "finished_at", "usage", "error"}
_JOB |= {"metadata"}
_BATCH = {"id", "status", "model", "counts", "usage", "created_at", "started_at", "finished_at"}
_BATCH |= {"errors", "name", "retry_of", "metadata"}


def target_fields(target: CallbackTarget | None, key: str) -> dict[str, str]:
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
    }


class CallbackStore:
    """The callbacks of a `JobStore`, which makes it. Methods raise StoreUnavailable as its do.

    Delivery is at least once: a process that dies between a receiver's answer and `settle` leaves
    the delivery due again.
    """

    def __init__(self, redis: Redis, run: Run) -> None:
        self._redis = redis
        self._run = run

    # The callback process

    def claim(
        self,
        room: int,
        *,
        per_lane: int = 8,
        per_key: int = 128,
        busy: Mapping[str, int] | None = None,
        lease_seconds: float = 60.0,
    ) -> tuple[list[DueDelivery], float]:
        """Up to `room` deliveries that are due, and the seconds until more may be, 60 at most.

        Of a lane, the deliveries of one key to one host, the caller holds `per_lane` at most, and
        `per_key` of all of a key's; `busy` tells how many it holds of each lane and each key. A
        claim that is not settled lapses after `lease_seconds`.
        """
        held = (part for pair in (busy or {}).items() for part in pair)
        wait_ms, found = self._run(
            "callback_claim", room, per_lane, per_key, round(lease_seconds * 1000), *held
        )
        records = [(entry[0], entry[1], fields(entry[2]), entry[3]) for entry in found]
        # An entry without a record was deleted by hand.
        records = [entry for entry in records if "of" in entry[2]]
        known = {
            key: (
                tuple(secret.secret for secret in self.secrets(key)),
                self._allowed(key),
            )
            for key in {record["key"] for _, _, record, _ in records}
        }
        due = [
            DueDelivery(
                delivery=_to_delivery(delivery_id, record, attempts),
                payload=_payload(record),
                tries=int(record["tries"]),
                claim=claim,
                lane=record["lane"],
                secrets=known[record["key"]][0],
                allowed=known[record["key"]][1],
            )
            for delivery_id, claim, record, attempts in records
        ]
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
            parts = (part for due in claimed for part in (due.delivery.id, due.claim))
            self._run("callback_release", *parts)

    # People

    def of(self, work_id: str, *, viewer: ApiKey | None = None) -> list[Delivery]:
        """The callbacks of a job or batch, which may be gone before them, the oldest first; none
        for a viewer who neither owns them nor is an admin."""
        with store_errors():
            ids = cast("list[str]", self._redis.lrange(keys.DELIVERIES_OF + work_id, 0, -1))
        return self._read(ids, None if viewer is None or viewer.admin else viewer.id)

    def owner(self, work_id: str) -> str | None:
        """The key whose job or batch it is, or was: callbacks outlive it. None: it has none."""
        with store_errors():
            first = cast("str | None", self._redis.lindex(keys.DELIVERIES_OF + work_id, 0))
            if first is None:
                return None
            return cast("str | None", self._redis.hget(keys.DELIVERY + first, "key"))

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

    def secrets(self, key: str) -> list[CallbackSecret]:
        """What the key's callbacks are signed with, the newest first; made at the first call."""
        return self._secrets(key)

    def rotate_secret(self, key: str, *, overlap_seconds: int) -> list[CallbackSecret]:
        """A new secret signs from now on; the one before signs, too, for `overlap_seconds`."""
        return self._secrets(key, overlap_seconds * 1000)

    def _secrets(self, key: str, *overlap_ms: int) -> list[CallbackSecret]:
        candidate = "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
        flat = self._run("callback_secrets", key, candidate, *overlap_ms)
        return [
            CallbackSecret(secret=secret, expires_at=None if at == "inf" else to_time(at))
            for secret, at in fields(flat).items()
        ]

    def _allowed(self, key: str) -> tuple[str, ...]:
        with store_errors():
            stored = cast("str | None", self._redis.hget(keys.KEY + key, "callback_hosts"))
        return tuple(json.loads(stored or "[]"))

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
