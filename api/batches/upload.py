"""One batch on its way into the store, from its beginning to its end: committed, or abandoned.

Knows no files: rows come from wherever they come.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import NamedTuple, TypeVar

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
AWAY_SECONDS = 20.0  # less than `UPLOAD_SECONDS`, after which the store gives an upload up
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0

T = TypeVar("T")

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

    Raises kinds of Refused, StoreUnavailable, and what `fill` raises. Then no batch is left behind,
    unless Redis has done what it fell silent about: the same Idempotency-Key finds that batch.
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
        self._calls = count(1)  # so that the store knows one that is repeated
        self._sent = time.monotonic()

    def add(self, row: BatchRow) -> None:
        """Raises Problem if too many are skipped."""
        self._rows.append(row)
        self._characters += sum(map(len, row.prompts))
        if len(self._rows) >= CHUNK_ROWS or self._characters >= CHUNK_CHARACTERS:
            self._send()

    def refuse(self, problem: RowProblem) -> None:
        """Takes a wrong row down. Raises Problem if too many are skipped."""
        self._take_down([problem])
        if self._skip and len(self._problems) >= CHUNK_ROWS:
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
        if self._problems:
            wrong = self._problems[:ROWS_SHOWN]
            return insist(lambda: self._store.reject(self._batch_id, wrong, content))
        return insist(lambda: self._store.commit(self._batch_id, content))

    def _take_down(self, problems: Sequence[RowProblem]) -> None:
        self._problems += problems
        self._wrong += len(problems)
        if not self._skip:
            self.is_hopeless |= self._wrong >= MOST_INVALID
        elif self._wrong > MOST_SKIPPED:
            found = sorted(self._problems, key=_line)
            raise _invalid(found, self._wrong, "Too many to skip")

    def _send(self) -> None:
        rows, self._rows, self._characters = self._rows, [], 0
        call = next(self._calls)
        try:
            duplicates = insist(lambda: self._store.add_rows(self._batch_id, rows, call=call))
        except RateLimited:
            if self._skip or not self._problems:
                raise
            self.is_hopeless = True  # what is wrong with its rows says more
            return
        self._added += len(rows) - len(duplicates)
        self._take_down([_duplicate(found) for found in duplicates])
        if self._skip and self._problems:
            problems, self._problems = sorted(self._problems, key=_line), []
            call = next(self._calls)
            insist(lambda: self._store.add_invalid(self._batch_id, problems, call=call))
        self._sent = time.monotonic()


def insist(call: Callable[[], T]) -> T:
    """What a call returns that may be repeated, also if Redis is away for a while: what has come in
    minutes is worth waiting for. Raises StoreUnavailable after `AWAY_SECONDS`."""
    until, pause = time.monotonic() + AWAY_SECONDS, _FIRST_PAUSE
    while True:
        try:
            return call()
        except StoreUnavailable:
            if time.monotonic() + pause > until:
                raise
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


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
