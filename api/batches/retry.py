"""A new batch of the rows of an ended one that did not succeed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial

from api.admission import resolve
from api.batches.pages import PageSize
from api.batches.upload import Taken, Upload, insist, uploaded
from api.batches.uploads import Turn
from api.desk import Desk
from api.problems import Problem
from slm_jobs.api_keys import KeyProof
from slm_jobs.batch_schemas import (
    MAX_WINDOW_SECONDS,
    MIN_WINDOW_SECONDS,
    Batch,
    BatchDraft,
    BatchRow,
    BatchStatus,
)
from slm_jobs.batches import BatchStore
from slm_jobs.errors import BatchNotEnded
from slm_jobs.schemas import GenerationParams


def retry(
    desk: Desk,
    batch: Batch,
    caller: KeyProof,
    idempotency_key: str | None,
    turn: Turn,
    request_id: str,
) -> Taken:
    """They draw from the seeds that they had, and have as long as the whole batch had. Blocks.
    `request_id` is for logs.

    Raises BatchNotEnded, Problem `nothing_to_retry`, a kind of Refused, and StoreUnavailable.
    """
    if not batch.status.is_terminal:
        raise BatchNotEnded(batch.id)
    if batch.expires_at is None:  # it never ran
        raise Problem("nothing_to_retry", _why_nothing(batch))
    window_seconds = round((batch.expires_at - batch.created_at).total_seconds())
    model = resolve(batch.model, desk.manifest)
    digest = hashlib.sha256(f"retry {batch.id}".encode()).hexdigest()

    def fill(upload: Upload) -> Batch:
        found = 0
        for page in turn.fetched(_pages(desk.store.batches, batch)):
            for row in page:
                upload.add(row)
                found += 1
        if not found:
            raise Problem("nothing_to_retry", _why_nothing(batch))
        return upload.end(lambda: digest)

    draft = BatchDraft(
        model=model.name,
        params=GenerationParams.model_construct(**batch.params, seed=batch.seed),
        window_seconds=max(MIN_WINDOW_SECONDS, min(window_seconds, MAX_WINDOW_SECONDS)),
        name=batch.name,
        metadata=batch.metadata,
        retry_of=batch.id,
        extra=batch.extra,
        request_id=request_id,
    )
    return uploaded(
        desk.store.batches,
        draft,
        caller,
        fill,
        idempotency_key=idempotency_key,
        digest=lambda: digest,
    )


def _pages(store: BatchStore, batch: Batch) -> Iterator[list[BatchRow]]:
    """The rows that can run again. Some pages are empty."""
    counts, size = batch.counts, PageSize(batch)
    after, all_of_them = 0, counts.failed + counts.cancelled + counts.expired
    while after < all_of_them:
        asked = size.rows
        rows = [row for _, row in insist(partial(store.unsuccessful, batch.id, after, asked))]
        size.learn(len(rows), sum(row.outputs for row in rows))
        after += asked
        yield rows


def _why_nothing(batch: Batch) -> str:
    name, invalid = f"batch {batch.id!r}", batch.counts.failed
    if batch.status is BatchStatus.FAILED:
        return f"The rows of {name} were refused. Mend those that its `errors` name; send it again."
    if not batch.counts.total:
        return f"The rows of {name} are gone: it was cancelled while they came in."
    if not invalid:
        return f"Every row of {name} has succeeded."
    which = "The row that failed is" if invalid == 1 else f"All {invalid} rows that failed are"
    return (
        f"{which} invalid, and cannot run again as the file has it: /batches/{batch.id}/errors "
        "tells lines and mistakes. Mend the file, and send these rows as a new batch."
    )
