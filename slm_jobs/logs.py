"""What log lines look like: one form for every process, for people or for machines.

Records may carry `request_id` and `job_id`, which follow a request from HTTP to its worker.
"""

from __future__ import annotations

import logging
from typing import Literal

from pythonjsonlogger.json import JsonFormatter

_FIELDS = ("request_id", "job_id")


def log_handler(form: Literal["text", "json"]) -> logging.Handler:
    """Writes to standard error."""
    handler = logging.StreamHandler()
    if form == "json":
        fields = "%(asctime)s %(levelname)s %(name)s %(message)s"
        names = {"asctime": "time", "levelname": "level", "name": "logger"}
        handler.setFormatter(JsonFormatter(fields, rename_fields=names))
    else:
        handler.setFormatter(_TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        ids = [f"{name}={value}" for name in _FIELDS if (value := getattr(record, name, None))]
        text = super().format(record)
        if not ids:
            return text
        first, *rest = text.split("\n", 1)  # a traceback follows its line
        return "\n".join([f"{first} [{' '.join(ids)}]", *rest])
