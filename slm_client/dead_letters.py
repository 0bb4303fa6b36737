"""Dead letters: jobs that failed, of all API keys, for those who hold an admin key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from slm_client.job import Job
from slm_client.transport import Connection

_PATH = "/admin/dead-letters"
_MOST = 100  # ids of one request


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A job that failed, whose it is, and what it was asked: `prompts` (texts, or token ids) and
    the fields of `POST /jobs`. `raw` is the whole document, with what this version does not know.
    """

    job: Job
    key: str
    request: Mapping[str, Any]
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> DeadLetter:
        """Raises KeyError, TypeError or ValueError if `document` is no dead letter."""
        request = {"prompts": document["request"]["prompts"], **document["request"]}
        return cls(Job.from_json(document["job"]), document["key"], request, document)


@dataclass(frozen=True, slots=True)
class Redriven:
    """The new `jobs`, whose `retry_of` tells of which dead letter each is; the ids that were
    `not_found`; and how many dead letters are `left`."""

    jobs: tuple[Job, ...]
    not_found: tuple[str, ...]
    left: int

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Redriven:
        """Raises KeyError, TypeError or ValueError if `document` is none."""
        jobs = tuple(map(Job.from_json, document["data"]))
        return cls(jobs, tuple(document["not_found"]), int(document["left"]))


class DeadLetters:
    """`client.dead_letters`. A dead letter becomes one new job, however often it is redriven, so
    all of this is sent again where an answer was lost.

    Every call may raise ServiceUnreachable and ApiError; with a key that is no admin's, status 403.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(self, *, limit: int | None = None) -> Iterator[Job]:
        """The latest first, at most `limit`."""
        return self._connection.pages(_PATH, Job.from_json, limit=limit)

    def count(self) -> int:
        """How many there are."""
        query = {"limit": "1"}
        return self._connection.call("GET", _PATH, lambda page: int(page["total"]), query=query)

    def get(self, job_id: str) -> DeadLetter:
        """Raises ApiError `dead_letter_not_found`, also for one that was redriven."""
        return self._connection.call("GET", _path(job_id), DeadLetter.from_json)

    def redrive(self, job_id: str) -> Job:
        """The new job. Raises ApiError `dead_letter_not_found`."""
        return self._connection.call("POST", f"{_path(job_id)}/redrive", Job.from_json)

    def redrive_these(self, job_ids: Sequence[str]) -> Iterator[Redriven]:
        """What became of them, a hundred at a time."""
        for first in range(0, len(job_ids), _MOST):
            yield self._redrive({"ids": list(job_ids[first : first + _MOST])})

    def redrive_all(self) -> Iterator[Redriven]:
        """All that there are when it begins, a hundred at a time, the oldest first. What fails
        again meanwhile stays."""
        left = self.count()
        while left > 0:
            redriven = self._redrive({"all": True, "limit": min(left, _MOST)})
            yield redriven
            if not redriven.jobs:
                return
            left -= len(redriven.jobs)

    def drop(self, job_id: str) -> None:
        """Forgets the job, its texts and its callbacks, for ever. Raises ApiError
        `dead_letter_not_found`."""
        self._connection.call("DELETE", _path(job_id), lambda _: None)

    def _redrive(self, body: dict[str, Any]) -> Redriven:
        return self._connection.call("POST", f"{_PATH}/redrive", Redriven.from_json, body=body)


def _path(job_id: str) -> str:
    return f"{_PATH}/{quote(job_id, safe='')}"
