"""The API keys of a service, for those who hold an admin key."""

from __future__ import annotations

from typing import Any, TypedDict, Unpack
from urllib.parse import quote

from slm_client.transport import Connection


class KeySettings(TypedDict, total=False):
    """What a key may do; None is no limit. What is left out takes the service's default.

    Tokens are those of prompts and of what may be generated, per minute or waiting.
    """

    admin: bool
    requests_per_minute: int | None
    tokens_per_minute: int | None
    jobs_in_flight: int | None
    queued_tokens: int | None
    batch_rows: int | None
    batch_tokens: int | None
    max_priority: int
    callback_hosts: list[str]


class Keys:
    """`client.keys`. A key is the service's document: `id`, `name`, `prefix`, `revoked_at`, …

    Every call may raise ServiceUnreachable and ApiError; with a key that is no admin's, status 403.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def create(self, name: str, **settings: Unpack[KeySettings]) -> dict[str, Any]:
        """The new key with its `token`, which is not shown again.

        Not repeated where the key may be there already, though nobody has its token: if the answer
        was lost, or the service's store did not answer.
        """
        body = {"name": name, **settings}
        return self._connection.call("POST", "/admin/keys", dict, body=body, repeatable=False)

    def list(self) -> list[dict[str, Any]]:
        """All keys, the revoked ones too; never their tokens."""
        return self._connection.call("GET", "/admin/keys", lambda answer: list(answer["data"]))

    def rotate(self, key_id: str) -> dict[str, Any]:
        """The key with a new `token`; the one before is dead at once."""
        return self._connection.call("POST", f"/admin/keys/{quote(key_id, safe='')}/rotate", dict)

    def revoke(self, key_id: str) -> None:
        """At once and for ever."""
        path = f"/admin/keys/{quote(key_id, safe='')}"
        self._connection.call("DELETE", path, lambda _: None)
