"""Everything `slm_client` raises on purpose.

SlmClientError
├── ApiError             the service answered with an error; carries its problem document
├── ServiceUnreachable   nothing answers at the address
├── JobTimeout           a job did not end in the time given
└── StartError           `slm up` could not start a part
"""

from __future__ import annotations

from typing import Any


class SlmClientError(Exception):
    pass


class ApiError(SlmClientError):
    """`status` of HTTP, the stable error `code`, and the whole RFC 9457 `problem` document."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status = status
        self.problem = problem
        self.code = str(problem.get("code", "unknown"))
        super().__init__(f"{status} {self.code}: {problem.get('detail') or problem.get('title')}")


class ServiceUnreachable(SlmClientError):
    pass


class JobTimeout(SlmClientError):
    pass


class StartError(SlmClientError):
    pass
