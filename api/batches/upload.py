"""One batch on its way into the store, from its beginning to its end: committed, or abandoned.

Knows no files: rows come from wherever they come.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from api.callback_targets import linked
from api.problems import Problem
from slm_jobs.api_keys import KeyProof
from slm_jobs.batch_schemas import Batch, BatchDraft, BatchRow, Duplicate, RowProblem
from slm_jobs.batches import UPLOAD_SECONDS, BatchStore, new_batch_id
from slm_jobs.errors import IdempotencyConflict, RateLimited, StoreUnavailable

CHUNK_ROWS = 500
CHUNK_CHARACTERS = 1 << 18  # of prompts: what one call of Redis may carry
MOST_INVALID = 1_000  # after which nobody wants to know
MOST_SKIPPED = 100_000  # each is kept, and costs Redis memory
ROWS_SHOWN = 100
_QUICK_SECONDS = 0.5

log = logging.getLogger(__name__)


class Taken(NamedTuple):
    batch: Batch
    replayed: bool  # it was known; nothing was charged


def uploaded(
    store: BatchStore,
    draft: BatchDraft,
    caller: KeyProof,
    fill: Callable[[Upload], Batch],
    *,
    skip: bool = False,
    idempotency_key: str | None = None,
    digest: Callable[[], str],
) -> Taken:
    """Begins a batch for `fill`, which adds its rows and ends it; or finds the one that the
    Idempotency-Key made of the same `digest`.

    Whatever is raised, also by `fill`, leaves no batch behind. Raises kinds of Refused, and
    StoreUnavailable.
    """
    batch_id = new_batch_id()
    draft = draft._replace(callback=linked(draft.callback, batch_id))
    begun = store.begin(draft, owner=caller, batch_id=batch_id, idempotency_key=idempotency_key)
    if begun.digest is not None:
        if begun.digest != digest():
            raise IdempotencyConflict
        return Taken(store.get(begun.batch_id), replayed=True)
    try:
        return Taken(fill(Upload(store, begun.batch_id, skip=skip)), replayed=False)
    except BaseException:
        try:
            store.abandon(begun.batch_id)
        except StoreUnavailable as error:  # the store gives it up by itself before long
            log.info("batch %s is not abandoned yet: %s", begun.batch_id, error)
        raise


class Upload:
    """Gathers rows into chunks. With `skip`, wrong rows go to the batch's errors."""

    def __init__(self, store: BatchStore, batch_id: str, *, skip: bool) -> None:
        self.is_hopeless = False  # more rows would change nothing
        self._store = store
        self._batch_id = batch_id
        self._skip = skip
        self._rows: list[BatchRow] = []
        self._characters = 0
        self._problems: list[RowProblem] = []
        self._wrong = 0
        self._added = 0
        self._sent = time.monotonic()

    def add(self, row: BatchRow) -> None:
        self._rows.append(row)
        self._characters += sum(map(len, row.prompts))
        if len(self._rows) >= CHUNK_ROWS or self._characters >= CHUNK_CHARACTERS:
            self._send()

    def refuse(self, problem: RowProblem) -> None:
        """Takes a wrong row down. Raises Problem if too many are skipped."""
        self._problems.append(problem)
        self._wrong += 1
        if not self._skip:
            self.is_hopeless = self._wrong >= MOST_INVALID
        elif self._wrong > MOST_SKIPPED:
            raise _invalid([problem], self._wrong, "Too many to skip")
        elif len(self._problems) >= CHUNK_ROWS:
            self._send()

    def keep(self) -> None:
        """The upload goes on, however slowly: keeps the store from giving it up."""
        if time.monotonic() - self._sent > UPLOAD_SECONDS / 4:
            self._send()

    def end(self, digest: Callable[[], str], *, reject: bool = False) -> Batch:
        """The batch, whose rows wait from now on. `digest` is that of all that it was made from.

        Raises Problem `invalid_rows` or `empty_batch`; with `reject` the batch is kept as failed.
        """
        self._send()
        if not self._added and not self._wrong:
            if not reject:
                raise Problem("empty_batch", "There is no row in it.")
            self._problems = [RowProblem(line=1, code="empty_batch", message="There is no row")]
        self._problems.sort(key=_line)
        if self._problems and not reject:
            raise _invalid(self._problems, self._wrong)
        content = digest()
        started = time.monotonic()
        try:
            return self._close(content)
        except StoreUnavailable:  # it may have been done; so asking again is safe
            if time.monotonic() - started > _QUICK_SECONDS:  # no answer, rather than a lost one
                raise
            return self._close(content)

    def _close(self, content: str) -> Batch:
        if self._problems:
            return self._store.reject(self._batch_id, self._problems[:ROWS_SHOWN], content)
        return self._store.commit(self._batch_id, content)

    def _send(self) -> None:
        self._sent = time.monotonic()
        rows, self._rows, self._characters = self._rows, [], 0
        try:
            duplicates = self._store.add_rows(self._batch_id, rows)
        except RateLimited:
            if self._skip or not self._problems:
                raise
            self.is_hopeless = True  # what is wrong with its rows says more
            return
        self._added += len(rows) - len(duplicates)
        self._wrong += len(duplicates)
        self._problems += map(_duplicate, duplicates)
        if self._skip and self._problems:
            self._problems.sort(key=_line)
            self._store.add_invalid(self._batch_id, self._problems)
            self._problems = []


def _line(problem: RowProblem) -> int:
    return problem.line


def _duplicate(found: Duplicate) -> RowProblem:
    row, first_line = found
    return RowProblem(
        line=row.line,
        code="duplicate_custom_id",
        message=f"The custom_id {row.custom_id!r} is that of line {first_line}",
        custom_id=row.custom_id,
    )


def _invalid(problems: list[RowProblem], count: int, why: str = "") -> Problem:
    first = problems[0]
    at_least = "At least " if count >= MOST_INVALID else ""
    what = f"{at_least}{count} {'row is' if count == 1 else 'rows are'} invalid."
    detail = f"{what} {f'{why}. ' if why else ''}Line {first.line}: {first.message}."
    rows = [problem.model_dump() for problem in problems[:ROWS_SHOWN]]
    return Problem("invalid_rows", detail, invalid=min(count, MOST_INVALID), rows=rows)
