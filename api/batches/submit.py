"""From a request for a batch, be it JSON, a file or a form, to the batch taken."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from anyio import from_thread
from starlette.requests import Request

from api.addresses import absolute
from api.batches.body import file_of
from api.batches.content import Content
from api.batches.formats import Format
from api.batches.intake import take
from api.batches.options import BatchOptions, BatchRequest, values_of
from api.batches.upload import Taken
from api.batches.uploads import Turn, Uploads
from api.body import check, json_bytes, load
from api.desk import Desk
from api.problems import Problem
from slm_jobs.api_keys import KeyProof
from slm_jobs.callback_schemas import CallbackTarget


class Submission:
    """One call of `POST /batches`; what its body says goes before what its address says."""

    def __init__(
        self, desk: Desk, request: Request, caller: KeyProof, idempotency_key: str | None
    ) -> None:
        self._desk = desk
        self._caller = caller
        self._key = idempotency_key
        self._request = request
        self._query = values_of(request.query_params.multi_items())

    async def take(self, uploads: Uploads) -> Taken:
        """Raises what `intake.take` and `Uploads` raise, and CallbackUrlRefused."""
        if _is_json(self._request):
            return await uploads.run(self._caller.key, self._take_json)
        return await uploads.receive(self._request, self._caller.key, self._take_file)

    def _take_json(self, turn: Turn) -> Taken:
        with turn.paused():
            body = from_thread.run(json_bytes, self._request)
        data = load(body)
        rows = check(BatchRequest, data).rows
        options = self._options({name: data[name] for name in data if name != "rows"})
        return self._take(options, map(_line, rows), "jsonl", turn)

    def _take_file(self, turn: Turn, body: Iterator[bytes]) -> Taken:
        headers, most = self._request.headers, self._desk.settings.max_batch_bytes
        kind, coding = headers.get("content-type", ""), headers.get("content-encoding", "")
        file = file_of(body, kind, coding, most)
        options = self._options(values_of(file.fields))
        return self._take(options, file.chunks, file.form, turn)

    def _options(self, given: dict[str, Any]) -> BatchOptions:
        return check(BatchOptions, {**self._query, **given})

    async def _callback(self, options: BatchOptions) -> CallbackTarget | None:
        link = absolute(self._request, "/batches")
        return await self._desk.targets.checked(options, self._caller, link)

    def _take(
        self, options: BatchOptions, chunks: Iterable[bytes], form: Format, turn: Turn
    ) -> Taken:
        callback = None
        if options.callback_url:
            with turn.paused():
                callback = from_thread.run(self._callback, options)
        path = self._request.scope["path"]
        # What makes two submissions the same, besides the file itself.
        about = [path, form, options.model_dump(mode="json", exclude_unset=True)]
        return take(
            self._desk,
            options,
            Content(chunks, about=about),
            form,
            self._caller,
            idempotency_key=self._key,
            callback=callback,
            request_id=self._request.state.request_id,
        )


def _line(row: Any) -> bytes:
    try:
        return json.dumps(row).encode() + b"\n"
    except RecursionError:  # deeper than it was read: this stack is longer
        raise Problem("malformed_json", "The body is nested too deeply.") from None


def _is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or (
        kind.startswith("application/") and kind.endswith("+json")
    )
