"""From a request for a batch, be it JSON, a file or a form, to the batch taken."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from starlette.requests import Request

from api.batches.body import Body, file_of
from api.batches.content import Content
from api.batches.formats import Format
from api.batches.intake import take
from api.batches.options import BatchOptions, BatchRequest, values_of
from api.batches.upload import Taken
from api.body import check, load
from api.desk import Desk
from slm_jobs.api_keys import KeyProof


def is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or (
        kind.startswith("application/") and kind.endswith("+json")
    )


class Submission:
    """One call of `POST /batches`; what its body says goes before what its address says.

    Both ways block, and raise what `take` raises.
    """

    def __init__(
        self, desk: Desk, request: Request, caller: KeyProof, idempotency_key: str | None
    ) -> None:
        self._desk = desk
        self._caller = caller
        self._key = idempotency_key
        self._path = request.scope["path"]
        self._headers = request.headers
        self._query = values_of(request.query_params.multi_items())

    def take_json(self, body: bytes) -> Taken:
        data = load(body)
        rows = check(BatchRequest, data).rows
        options = {name: value for name, value in data.items() if name != "rows"}
        return self._take(options, (json.dumps(row).encode() + b"\n" for row in rows), "jsonl")

    def take_file(self, body: Body) -> Taken:
        kind = self._headers.get("content-type", "")
        encoding = self._headers.get("content-encoding", "")
        file = file_of(body, kind, encoding, self._desk.settings.max_batch_bytes)
        return self._take(values_of(file.fields), file.chunks, file.form)

    def _take(self, given: dict[str, Any], chunks: Iterable[bytes], form: Format) -> Taken:
        options = check(BatchOptions, {**self._query, **given})
        # What makes two submissions the same, besides the file itself.
        about = [self._path, form, options.model_dump(mode="json", exclude_unset=True)]
        content = Content(chunks, about=about)
        return take(self._desk, options, content, form, self._caller, idempotency_key=self._key)
