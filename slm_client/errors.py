"""Everything `slm_client` raises on purpose.

SlmClientError
├── ApiError             the service answered with an error; carries its problem document
├── ServiceUnreachable   nothing answers at the address
├── JobTimeout           a job or a batch did not end in the time given
├── JobFailed            a job ended without success; carries the job
├── BadInput             a file or folder that a person gave cannot be used; names it, and the line
└── StartError           `slm up` could not start a part, or could not keep it running
    └── PortTaken        something listens on its port
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slm_client.job import Job


class SlmClientError(Exception):
    pass


class ApiError(SlmClientError):
    """`status` of HTTP, the stable error `code`, and the whole RFC 9457 `problem` document.

    `advice` is what a person may do about it. `retry_after` is the seconds that the service asks
    us to stay away.
    """

    def __init__(
        self,
        status: int,
        problem: dict[str, Any],
        advice: str = "",
        retry_after: float = 0.0,
    ) -> None:
        self.status = status
        self.problem = problem
        self.code = str(problem.get("code", "unknown"))
        self.retry_after = retry_after
        said = f"{status} {self.code}: {problem.get('detail') or problem.get('title')}"
        super().__init__(f"{said.rstrip('.')}. {advice}" if advice else said)


class ServiceUnreachable(SlmClientError):
    pass


class JobTimeout(SlmClientError):
    pass


class JobFailed(SlmClientError):
    """`job.status` is `failed`, `cancelled` or `expired`; `job.outputs` may hold partial text."""

    def __init__(self, job: Job) -> None:
        self.job = job
        super().__init__(f"{job.id} {job.status}: {job.failure.message}")


class BadInput(SlmClientError):
    pass


class StartError(SlmClientError):
    pass


class PortTaken(StartError):
    pass
