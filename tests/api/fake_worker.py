"""A worker without a model: claims jobs through the store, as a real one does, and answers them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from slm_jobs.batch_schemas import RowEnd
from slm_jobs.schemas import JobError, Output, Piece, Usage, Work
from slm_jobs.store import JobStore

FINGERPRINT = "fake/1"
_ROWS = 8  # of batches that are claimed at once

Answer = Callable[[JobStore, Work], None]


def outputs(work: Work) -> list[Output]:
    """Output i says ` <i> ☃`."""
    count = len(work.spec.prompts) * work.spec.n
    return [Output(index=i, text=f" <{i}> ☃", finish_reason="stop") for i in range(count)]


def usage(work: Work) -> Usage:
    return Usage(prompt_tokens=4, completion_tokens=3, total_tokens=7)


def answer(store: JobStore, work: Work) -> None:
    """Ends a job or a row with `outputs`, and streams them in two pieces where that was asked
    for."""
    if work.row:
        end = RowEnd(work, "succeeded", outputs(work), usage(work), FINGERPRINT)
        assert store.batches.finish([end]) == [True]
        return
    if work.spec.stream:
        stream(store, work, FINGERPRINT)
    assert store.complete(work, outputs(work), usage(work), fingerprint=FINGERPRINT)


def fail(store: JobStore, work: Work, error: JobError) -> None:
    if work.row:
        store.batches.finish([RowEnd(work, "failed", [], None, None, error)])
    else:
        store.fail(work, error)


def stream(store: JobStore, work: Work, fingerprint: str) -> None:
    for start, end, part in ((0, 2, slice(2)), (2, 5, slice(2, None))):
        pieces = [Piece(output.index, start, end, output.text[part]) for output in outputs(work)]
        assert store.append(work, fingerprint, pieces)


class FakeWorker:
    """Gives every job and row of `model` to `answer`, one after the other, while it is entered.

    `seen` holds what it was given; what went wrong in its thread is raised at the end.
    """

    def __init__(self, store: JobStore, answer: Answer = answer, model: str = "tiny") -> None:
        self.seen: list[Work] = []
        self.claimed = threading.Event()
        self._store = store
        self._answer = answer
        self._model = model
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                works = self._store.claim_next(self._model, worker="w1", rows=_ROWS)
                for work in works:
                    self.seen.append(work)
                    self.claimed.set()
                    self._run_one(work)
                if not works:
                    self._stop.wait(0.002)
        except BaseException as failure:
            self._failure = failure

    def _run_one(self, work: Work) -> None:
        try:
            self._answer(self._store, work)
        except BaseException as failure:  # who waits for the job must not wait for ever
            fail(self._store, work, JobError(code="fake_worker", message=repr(failure)))
            raise
