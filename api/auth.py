"""Who is asking: the API key in `Authorization: Bearer slm_...`."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.problems import Problem
from slm_jobs.api_keys import ApiKey, KeyProof, KeyStore
from slm_jobs.errors import KeyRejected

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="api_key",
    description="`slm keys create` makes one; `slm up` leaves one in its data folder.",
)
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]

_REMEMBERED = 4_096
_REMEMBERED_SECONDS = 60.0


class Doorkeeper:
    """Knows which keys were good a moment ago, so that nobody else's request is even read, while a
    good one costs no call of its own: taking a job checks the key again, with everything else."""

    def __init__(self, keys: KeyStore) -> None:
        self.keys = keys
        self._known: dict[KeyProof, float] = {}

    def knows(self, proof: KeyProof) -> bool:
        return time.monotonic() < self._known.get(proof, 0.0)

    def authorise(self, proof: KeyProof) -> ApiKey:
        """The key as it is now. Raises KeyRejected and StoreUnavailable."""
        try:
            key = self.keys.authorise(proof)
        except KeyRejected:
            self._known.pop(proof, None)
            raise
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[proof] = time.monotonic() + _REMEMBERED_SECONDS
        return key


async def still_valid(request: Request, proof: KeyProof) -> bool:
    """For answers that take long. Raises StoreUnavailable."""
    try:
        await run_in_threadpool(_doorkeeper(request).authorise, proof)
    except KeyRejected:
        return False
    return True


def _proof(credentials: Credentials) -> KeyProof:
    if credentials is None:
        raise KeyRejected
    return KeyProof.of(credentials.credentials)


async def _caller(request: Request, credentials: Credentials) -> KeyProof:
    proof, doorkeeper = _proof(credentials), _doorkeeper(request)
    if not doorkeeper.knows(proof):
        await run_in_threadpool(doorkeeper.authorise, proof)
    return proof


def _viewer(request: Request, credentials: Credentials) -> ApiKey:
    return _doorkeeper(request).authorise(_proof(credentials))


def _admin(viewer: Viewer) -> ApiKey:
    if not viewer.admin:
        raise Problem("forbidden", "Only admin keys may do this.")
    return viewer


def _doorkeeper(request: Request) -> Doorkeeper:
    doorkeeper: Doorkeeper = request.app.state.doorkeeper
    return doorkeeper


Caller = Annotated[KeyProof, Depends(_caller)]  # for what checks the key again by itself
Viewer = Annotated[ApiKey, Depends(_viewer)]
Admin = Annotated[ApiKey, Depends(_admin)]
