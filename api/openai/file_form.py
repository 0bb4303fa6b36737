"""The form in which a file comes to `/v1/files`, from its parts to what is kept."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from api.batches.body import MULTIPART
from api.batches.content import limited
from api.batches.multipart import Part
from api.body import check
from api.desk import Desk
from api.openai.batch_schemas import FileForm, unsupported
from api.problems import Problem
from slm_jobs.errors import StoreUnavailable
from slm_jobs.files import File

_PURPOSE = "batch"
_LONGEST_NAME = 255

FORM = {
    "required": True,
    "content": {
        MULTIPART: {
            "schema": {
                "type": "object",
                "properties": {
                    "file": {
                        "type": "string",
                        "format": "binary",
                        "minLength": 1,
                        "description": "One request a line: `custom_id`, `method`, `url`, `body`.",
                    },
                    "purpose": {"type": "string", "const": _PURPOSE},
                    "expires_after[anchor]": {"type": "string", "const": "created_at"},
                    "expires_after[seconds]": {
                        "type": "integer",
                        "minimum": 3_600,
                        "maximum": 2_592_000,
                    },
                },
                "required": ["file", "purpose"],
                "additionalProperties": False,
            }
        }
    },
}


def keep(desk: Desk, form: Iterable[Part], key: str) -> File:
    """The file in a form, whose fields may come before or after it. Blocks. Whatever is raised,
    nothing is kept."""
    fields: dict[str, Any] = {}
    upload, filename = desk.store.files.upload(key), None
    try:
        for part in form:
            if part.name in fields or (part.name == "file" and filename is not None):
                raise _wrong(part.name, "Given twice")
            if part.name != "file":
                fields[part.name] = _value(part)
                continue
            _check_purpose(fields.get("purpose", _PURPOSE))
            filename = (part.filename or "file")[:_LONGEST_NAME]
            for chunk in limited(part.chunks, desk.settings.max_batch_bytes):
                upload.write(chunk)
        wanted = check(FileForm, fields)
        _check_purpose(wanted.purpose)
        if not upload.bytes:
            raise _wrong("file", "Send a file" if filename is None else "The file is empty")
        return upload.commit(filename or "", wanted.purpose, ttl_seconds=wanted.seconds)
    except BaseException:
        with suppress(StoreUnavailable):  # what came expires by itself
            upload.abandon()
        raise


def _value(part: Part) -> str | int:
    text = part.text()
    is_number = part.name == "expires_after[seconds]" and re.fullmatch("[0-9]{1,18}", text)
    return int(text) if is_number else text


def _check_purpose(purpose: str) -> None:
    if purpose != _PURPOSE:
        detail = f"Files are kept for purpose {_PURPOSE!r} only, not {purpose[:64]!r}."
        raise unsupported("purpose", detail)


def _wrong(name: str, detail: str) -> Problem:
    pointer = f"/{name[:64]}"
    errors = [{"pointer": pointer, "detail": detail}]
    return Problem("invalid_request", f"{pointer}: {detail}", errors=errors)
