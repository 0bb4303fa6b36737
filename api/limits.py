"""How a key's limits, and a replayed request, read in the headers of a response."""

from __future__ import annotations

from collections.abc import Sequence

from slm_jobs.admission import Admission
from slm_jobs.errors import Quota

_WINDOWS = {"requests": "w=60", "tokens": "w=60"}
_UNITS = {"requests": "requests", "jobs-in-flight": "concurrent-requests"}
_OPENAI = ("requests", "tokens")


def quota_headers(quotas: Sequence[Quota]) -> dict[str, str]:
    """`RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers), and
    `x-ratelimit-*` as OpenAI's clients know them. Nothing for a key without limits."""
    if not quotas:
        return {}
    headers = {
        "RateLimit-Policy": ", ".join(_policy(quota) for quota in quotas),
        "RateLimit": ", ".join(
            f'"{quota.policy}";r={quota.remaining};t={_seconds(quota)}' for quota in quotas
        ),
    }
    for quota in quotas:
        if quota.policy in _OPENAI:
            headers[f"x-ratelimit-limit-{quota.policy}"] = str(quota.limit)
            headers[f"x-ratelimit-remaining-{quota.policy}"] = str(quota.remaining)
            headers[f"x-ratelimit-reset-{quota.policy}"] = f"{quota.reset_ms / 1000:g}s"
    return headers


def admission_headers(admission: Admission) -> dict[str, str]:
    """What every answer to a request for a job tells: the key's limits, and a replay."""
    headers = quota_headers(admission.quotas)
    if admission.replayed:
        headers["Idempotent-Replayed"] = "true"
    return headers


def _policy(quota: Quota) -> str:
    parameters = [f"q={quota.limit}"]
    if window := _WINDOWS.get(quota.policy):
        parameters.append(window)
    if unit := _UNITS.get(quota.policy):
        parameters.append(f'qu="{unit}"')
    return ";".join([f'"{quota.policy}"', *parameters])


def _seconds(quota: Quota) -> int:
    return -(-max(quota.reset_ms, quota.wait_ms) // 1000)
