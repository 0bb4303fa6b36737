"""Dead letters: jobs that failed, with all that it takes to run them again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slm_jobs.errors import DeadLetterNotFound
from slm_jobs.records import new_job_id, to_job, to_record
from slm_jobs.schemas import Job

if TYPE_CHECKING:
    from slm_jobs.batches import Run


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

    def redrive(self, job_id: str) -> Job:
        """Makes the same request wait again as a new job, of the same key, with its callback; its
        limits are not asked. The same job if it is repeated. Raises DeadLetterNotFound."""
        found = self._run("redrive", job_id, new_job_id())
        if found is None:
            raise DeadLetterNotFound(job_id)
        new_id, values, _ = found
        return to_job(new_id, to_record(values))
