"""Where an answer leads: OpenAPI's links, by which tools and people find the next call."""

from __future__ import annotations

from typing import Any


def _links(summaries: dict[str, str]) -> dict[str, Any]:
    return {
        operation: {
            "operationId": operation,
            "parameters": {"id": "$response.body#/id"},
            "description": summary,
        }
        for operation, summary in summaries.items()
    }


JOB_LINKS = _links(
    {
        "get_job": "Poll the job, or wait for it.",
        "stream_job": "Follow the job.",
        "cancel_job": "Cancel the job.",
        "delete_job": "Delete the job when it has ended.",
    }
)
KEY_LINKS = _links({"rotate_key": "Change the token of the key.", "revoke_key": "Revoke the key."})
