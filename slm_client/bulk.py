"""Many rows through a bounded window of jobs. Knows no files, no screen.

Polling must stay cheap: api, Redis and the engine may share the cores with us. Jobs start in the
order in which they were submitted, so a round asks about the running ones, least recently asked
first, then about the waiting ones only up to the first that still waits. An answer "not yet" costs
a pause; a round without any ended job costs a growing one.
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

_NOT_YET_PAUSE = 0.05  # seconds: at most 20 fruitless requests a second
_ROUND_PAUSES = (0.05, 0.5)  # seconds: the first pause after a fruitless round, and the longest
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
        yield flight.next_ended()


def _submit(client: Client, index: int, row: Row, params: Params) -> Job:
    body: dict[str, Any] = {"prompt": row.prompt, **params}
    if (seed := params.get("seed")) is not None:
        body["seed"] = seed + index  # else the same prompt twice is the same story twice
    # A doubled row costs one generation; a lost one would cost the whole run.
    return client.submit_body(body, at_least_once=True)


def _row_failure(error: ApiError) -> Failure:
    """What an error says about one row. Raises it again if it is not about the row."""
    if error.status in _ABORTING:
        raise error
    return Failure(error.code, str(error.problem.get("detail") or error.problem.get("title")))


class _Flight:
    """Jobs that have not been seen to end."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._queued: deque[tuple[Row, str]] = deque()  # row and job id, oldest first
        self._running: deque[tuple[Row, str]] = deque()  # least recently asked first
        self._unasked = 0  # running ones still to ask in this round
        self._head_waits = False  # the oldest queued one was asked in this round
        self._round_pause = _ROUND_PAUSES[0]

    def __len__(self) -> int:
        return len(self._queued) + len(self._running)

    def add(self, row: Row, job: Job) -> None:
        self._queued.append((row, job.id))

    def next_ended(self) -> RowResult:
        """Waits for any job to end."""
        while True:
            if self._unasked:
                self._unasked -= 1
                row, job_id = self._running.popleft()
            elif self._queued and not self._head_waits:
                row, job_id = self._queued.popleft()
            else:
                self._next_round()
                continue
            if result := self._ask(row, job_id):
                self._round_pause = _ROUND_PAUSES[0]
                return result
            time.sleep(_NOT_YET_PAUSE)

    def _ask(self, row: Row, job_id: str) -> RowResult | None:
        try:
            job = self._client.get(job_id)
        except ApiError as error:
            return RowResult(row, None, _row_failure(error))
        if job.succeeded:
            return RowResult(row, job, None)
        if job.ended:
            return RowResult(row, job, job.failure)
        if job.status == "queued":
            self._queued.appendleft((row, job_id))
            self._head_waits = True
        else:
            self._running.append((row, job_id))
        return None

    def _next_round(self) -> None:
        time.sleep(self._round_pause)
        self._round_pause = min(self._round_pause * 1.5, _ROUND_PAUSES[1])
        self._unasked = len(self._running)
        self._head_waits = False
