"""API keys: who may use the service, and how much. Redis keeps a digest of each secret, never it.

A token reads `slm_<key>_<secret>`; the first part names the key and may be shown, the second has
256 random bits.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from slm_jobs import keys
from slm_jobs.callback_urls import check_entry
from slm_jobs.connection import store_errors
from slm_jobs.errors import KeyRejected, NoSuchKey
from slm_jobs.records import fields, flattened, to_time
from slm_jobs.schemas import MAX_PRIORITY
from slm_jobs.scripts import register

if TYPE_CHECKING:
    from redis import Redis

_TOKEN = re.compile(r"slm_([a-z0-9]{10})_[A-Za-z0-9_-]{43}")
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_MOST = 2**36  # above it, the meters' whole numbers would no longer be exact


# As long as a name of DNS may be, with `*.` and a port.
CallbackHost = Annotated[
    str, StringConstraints(min_length=1, max_length=261), AfterValidator(check_entry)
]


class KeyProof(NamedTuple):
    """What a request shows for itself: the key it names, and the SHA-256 of its token."""

    key: str
    digest: str

    @classmethod
    def of(cls, token: str) -> KeyProof:
        """Raises KeyRejected for what is no token."""
        if not (match := _TOKEN.fullmatch(token)):
            raise KeyRejected
        return cls(match[1], hashlib.sha256(token.encode()).hexdigest())


class KeySettings(BaseModel):
    """What a key may do. null: no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=64, description="For people.")
    admin: bool = Field(False, description="Sees every job and manages keys.")
    requests_per_minute: int | None = Field(600, ge=1, le=_MOST)
    tokens_per_minute: int | None = Field(
        1_000_000,
        ge=1,
        le=_MOST,
        description="Prompt and max_tokens of every output; what was not used is given back.",
    )
    jobs_in_flight: int | None = Field(
        1_000, ge=1, le=_MOST, description="Queued and running jobs."
    )
    queued_tokens: int | None = Field(
        5_000_000, ge=1, le=_MOST, description="Tokens of jobs that wait."
    )
    batch_rows: int | None = Field(
        1_000_000, ge=1, le=_MOST, description="Rows of batches that wait."
    )
    batch_tokens: int | None = Field(
        1_000_000_000, ge=1, le=_MOST, description="Tokens of rows that wait."
    )
    max_priority: int = Field(0, ge=0, le=MAX_PRIORITY)
    callback_hosts: list[CallbackHost] = Field(
        default_factory=list,
        max_length=64,
        description="Where callbacks may go besides https on the public internet: `host`,"
        " `host:port`, `*.domain`, an address, or a CIDR. A host may then have http, any port and"
        " any address.",
    )


class ApiKey(KeySettings):
    """A key as people see it."""

    callback_hosts: list[str] = Field(description="Where callbacks may go besides.")
    id: str
    prefix: str = Field(description="The beginning of its token.")
    created_at: datetime
    revoked_at: datetime | None = None


class NewKey(ApiKey):
    """A key with its token, which is shown once and kept nowhere."""

    token: str


class KeyStore:
    """API keys in one Redis. Every method raises StoreUnavailable, as `JobStore` does."""

    def __init__(self, redis: Redis, *, clock_offset_ms: int = 0) -> None:
        self._redis = redis
        self._scripts = register(redis)
        self.clock_offset_ms = clock_offset_ms

    def authorise(self, proof: KeyProof) -> ApiKey:
        """Raises KeyRejected."""
        flat = self._run("authorise", *proof)
        if not flat:
            raise KeyRejected
        return _to_key(proof.key, fields(flat))

    def create(self, settings: KeySettings, *, token: str | None = None) -> NewKey:
        """A new key; with a `token`, the one that it names, made or replaced."""
        token = token or _new_token()
        proof = KeyProof.of(token)
        record = settings.model_dump(exclude_none=True)
        record |= {
            "digest": proof.digest,
            "admin": int(settings.admin),
            "callback_hosts": json.dumps(settings.callback_hosts),
        }
        flat = self._run("make_key", proof.key, *flattened(record))
        return _with_token(_to_key(proof.key, fields(flat)), token)

    def list(self) -> list[ApiKey]:
        """All keys, the oldest first, the revoked ones too."""
        with store_errors():
            ids = cast("list[str]", self._redis.zrange(keys.KEYS_MADE, 0, -1))
            pipeline = self._redis.pipeline(transaction=False)
            for key in ids:
                pipeline.hgetall(keys.KEY + key)
            records = pipeline.execute()
        return [_to_key(key, record) for key, record in zip(ids, records, strict=True) if record]

    def rotate(self, key: str) -> NewKey:
        """A new token for the key; the old one is dead at once. Raises NoSuchKey."""
        token = f"slm_{key}_{secrets.token_urlsafe(32)}"
        try:
            proof = KeyProof.of(token)
        except KeyRejected:
            raise NoSuchKey(key) from None
        if not (flat := self._run("rotate_key", *proof)):
            raise NoSuchKey(key)
        return _with_token(_to_key(key, fields(flat)), token)

    def revoke(self, key: str) -> None:
        """At once and for ever; its jobs run on. Raises NoSuchKey."""
        if not self._run("revoke_key", key):
            raise NoSuchKey(key)

    def _run(self, script: str, *args: str | int) -> Any:
        with store_errors():
            return self._scripts[script](args=[self.clock_offset_ms, *args])


def _new_token() -> str:
    key = "".join(secrets.choice(_LETTERS) for _ in range(10))
    return f"slm_{key}_{secrets.token_urlsafe(32)}"


def _with_token(key: ApiKey, token: str) -> NewKey:
    return NewKey(**key.model_dump(), token=token)


def _to_key(key: str, record: Mapping[str, str]) -> ApiKey:
    def number(name: str) -> int | None:
        return int(record[name]) if name in record else None

    return ApiKey(
        id=key,
        prefix=f"slm_{key}",
        name=record["name"],
        admin=record["admin"] == "1",
        created_at=to_time(record["created_at"]),
        revoked_at=to_time(record["revoked_at"]) if "revoked_at" in record else None,
        requests_per_minute=number("requests_per_minute"),
        tokens_per_minute=number("tokens_per_minute"),
        jobs_in_flight=number("jobs_in_flight"),
        queued_tokens=number("queued_tokens"),
        batch_rows=number("batch_rows"),
        batch_tokens=number("batch_tokens"),
        max_priority=int(record["max_priority"]),
        callback_hosts=json.loads(record["callback_hosts"]),
    )
