"""`/admin`: API keys over HTTP, for admin keys."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path
from pydantic import BaseModel

from api.auth import Admin
from api.body import json_bytes, parse
from api.documentation import BODY_PROBLEMS, json_body, problems
from api.links import KEY_LINKS
from slm_jobs.api_keys import ApiKey, KeySettings, KeyStore, NewKey

KeyId = Annotated[str, Path(alias="id", description="The middle part of its token.")]
_DENIED = ("unauthorised", "forbidden", "store_unavailable")
_BODY: dict[str, Any] = json_body(
    KeySettings,
    simple={"summary": "With the usual limits", "value": {"name": "reports"}},
    receiver={
        "summary": "With a receiver of callbacks on our network",
        "value": {"name": "mailer", "callback_hosts": ["mailer.internal:8080", "10.2.0.0/16"]},
    },
    small={
        "summary": "Little, and slowly",
        "value": {"name": "intern", "requests_per_minute": 10, "tokens_per_minute": 20_000},
    },
    unlimited={
        "summary": "Without limits",
        "value": {
            "name": "batch",
            "requests_per_minute": None,
            "tokens_per_minute": None,
            "jobs_in_flight": None,
            "queued_tokens": None,
            "batch_rows": None,
            "batch_tokens": None,
        },
    },
)


class Keys(BaseModel):
    data: list[ApiKey]


def router(keys: KeyStore) -> APIRouter:
    routes = APIRouter(prefix="/admin/keys", tags=["admin"])

    @routes.post(
        "",
        status_code=201,
        summary="Make an API key",
        response_description="The key, and its token for the only time.",
        openapi_extra={"requestBody": _BODY},
        responses={
            201: {"links": KEY_LINKS},
            **problems(*_DENIED, *BODY_PROBLEMS),
        },
    )
    def create_key(admin: Admin, body: Annotated[bytes, Depends(json_bytes)]) -> NewKey:  # noqa: ARG001
        """Keep `token`: the service has only a digest of it."""
        return keys.create(parse(KeySettings, body))

    @routes.get("", summary="List the API keys", responses={**problems(*_DENIED)})
    def list_keys(admin: Admin) -> Keys:  # noqa: ARG001
        """Without their tokens; the revoked ones too."""
        return Keys(data=keys.list())

    @routes.post(
        "/{id}/rotate",
        summary="Change the token of an API key",
        response_description="The key, and its new token for the only time.",
        responses={**problems(*_DENIED, "key_not_found")},
    )
    def rotate_key(admin: Admin, key: KeyId) -> NewKey:  # noqa: ARG001
        """The old token is dead at once; limits and jobs stay."""
        return keys.rotate(key)

    @routes.delete(
        "/{id}",
        status_code=204,
        summary="Revoke an API key",
        response_description="It is refused from now on; its jobs run on.",
        responses={**problems(*_DENIED, "key_not_found")},
    )
    def revoke_key(admin: Admin, key: KeyId) -> None:  # noqa: ARG001
        """For ever. Safe to repeat."""
        keys.revoke(key)

    return routes
