"""Dead letters: jobs that failed, with all that it takes to run them again."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from slm_jobs.errors import DeadLetterNotFound
from slm_jobs.records import new_job_id, to_job, to_record
from slm_jobs.schemas import Job, JobSpec

if TYPE_CHECKING:
    from slm_jobs.batches import Run


class DeadLetter(NamedTuple):
    job: Job
    key: str  # whose; empty: nobody's
    spec: JobSpec  # with its deadlines, but without its callback


class DeadLetters:
    """Those of a `JobStore`, which makes it. Methods raise StoreUnavailable as its do.

    A dead letter is a job that failed, whatever the reason. It goes when it is deleted or redriven,
    and with the job's record. Rows of batches are none: a batch lists and retries its own.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def page(self, *, limit: int = 50, cursor: int | None = None) -> tuple[list[Job], int | None]:
        """Of all keys, the latest first, and the cursor of the next page; None after the last."""
        following, *found = self._run("dead_letters", cursor or 0, limit)
        records = [
            (job_id, to_record(v)) for job_id, v in zip(found[::2], found[1::2], strict=True)
        ]
        jobs = [to_job(job_id, record) for job_id, record in records if record]
        return jobs, None if following == "" else int(following)

    def count(self) -> int:
        """How many there are."""
        return int(self._run("dead_letters_oldest", 0)[0])

    def get(self, job_id: str) -> DeadLetter:
        """Raises DeadLetterNotFound, also for one that was redriven."""
        found = self._run("dead_letter", job_id)
        if found is None:
            raise DeadLetterNotFound(job_id)
        values, request, *timeouts = found
        record = to_record(values)
        queue_timeout, run_timeout = (int(ms) / 1000 if ms else None for ms in timeouts)
        spec = JobSpec.model_validate_json(request).model_copy(
            update={"queue_timeout": queue_timeout, "run_timeout": run_timeout}
        )
        return DeadLetter(to_job(job_id, record), record["key"], spec)

    def redrive(self, job_id: str) -> Job:
        """Makes the same request wait again as a new job, of the same key, with its callback; its
        limits are not asked. The same job if it is repeated. Raises DeadLetterNotFound."""
        found = self._run("redrive", job_id, new_job_id())
        if found is None:
            raise DeadLetterNotFound(job_id)
        new_id, values, _ = found
        return to_job(new_id, to_record(values))

    def redrive_oldest(self, most: int) -> list[Job]:
        """Redrives up to `most`, the oldest first: what fails again stands behind the others."""
        _, *ids = self._run("dead_letters_oldest", most)
        jobs = []
        for job_id in ids:
            with suppress(DeadLetterNotFound):  # somebody has dropped it meanwhile
                jobs.append(self.redrive(job_id))
        return jobs

    def drop(self, job_id: str) -> None:
        """Forgets the job, its texts and callbacks, for ever. Raises DeadLetterNotFound."""
        self.get(job_id)
        self._run("delete", job_id)
