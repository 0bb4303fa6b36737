"""A new batch of the rows of an ended one that did not succeed."""

from __future__ import annotations

import hashlib

from api.admission import resolve
from api.batches.upload import CHUNK_ROWS, Taken, Upload, uploaded
from api.desk import Desk
from api.problems import Problem
from slm_jobs.api_keys import KeyProof
from slm_jobs.batch_schemas import (
    MAX_WINDOW_SECONDS,
    MIN_WINDOW_SECONDS,
    Batch,
    BatchDraft,
    BatchStatus,
)
from slm_jobs.errors import BatchNotEnded
from slm_jobs.schemas import GenerationParams


def retry(desk: Desk, batch: Batch, caller: KeyProof, idempotency_key: str | None) -> Taken:
    """They draw from the seeds that they had, and have as long as the whole batch had. Blocks.

    Raises BatchNotEnded, Problem `nothing_to_retry`, a kind of Refused, and StoreUnavailable.
    """
    if not batch.status.is_terminal:
        raise BatchNotEnded(batch.id)
    model = resolve(batch.model, desk.manifest)
    store = desk.store.batches
    ended_badly = batch.counts.failed + batch.counts.cancelled + batch.counts.expired
    digest = hashlib.sha256(f"retry {batch.id}".encode()).hexdigest()

    def fill(upload: Upload) -> Batch:
        found = 0
        for after in range(0, ended_badly, CHUNK_ROWS):
            for _, row in store.unsuccessful(batch.id, after, CHUNK_ROWS):
                upload.add(row)
                found += 1
        if not found:
            raise Problem("nothing_to_retry", _why_nothing(batch))
        return upload.end(lambda: digest)

    draft = BatchDraft(
        model=model.name,
        params=GenerationParams.model_construct(**batch.params, seed=batch.seed),
        window_seconds=_window_seconds(batch),
        name=batch.name,
        metadata=batch.metadata,
        retry_of=batch.id,
        extra=store.extra(batch.id),  # noqa: S610 - no Django here
    )
    return uploaded(
        store, draft, caller, fill, idempotency_key=idempotency_key, digest=lambda: digest
    )


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


def _window_seconds(batch: Batch) -> int:
    if batch.expires_at is None:
        return MAX_WINDOW_SECONDS
    seconds = round((batch.expires_at - batch.created_at).total_seconds())
    return max(MIN_WINDOW_SECONDS, min(seconds, MAX_WINDOW_SECONDS))
