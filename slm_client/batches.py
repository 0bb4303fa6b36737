"""Batches: many rows at once, sent as a file, with results that can be read while they come."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Unpack
from urllib.parse import quote
from uuid import uuid4

import httpx

from slm_client import source as sources
from slm_client.batch import Batch, BatchParams, Result
from slm_client.errors import ApiError, ServiceUnreachable, SlmClientError
from slm_client.source import Format, Progress, Source
from slm_client.transport import COME_AGAIN, Again, Connection, Patience
from slm_client.waiting import until_ended, whole

_LOOK_EVERY = 1.0  # seconds, while a batch runs; its end is told at once
_CHECKING = 60.0  # seconds that the service may take after an upload's last byte
_TWIN = 600.0  # seconds; an upload that was given up is forgotten much sooner


class Batches:
    """`client.batches`. Every call may raise ServiceUnreachable and ApiError."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def create(
        self,
        source: Source | Path | IO[bytes] | bytes,
        *,
        format: str | None = None,  # noqa: A002
        idempotency_key: str | None = None,
        on_progress: Progress | None = None,
        on_again: Again | None = None,
        **options: Unpack[BatchParams],
    ) -> Batch:
        """Sends a file of rows, plain or gzip, bit by bit, and returns its batch, which runs.

        `format` is `txt`, `csv` or `jsonl`; by default what the path's ending says, else JSONL.
        What has been sent before with the same `idempotency_key` and options is not done twice:
        the batch that it made comes back, `replayed`. A lost connection is safe: it sends again,
        from the beginning, and tells `on_again` why.
        Raises BadInput if the file cannot be read, and ApiError `invalid_rows` with the first of
        them in its problem's `rows`.
        """
        named = sources.format_of(source.name) if isinstance(source, Path) else None
        kind = Format(format) if format else named or Format.JSONL
        query = _query(options)
        with sources.opened(source) as content:
            headers = {
                "Idempotency-Key": idempotency_key or str(uuid4()),
                "Content-Type": kind.media_type,
                "Content-Length": str(content.size),
            }
            return self._make(
                lambda: self._connection.send(
                    "POST",
                    "/batches",
                    content=lambda: content.chunks(on_progress),
                    query=query,
                    headers=headers,
                    wait=_CHECKING,
                    on_again=on_again,
                ),
                on_again,
            )

    def create_rows(
        self,
        rows: Sequence[str | Mapping[str, Any]],
        *,
        idempotency_key: str | None = None,
        **options: Unpack[BatchParams],
    ) -> Batch:
        """A batch of few rows, at most 1 MiB: prompts, or objects as in a JSONL file."""
        given = {name: value for name, value in options.items() if _is_said(name, value)}
        body = {"rows": list(rows), **given}
        headers = {"Idempotency-Key": idempotency_key or str(uuid4())}
        return self._make(
            lambda: self._connection.send(
                "POST", "/batches", body=body, headers=headers, wait=_CHECKING
            )
        )

    def run(
        self, rows: Iterable[str | Mapping[str, Any]], **options: Unpack[BatchParams]
    ) -> Iterator[Result]:
        """See `Client.bulk`."""
        with tempfile.TemporaryFile() as file:
            for row in rows:
                document = {"prompt": row} if isinstance(row, str) else dict(row)
                file.write(json.dumps(document).encode() + b"\n")
            if not file.tell():
                return
            file.seek(0)
            options.setdefault("on_invalid", "skip")
            batch = self.create(file, format="jsonl", **options)
        try:
            for item in self.watch(batch.id):
                if isinstance(item, Result):
                    yield item
        except (GeneratorExit, KeyboardInterrupt):
            with suppress(SlmClientError):
                self.cancel(batch.id)
            raise

    def get(self, batch_id: str, *, wait: float = 0.0) -> Batch:
        """The batch as it stands, or as soon as it has ended within `wait` seconds (at most 30, cut
        to whole ones)."""
        seconds = whole(wait)
        query = {"wait": str(seconds)} if seconds else None
        return self._connection.call(
            "GET", _path(batch_id), Batch.from_json, query=query, wait=seconds
        )

    def wait(self, batch_id: str, timeout: float = float("inf")) -> Batch:
        """The batch once it has ended in any way. Raises JobTimeout after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        return until_ended(lambda seconds: self.get(batch_id, wait=seconds), deadline, timeout)

    def list(self, *, limit: int | None = None) -> Iterator[Batch]:
        """Your batches, the newest first, at most `limit`."""
        return self._connection.pages("/batches", Batch.from_json, limit=limit)

    def cancel(self, batch_id: str) -> Batch:
        """Ends what waits now and what runs at its next step; keeps what is done. Does nothing to
        a batch that has ended."""
        return self._connection.call("POST", _path(batch_id, "/cancel"), Batch.from_json)

    def retry(self, batch_id: str, *, new: bool = False) -> Batch:
        """A batch of the rows that did not succeed: the one that an earlier call made, `replayed`,
        or with `new` always another. Raises ApiError `nothing_to_retry`."""
        key = str(uuid4()) if new else f"retry-{quote(batch_id, safe='')}"
        path, headers = _path(batch_id, "/retry"), {"Idempotency-Key": key}
        return self._make(
            lambda: self._connection.send("POST", path, headers=headers, wait=_CHECKING)
        )

    def delete(self, batch_id: str) -> None:
        """Forgets an ended batch and its texts. Raises ApiError `batch_not_ended` for another."""
        self._connection.call("DELETE", _path(batch_id), lambda _: None)

    def results(self, batch_id: str, after: int = 0, *, follow: bool = False) -> Iterator[Result]:
        """The rows that succeeded, in the order in which they ended, from the one after `seq`
        `after` on; with `follow` until the batch has ended, else those that are there now."""
        return self._read_list(_path(batch_id, "/results"), after, follow)

    def errors(self, batch_id: str, after: int = 0, *, follow: bool = False) -> Iterator[Result]:
        """As `results`, but the rows that did not succeed, or could not run."""
        return self._read_list(_path(batch_id, "/errors"), after, follow)

    def watch(self, batch_id: str, *, follow: bool = True) -> Iterator[Batch | Result]:
        """The batch as it stands, then what has become of its rows since; and so on until it has
        ended and every row has been told once. Without `follow`: what there is now."""
        results = _Reader(self.results, batch_id)
        errors = _Reader(self.errors, batch_id)
        patience = Patience(self._connection.retry_for)
        wait = 0.0
        while True:
            began = time.monotonic()
            batch = self.get(batch_id, wait=wait)
            yield batch
            told = results.told + errors.told
            if batch.status == "failed":  # its rows were refused: `batch.errors` says why
                return
            if batch.counts.succeeded > results.told:
                yield from results.news()
            if batch.counts.unsuccessful > errors.told:
                yield from errors.news()
            if not (follow or batch.ended):
                return
            missing = batch.counts.done - results.told - errors.told
            if batch.ended and missing <= 0:
                return
            if batch.ended and results.told + errors.told == told:
                problem = f"{self._connection.base_url} keeps back {missing} results of {batch.id}"
                patience.pause(ServiceUnreachable(problem))
            elif not batch.ended:
                patience.renew()
                if wait and (left := began + wait - time.monotonic()) > 0:
                    time.sleep(left)  # the service did not wait
            wait = 0.0 if batch.ended else _LOOK_EVERY

    def _make(self, send: Callable[[], httpx.Response], on_again: Again | None = None) -> Batch:
        """The batch that `send` makes, which sends the same each time."""
        patience = Patience(max(self._connection.retry_for, _TWIN))
        while True:
            try:
                response = send()
                break
            except ApiError as error:
                # Ours, of a connection that broke, or that of another like us: it will end.
                if error.code != "idempotency_in_progress":
                    raise
                patience.pause(error)
                if on_again:
                    on_again(error)
        replayed = response.headers.get("idempotent-replayed") == "true"
        return self._connection.read(
            response, lambda document: Batch.from_json(document, replayed=replayed)
        )

    def _read_list(self, path: str, after: int, follow: bool) -> Iterator[Result]:
        """Reads across broken connections."""
        patience = Patience(self._connection.retry_for)
        while True:
            problem: ApiError | ServiceUnreachable
            query = {"after": str(after), "follow": "true" if follow else "false"}
            headers = {"Accept": "application/jsonl"}
            try:
                with self._connection.open_stream(path, headers, query) as response:
                    for line in _lines(response):
                        patience.renew()  # also by a blank line, which says that it lives
                        if line.strip():
                            result = self._read_line(line, response)
                            after = result.seq
                            yield result
                return
            except httpx.TransportError as error:
                problem = self._connection.unreachable(error)
            except ApiError as error:
                if error.status not in COME_AGAIN:
                    raise
                problem = error
            patience.pause(problem)

    def _read_line(self, line: bytes, response: httpx.Response) -> Result:
        try:
            return Result.from_json(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self._connection.api_error(response) from None


class _Reader:
    """Reads on in a list from where it was. `told`: how many it has given."""

    def __init__(self, read: Callable[[str, int], Iterator[Result]], batch_id: str) -> None:
        self._read = read
        self._batch_id = batch_id
        self._after = 0
        self.told = 0

    def news(self) -> Iterator[Result]:
        for result in self._read(self._batch_id, self._after):
            self._after = result.seq
            self.told += 1
            yield result


def _lines(response: httpx.Response) -> Iterator[bytes]:
    """Only \\n ends a line: httpx's own lines also end at U+2028 and others, inside a text."""
    rest = b""
    for chunk in response.iter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _query(options: Mapping[str, Any]) -> dict[str, str | list[str]]:
    query: dict[str, str | list[str]] = {}
    for name, value in options.items():
        if isinstance(value, list):
            query[name] = [str(item) for item in value]
        elif _is_said(name, value):
            query[name] = value if isinstance(value, str) else json.dumps(value)
    return query


def _is_said(name: str, value: object) -> bool:
    """None is a value of top_k alone: all tokens."""
    return value is not None or name == "top_k"


def _path(batch_id: str, rest: str = "") -> str:
    return f"/batches/{quote(batch_id, safe='')}{rest}"
