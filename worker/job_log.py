"""Log lines about a job: which attempt, and the HTTP request that it came with."""

from __future__ import annotations

import logging

from slm_jobs.schemas import Work


def log_job(
    logger: logging.Logger,
    level: int,
    work: Work,
    message: str,
    *args: object,
    exc_info: bool = False,
) -> None:
    """Logs `message`, after the job and its request, which the record also has as fields."""
    request = work.spec.request_id
    logger.log(
        level,
        "%s attempt %d%s: " + message,
        work.id,
        work.attempt,
        f" (request {request})" if request else "",
        *args,
        exc_info=exc_info,
        extra={"job_id": work.id, "attempt": work.attempt, "request_id": request},
        stacklevel=2,
    )
