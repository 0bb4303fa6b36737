"""`Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header-07): which request is which."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from fastapi import Request

from api.problems import Problem
from slm_jobs.admission import Idempotency

HEADER = "Idempotency-Key"
_MORE = "([ -~]{0,253}[!-~])?"
_KEY = f'"[!-~]{_MORE}"|[!#-~]{_MORE}'  # in quotes, or beginning with none
IDEMPOTENCY_KEY_SCHEMA = {"pattern": f"^({_KEY})$"}  # for the OpenAPI document


def idempotency_of(request: Request, data: Any) -> Idempotency | None:
    """What makes sending this request again safe; None if it carries no key.

    The key may stand in quotes, as the draft has it, or bare, as most clients send it. The body is
    compared in a canonical form, with the address it was sent to. `data` is what `body.load` made
    of it, and has been checked.
    """
    key = idempotency_key_of(request)
    if key is None:
        return None
    canonical = json.dumps([request.scope["path"], data], sort_keys=True, separators=(",", ":"))
    return Idempotency(key, _sha256(canonical))


def idempotency_key_of(request: Request) -> str | None:
    """SHA-256 of the key alone, for requests whose body is compared otherwise. Raises Problem."""
    given = request.headers.get(HEADER)
    if given is None:
        return None
    if not re.fullmatch(_KEY, given):
        raise Problem("invalid_request", f"{HEADER} must be 1 to 255 visible ASCII characters.")
    return _sha256(given[1:-1] if given[0] == '"' else given)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
