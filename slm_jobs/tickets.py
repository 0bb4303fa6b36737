"""Tickets: Celery messages that say "work waits for this model".

They are rendered here, without Celery, and pushed by the scripts that make work wait, in the same
atomic step. A lost or doubled ticket is harmless: the waiting work stands in Redis, not in it.
"""

from __future__ import annotations

import json

SERVE_TASK = "worker.tasks.serve"
TICKETS_MAX = 256  # standing per model: more than there are idle threads to take one at once
_QUEUE_PREFIX = "slm:serve:"


def queue_name(model: str) -> str:
    """The Celery queue, and so the Redis list, of a model's tickets."""
    return _QUEUE_PREFIX + model


def _template() -> str:
    """A message of Celery's protocol 2 in kombu's virtual transport; `{{model}}` and `{{id}}` are
    replaced in Lua. A test runs it through a real Celery worker."""
    body = [["{{model}}"], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    return json.dumps(
        {
            "body": json.dumps(body),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {
                "lang": "py",
                "task": SERVE_TASK,
                "id": "{{id}}",
                "root_id": "{{id}}",
                "parent_id": None,
                "group": None,
                "retries": 0,
                "eta": None,
                "expires": None,
                "timelimit": [None, None],
                "argsrepr": "('{{model}}',)",
                "kwargsrepr": "{}",
                "origin": "slm_jobs",
                "ignore_result": True,
            },
            "properties": {
                "correlation_id": "{{id}}",
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": _QUEUE_PREFIX + "{{model}}"},
                "priority": 0,
                "delivery_tag": "{{id}}",
            },
        }
    )


TICKET_TEMPLATE = _template()
