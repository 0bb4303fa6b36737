"""Many rows through a bounded window of jobs. Knows no files, no screen.

Asking must stay cheap: api, Redis and the engine may share the cores with us. Jobs start in the
order in which they were submitted, so we wait for the oldest, which the service answers as soon as
it ends; by then the next ones have often ended too. Where it takes long, the others are looked at,
up to the first that still waits for a worker, so that a slow or lost job holds up nobody.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from slm_client.errors import ApiError
from slm_client.job import Failure, Job, Params
from slm_client.rows import Row

if TYPE_CHECKING:
    from slm_client.client import Client

_WAITS = (1, 2, 4, 8)  # seconds to wait for the oldest; longer while nothing ends
_PAUSE = 0.05  # seconds, where a service does not wait as it was asked
_ABORTING = (401, 403, 429, 503)  # about the service or the caller, not about one row


@dataclass(frozen=True, slots=True)
class RowResult:
    """`job` is None if the service did not accept the row; `error` is None if it succeeded."""

    row: Row
    job: Job | None
    error: Failure | None

    @property
    def completion_tokens(self) -> int:
        return self.job.usage.completion_tokens if self.job and self.job.usage else 0

    def line(self) -> dict[str, Any]:
        """As one line of a result file."""
        head = {"custom_id": self.row.custom_id, "prompt": self.row.prompt}
        if self.error or self.job is None:
            return {**head, "error": self.error and asdict(self.error)}
        output, usage = self.job.outputs[0], self.job.usage
        return {
            **head,
            "text": output.text,
            "finish_reason": output.finish_reason,
            "usage": usage and asdict(usage),
        }


def run(
    client: Client, rows: Iterable[Row | str], window: int, params: Params
) -> Iterator[RowResult]:
    """See `Client.bulk`. Raises what ends the whole run: ServiceUnreachable, and an ApiError about
    the caller (401, 403) or the service (429 and 503, once the client has lost patience)."""
    if window < 1:
        raise ValueError("window must be at least 1")
    if params.get("n", 1) != 1:
        raise ValueError("a row has one continuation: n must be 1")
    todo = enumerate(rows)
    flight = _Flight(client)
    while True:
        while len(flight) < window and (item := next(todo, None)) is not None:
            row = item[1] if isinstance(item[1], Row) else Row(str(item[0] + 1), item[1])
            try:
                flight.add(row, _submit(client, item[0], row, params))
            except ApiError as error:
                yield RowResult(row, None, _row_failure(error))
        if not len(flight):
            return
        yield from flight.next_ended()


def _submit(client: Client, index: int, row: Row, params: Params) -> Job:
    body: dict[str, Any] = {"prompt": row.prompt, **params}
    if (seed := params.get("seed")) is not None:
        body["seed"] = seed + index  # else the same prompt twice is the same story twice
    return client.submit_body(body)


def _row_failure(error: ApiError) -> Failure:
    """What an error says about one row. Raises it again if it is not about the row."""
    if error.status in _ABORTING:
        raise error
    return Failure(error.code, str(error.problem.get("detail") or error.problem.get("title")))


class _Flight:
    """Jobs that have not been seen to end, the oldest first."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._jobs: deque[tuple[Row, str]] = deque()  # row and job id
        self._fruitless = 0  # rounds in a row

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, row: Row, job: Job) -> None:
        self._jobs.append((row, job.id))

    def next_ended(self) -> list[RowResult]:
        """Waits for any job to end."""
        while True:
            began, wait = time.monotonic(), _WAITS[min(self._fruitless, len(_WAITS) - 1)]
            if ended := self._ask_oldest(wait) or self._ask_others():
                self._fruitless = 0
                return ended
            self._fruitless += 1
            if time.monotonic() - began < wait:  # the service did not wait
                time.sleep(_PAUSE)

    def _ask_oldest(self, wait: int) -> list[RowResult]:
        _, result = self._ask(*self._jobs[0], wait)
        if result is None:
            return []
        self._jobs.popleft()
        return [result]

    def _ask_others(self) -> list[RowResult]:
        """Those that have ended, up to the first that has never run."""
        ended: list[RowResult] = []
        going_on: list[tuple[Row, str]] = []
        never_ran = False
        while self._jobs and not never_ran:
            row, job_id = self._jobs.popleft()
            job, result = self._ask(row, job_id)
            if result:
                ended.append(result)
            else:
                going_on.append((row, job_id))
                never_ran = job is not None and job.status == "queued" and job.attempt == 0
        self._jobs.extendleft(reversed(going_on))
        return ended

    def _ask(self, row: Row, job_id: str, wait: int = 0) -> tuple[Job | None, RowResult | None]:
        """The job, if there is one, and the row's result, if it has one."""
        try:
            job = self._client.get(job_id, wait=wait)
        except ApiError as error:
            return None, RowResult(row, None, _row_failure(error))
        if not job.ended:
            return job, None
        return job, RowResult(row, job, None if job.succeeded else job.failure)
