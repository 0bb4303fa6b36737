"""Where an answer leads: OpenAPI's links, by which tools and people find the next call."""

from __future__ import annotations

from typing import Any


def _links(summaries: dict[str, str], pointer: str = "/id") -> dict[str, Any]:
    return {
        operation: {
            "operationId": operation,
            "parameters": {"id": f"$response.body#{pointer}"},
            "description": summary,
        }
        for operation, summary in summaries.items()
    }


JOB_LINKS = _links(
    {
        "get_job": "Poll the job, or wait for it.",
        "stream_job": "Follow the job.",
        "cancel_job": "Cancel the job.",
        "list_job_callbacks": "See whether its callbacks have arrived.",
        "delete_job": "Delete the job when it has ended.",
    }
)
BATCH_LINKS = _links(
    {
        "get_batch": "Poll the batch, or wait for it.",
        "read_results": "Read what is done, or follow it.",
        "read_errors": "Read what has failed.",
        "cancel_batch": "Cancel the batch.",
        "list_batch_callbacks": "See whether its callbacks have arrived.",
        "retry_batch": "Run again what has not succeeded, when it has ended.",
        "delete_batch": "Delete the batch when it has ended.",
    }
)
OPENAI_BATCH_LINKS = _links(
    {
        "openai_get_batch": "Poll the batch.",
        "openai_cancel_batch": "Cancel the batch.",
    }
)
FILE_LINKS = _links(
    {
        "openai_get_file": "Read what is known about the file.",
        "openai_get_file_content": "Read the file.",
        "openai_delete_file": "Delete the file.",
    }
)
DEAD_LETTER_LINKS = _links(
    {
        "redrive_dead_letter": "Run the job again.",
        "drop_dead_letter": "Forget the job.",
    },
    "/job/id",
)
KEY_LINKS = _links({"rotate_key": "Change the token of the key.", "revoke_key": "Revoke the key."})
