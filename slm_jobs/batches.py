"""BatchStore: batches and their rows, from the upload to the last result. Every change is one Lua
script, as with jobs; workers get rows through `JobStore.claim_next`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ulid import ULID

from slm_jobs import keys
from slm_jobs.admission import refusal
from slm_jobs.api_keys import ApiKey, KeyProof
from slm_jobs.batch_records import (
    draft_fields,
    pack_end,
    pack_problem,
    pack_row,
    to_batch,
    to_batch_record,
    to_failure,
    to_result,
    to_retry,
)
from slm_jobs.batch_schemas import (
    Batch,
    BatchBegun,
    BatchDraft,
    BatchRow,
    Duplicate,
    ResultLine,
    RowEnd,
    RowProblem,
)
from slm_jobs.callbacks import target_fields
from slm_jobs.connection import execute_raw, store_errors
from slm_jobs.errors import BatchGone, BatchNotEnded, BatchNotFound
from slm_jobs.records import flattened

if TYPE_CHECKING:
    from redis import Redis

UPLOAD_SECONDS = 60  # after which an upload that fell silent is given up
IDEMPOTENCY_SECONDS = 7 * 86_400  # as long as a batch may run
DRAWN_SEED_BITS = 53  # what JavaScript reads exactly, so that every client can send it again

Run = Callable[..., Any]  # of a script, by name


def new_batch_id() -> str:
    return f"batch_{ULID()}"


class BatchStore:
    """The batches of a `JobStore`, which makes it. Methods raise StoreUnavailable as its do.

    A batch is begun, then takes its rows in any number of calls, `UPLOAD_SECONDS` apart at most,
    and then is committed, rejected or abandoned; one that falls silent the janitor abandons.
    """

    def __init__(
        self,
        redis: Redis,
        run: Run,
        *,
        nearly_full: Callable[[], bool],
    ) -> None:
        self._redis = redis
        self._run = run
        self._nearly_full = nearly_full

    # Its rows come in

    def begin(
        self,
        draft: BatchDraft,
        *,
        owner: KeyProof,
        batch_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> BatchBegun:
        """A batch without rows; or, for an Idempotency-Key (its SHA-256) that made one before, that
        one: compare its digest. An id that is absent is drawn.

        Raises a kind of Refused: KeyRejected, QueueFull, BatchInProgress, BatchGone, and, if the
        key made a job, IdempotencyConflict.
        """
        batch_id = batch_id or new_batch_id()
        seed = draft.params.seed
        seed = secrets.randbits(DRAWN_SEED_BITS) if seed is None else seed
        outcome, *details = self._run(
            "batch_begin",
            batch_id,
            *owner,
            idempotency_key or "",
            int(self._nearly_full()),
            UPLOAD_SECONDS * 1000,
            *flattened(draft_fields(draft, seed)),
            *flattened(target_fields(draft.callback, owner.key, draft.request_id)),
        )
        if outcome == "begun":
            return BatchBegun(batch_id, None)
        if outcome == "known":
            return BatchBegun(*details)
        raise refusal(outcome, details)

    def add_rows(
        self, batch_id: str, rows: Sequence[BatchRow], *, call: int | None = None
    ) -> list[Duplicate]:
        """Adds up to 500 rows, all but those whose custom_id the batch has already. `call` numbers
        the calls of an upload, so that one may be repeated when its reply was lost.

        Raises RateLimited for the key's ceilings, QueueFull, and BatchGone; then none was added.
        """
        parts = (
            part
            for row in rows
            for part in (row.custom_id, row.line, row.tokens, row.outputs, pack_row(row))
        )
        outcome, *details = self._run(
            "batch_add",
            batch_id,
            call or "-",
            int(self._nearly_full()),
            UPLOAD_SECONDS * 1000,
            *parts,
        )
        if outcome == "gone":
            raise BatchGone(batch_id)
        if outcome != "ok":
            raise refusal(outcome, details)
        return [
            Duplicate(rows[index], line)
            for index, line in zip(details[::2], details[1::2], strict=True)
        ]

    def add_invalid(
        self, batch_id: str, problems: Sequence[RowProblem], *, call: int | None = None
    ) -> None:
        """Takes wrong rows down as failed. `call`: as with `add_rows`. Raises BatchGone."""
        entries = map(pack_problem, problems)
        if not self._run("batch_invalid", batch_id, call or "-", UPLOAD_SECONDS * 1000, *entries):
            raise BatchGone(batch_id)

    def commit(self, batch_id: str, digest: str) -> Batch:
        """Its rows wait from now on. `digest`: of what it was made from. May be said again.

        Raises BatchGone.
        """
        return self._commit(batch_id, digest, "")

    def reject(self, batch_id: str, problems: Sequence[RowProblem], digest: str) -> Batch:
        """Ends it as failed, without rows, and gives back what they were charged. Raises
        BatchGone."""
        errors = json.dumps([problem.model_dump() for problem in problems], ensure_ascii=False)
        return self._commit(batch_id, digest, errors)

    def abandon(self, batch_id: str) -> None:
        """As if it had never begun. Does nothing to a batch that was committed, or is gone."""
        self._run("batch_abandon", batch_id)

    # Clients

    def get(self, batch_id: str, *, viewer: ApiKey | None = None) -> Batch:
        """Raises BatchNotFound, also for a viewer who neither owns it nor is an admin."""
        now, record = self._record(batch_id)
        if not (viewer is None or viewer.admin or record["key"] == viewer.id):
            raise BatchNotFound(batch_id)
        return to_batch(batch_id, record, now)

    def page(
        self, key: str, *, limit: int = 50, below: int | None = None
    ) -> tuple[list[Batch], int | None]:
        """A key's batches, the newest first, and the `below` of the next page; None after the
        last."""
        now, following, *found = self._run(
            "batch_list", key, "+inf" if below is None else f"({below}", limit
        )
        batches = [
            to_batch(batch_id, to_batch_record(values), now)
            for batch_id, values in zip(found[::2], found[1::2], strict=True)
            if values[0] is not None
        ]
        return batches, int(following) if following else None

    def results(self, batch_id: str, after: int, limit: int) -> list[ResultLine]:
        """Rows that succeeded, in order of completion, from number `after` + 1 on."""
        last = after + limit - 1
        with store_errors():
            entries = execute_raw(self._redis, "LRANGE", keys.RESULTS + batch_id, after, last)
        return [to_result(seq, entry) for seq, entry in enumerate(entries, after + 1)]

    def failures(self, batch_id: str, after: int, limit: int) -> list[ResultLine]:
        """Rows that ended otherwise, in order of completion; once a batch that was cancelled or has
        expired has ended, rows that never started follow."""
        return [
            to_failure(seq, entry, stored)
            for seq, (entry, stored) in enumerate(self._failures(batch_id, after, limit), after + 1)
        ]

    def unsuccessful(self, batch_id: str, after: int, limit: int) -> list[tuple[int, BatchRow]]:
        """Those of `failures` that can run again, as they were, with their numbers.

        Raises BatchNotFound. Fewer than `limit`, or none, may come before the last.
        """
        _, record = self._record(batch_id)
        common = json.loads(record["spec"])
        return [
            (seq, to_retry(entry, stored, common))
            for seq, (entry, stored) in enumerate(self._failures(batch_id, after, limit), after + 1)
            if stored is not None
        ]

    def cancel(self, batch_id: str) -> Batch:
        """Ends what waits, and tells the workers of what runs; an ended batch stays as it is.

        Raises BatchNotFound.
        """
        now, values = self._run("batch_cancel", batch_id)
        return to_batch(batch_id, _existing(batch_id, values), now)

    def delete(self, batch_id: str) -> None:
        """Forgets an ended batch and its results. Raises BatchNotEnded."""
        if not self._run("batch_delete", batch_id):
            raise BatchNotEnded(batch_id)

    # Workers

    def finish(self, ends: Sequence[RowEnd]) -> list[bool]:
        """Ends claimed rows, all in one call. False where the attempt is stale; there nothing has
        changed."""
        parts: list[Any] = []
        for end in ends:
            used = end.usage
            parts += [end.work.id, end.work.attempt, end.status, pack_end(end)]
            parts += [used.prompt_tokens, used.completion_tokens] if used else [0, 0]
        return [bool(done) for done in self._run("finish_rows", *parts)]

    def _commit(self, batch_id: str, digest: str, errors: str) -> Batch:
        found = self._run("batch_commit", batch_id, digest, errors, IDEMPOTENCY_SECONDS)
        if found is None:
            raise BatchGone(batch_id)
        now, values = found
        return to_batch(batch_id, to_batch_record(values), now)

    def _record(self, batch_id: str) -> tuple[int, dict[str, str]]:
        """Raises BatchNotFound."""
        now, values = self._run("batch_read", batch_id)
        return now, _existing(batch_id, values)

    def _failures(self, batch_id: str, after: int, limit: int) -> list[tuple[bytes, bytes | None]]:
        flat = self._run("batch_failures", batch_id, after, limit, raw=True)
        return list(zip(flat[::2], flat[1::2], strict=True))


def _existing(batch_id: str, values: Sequence[str | None]) -> dict[str, str]:
    record = to_batch_record(values)
    if not record:
        raise BatchNotFound(batch_id)
    return record
