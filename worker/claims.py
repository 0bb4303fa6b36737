"""What this process takes on: one claim at a time, so that suspects run apart from the rest."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from slm_jobs.errors import StoreUnavailable
from slm_jobs.schemas import Company, Work
from slm_jobs.store import JobStore
from worker.job_log import log_job
from worker.leases import Leases

log = logging.getLogger(__name__)


class Room(NamedTuple):
    """What a model may have here at once, so that one model's flood starves no other."""

    jobs: int  # each is a thread
    row_outputs: int  # of rows in its engine, those of jobs included


@dataclass
class _Load:
    """What a model has here."""

    room: Room
    jobs: int = 0
    job_outputs: int = 0
    fed: bool = False  # whether some thread is its feeder

    def free(self, row_outputs: int) -> int:
        return self.room.row_outputs - self.job_outputs - row_outputs


class Claims:
    """Claims work for every model in `rooms`, and holds its leases. Methods are safe for threads.

    Jobs are for the thread that claims them. Rows make it the model's feeder, which claims more of
    them by `feed`; `wake` tells it that there may be more. Nothing is claimed that must not run
    beside what there is.
    """

    def __init__(
        self,
        store: JobStore,
        leases: Leases,
        worker: str,
        rooms: Mapping[str, Room],
        wake: Callable[[str], None],
    ) -> None:
        self._store = store
        self._leases = leases
        self._worker = worker
        self._loads = {model: _Load(room) for model, room in rooms.items()}
        self._wake = wake
        self._company = Company.ANY  # what may join what is here
        self._apart = 0  # works here that may not have any company
        self._claim_number = 0
        self._answered: int | None = None  # the last claim whose reply came
        self._unheard = False  # whether a later one's did not
        self._closed = False
        self._changed = threading.Condition()

    def claim(self, model: str) -> list[Work]:
        """A job, or rows for a new feeder; nothing where nothing waits, the model has all that it
        may have here, or claims are closed. Waits while suspects run, if none may join them."""
        load = self._loads[model]
        with self._changed:
            works = self._claim_first(model, load)
            while not (works or self._closed or self._company is Company.ANY):
                self._changed.wait()
                works = self._claim_first(model, load)
            if not works and load.fed:
                self._wake(model)
            for work in works:
                if work.row:
                    load.fed = True
                else:
                    load.jobs += 1
                    load.job_outputs += _outputs(work)
        return works

    def feed(self, model: str, row_outputs: int, *, idle: bool) -> list[Work]:
        """More rows for the model's feeder, which has so many outputs in the engine.

        If it is `idle` and gets nothing, it is the feeder no longer.
        """
        load = self._loads[model]
        with self._changed:
            rows = max(0, load.free(row_outputs))
            works: list[Work] = []
            try:
                works = self._claim(model, jobs=False, rows=rows, company=self._company)
            finally:
                load.fed = bool(works) or not idle
        return works

    def recover(self) -> None:
        """Gives back what a claim got whose reply was lost, if no later one has. Raises
        StoreUnavailable."""
        with self._changed:
            if self._unheard:
                self._ask(next(iter(self._loads)), jobs=False, rows=0, company=self._company)

    def stop_feeding(self, model: str) -> None:
        """The model's feeder has failed, and holds nothing any more."""
        with self._changed:
            self._loads[model].fed = False

    def give_back_suspect(self, work: Work, why: object) -> None:
        """`work` was in an engine that is lost. It still has to be released."""
        log_job(log, logging.ERROR, work, "goes back as a suspect: %s", why)
        try:
            self._store.hand_back([work], crashed=True)
        except StoreUnavailable as error:
            log_job(log, logging.WARNING, work, "left to its lease: %s", error)

    def release(self, works: Sequence[Work]) -> None:
        """The outcomes of `works` are written, or are not ours to write."""
        for work in works:
            self._leases.release(work)
        self.forget(works)

    def forget(self, works: Sequence[Work]) -> None:
        """Nothing runs `works` any more; their leases stay, until all that is left goes back."""
        with self._changed:
            for work in works:
                if not work.row:
                    self._loads[work.model].jobs -= 1
                    self._loads[work.model].job_outputs -= _outputs(work)
                if work.company is not Company.ANY:
                    self._apart -= 1
                    if not self._apart:
                        self._company = Company.ANY
                        self._changed.notify_all()

    def close(self) -> None:
        """Nothing is claimed from now on, and nobody waits."""
        self._closed = True
        with self._changed:
            self._changed.notify_all()

    def _claim_first(self, model: str, load: _Load) -> list[Work]:
        fed = any(load.fed for load in self._loads.values())
        empty = not (fed or self._apart or len(self._leases))
        return self._claim(
            model,
            jobs=load.jobs < load.room.jobs,
            rows=0 if load.fed else max(0, load.free(0)),
            company=None if empty else self._company,
        )

    def _claim(self, model: str, *, jobs: bool, rows: int, company: Company | None) -> list[Work]:
        if self._closed or company is Company.NONE or not (jobs or rows):
            return []
        try:
            works = self._ask(model, jobs=jobs, rows=rows, company=company)
        except StoreUnavailable as error:
            log.warning("cannot claim work: %s", error)
            return []
        for work in works:
            self._leases.hold(work)
        if works and works[0].company is not Company.ANY:
            self._company = works[0].company
            self._apart += len(works)
        return works

    def _ask(self, model: str, *, jobs: bool, rows: int, company: Company | None) -> list[Work]:
        self._claim_number += 1
        self._unheard = True
        works = self._store.claim_next(
            model,
            worker=self._worker,
            jobs=jobs,
            rows=rows,
            company=company,
            claim=self._claim_number,
            answered=self._answered,
        )
        self._unheard = False
        self._answered = self._claim_number
        return works


def _outputs(work: Work) -> int:
    return len(work.spec.prompts) * work.spec.n
