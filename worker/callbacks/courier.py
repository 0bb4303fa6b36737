"""Keeps deliveries going, many at once, none in the way of another. For asyncio.

Knows nothing of HTTP; every call to the store is made in a thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar

from slm_jobs.callback_schemas import DueDelivery, Outcome
from slm_jobs.callbacks import CallbackStore
from slm_jobs.errors import StoreUnavailable
from slm_jobs.settings import Settings
from worker.callbacks.breakers import Breakers
from worker.callbacks.delivery import UNREACHABLE
from worker.callbacks.metrics import CallbackMetrics

log = logging.getLogger(__name__)

SETTLE_SECONDS = 40.0  # of a lease, after the attempt, to write how it went
LOOK_AGAIN = 5.0  # seconds: it claims at least so often, whatever was not heard
_LEAST_WAIT = 0.01
_FIRST_PAUSE, _LAST_PAUSE = 0.1, 2.0  # seconds, while Redis is away
_CLOSING_SECONDS = 4.0  # to write the last outcomes
_MOST_OUTCOMES = 256  # in one call
_HOST_SHARE = 8  # the lanes of all keys to a host hold a slot in so many

_Attempt = Callable[[DueDelivery], Awaitable[Outcome]]
_T = TypeVar("_T")


class Courier:
    """Claims what is due, attempts it, and settles how it went: `run` until `stop`.

    At least once: what was not settled within its lease, because Redis was away or this process
    died, becomes due again.
    """

    def __init__(
        self,
        store: CallbackStore,
        attempt: _Attempt,
        settings: Settings,
        metrics: CallbackMetrics | None = None,
    ) -> None:
        self._store = store
        self._attempt = attempt
        self._metrics = metrics or CallbackMetrics()
        self._concurrency = settings.callback_concurrency
        self._per_lane = settings.callback_per_host
        self._per_host = max(self._per_lane, self._concurrency // _HOST_SHARE)
        self._grace = settings.callback_timeout_seconds
        self._late_ms = 1000 * settings.callback_timeout_seconds / 2
        self._lease = settings.callback_timeout_seconds + SETTLE_SECONDS
        self._running: dict[asyncio.Task[None], DueDelivery] = {}
        self._ended: list[tuple[float, Outcome]] = []  # with the time at which the lease ends
        self._breakers = Breakers()
        self._wake = asyncio.Event()  # something may be claimed
        self._settling = asyncio.Event()  # something may be settled
        self._stopping = asyncio.Event()
        self._closing = False  # nothing more will end
        self._away = False
        self._threads = ThreadPoolExecutor(2, "store")

    def wake(self) -> None:
        """Something may have become due."""
        self._wake.set()

    def stop(self) -> None:
        """No more claims; what runs may end, within the time that an attempt may take."""
        self._stopping.set()
        self._wake.set()

    async def run(self) -> None:
        settler = asyncio.create_task(self._settle_all(), name="settler")
        try:
            await self._claim_all()
            if self._running:
                log.info("stopping: %d attempts may end", len(self._running))
                await asyncio.wait(self._running, timeout=self._grace)
            cut_off = list(self._running.values())
            self._closing = True
            self._settling.set()
            await asyncio.wait({settler}, timeout=_CLOSING_SECONDS)
            with suppress(StoreUnavailable):  # else when their leases end
                await self._call(partial(self._store.release, cut_off))
            if lost := len(cut_off) + len(self._ended):
                log.warning("%d attempts have no outcome in Redis, and will be made again", lost)
        finally:
            tasks = {settler, *self._running}
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self._threads.shutdown(wait=False)

    # Claiming

    async def _claim_all(self) -> None:
        pause = _FIRST_PAUSE
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                wait = await self._claim()
            except StoreUnavailable as error:
                self._note_contact(error)
                await _wait(self._stopping, pause)
                pause = min(2 * pause, _LAST_PAUSE)
            except Exception:  # a dead courier would deliver nothing
                log.exception("claiming failed")
                await _wait(self._stopping, _LAST_PAUSE)
            else:
                pause = _FIRST_PAUSE
                await _wait(self._wake, wait)

    async def _claim(self) -> float:
        """Starts what is due and has room. Returns the seconds until it is time to look again."""
        room = self._concurrency - len(self._running)
        if room <= 0:
            return LOOK_AGAIN
        lapses = asyncio.get_running_loop().time() + self._lease
        claim = partial(
            self._store.claim,
            room,
            per_lane=self._per_lane,
            per_host=self._per_host,
            running=Counter(due.lane for due in self._running.values()),
            limits=self._breakers.limits(),
            lease_seconds=self._lease,
        )
        found, wait = await self._call(claim)
        self._note_contact(None)
        for due in found:
            task = asyncio.create_task(self._deliver(due, lapses), name=due.id)
            self._running[task] = due
        probe = self._breakers.next_probe()
        return max(min(wait, LOOK_AGAIN if probe is None else probe, LOOK_AGAIN), _LEAST_WAIT)

    async def _deliver(self, due: DueDelivery, lapses: float) -> None:
        try:
            with self._metrics.running.track_inprogress():
                outcome = await self._attempt(due)
            self._metrics.attempted(outcome)
            self._breakers.note(due.lane, reached=self._reached(outcome))
            _log_attempt(due, outcome)
            self._ended.append((lapses, outcome))
            self._settling.set()
        finally:
            if task := asyncio.current_task():
                del self._running[task]

    def _reached(self, outcome: Outcome) -> bool:
        """A receiver that fails late, whatever it says then, holds slots like one that hangs."""
        late = not outcome.delivered and outcome.attempt.duration_ms > self._late_ms
        return not late and outcome.attempt.error not in UNREACHABLE

    # Settling

    async def _settle_all(self) -> None:
        while not (self._closing and not self._ended):
            await self._settling.wait()
            self._settling.clear()
            await self._settle()

    async def _settle(self) -> None:
        """All that has ended, as long as its lease lasts."""
        clock, pause = asyncio.get_running_loop().time, _FIRST_PAUSE
        while self._ended:
            several = [outcome for _, outcome in self._ended[:_MOST_OUTCOMES]]
            try:
                settled = await self._call(partial(self._store.settle, several))
            except StoreUnavailable as error:
                self._note_contact(error)
                lost = [o.delivery_id for lapses, o in self._ended if lapses <= clock()]
                if lost:
                    log.warning("no outcome could be written, will deliver again: %s", lost)
                self._ended = [entry for entry in self._ended if entry[0] > clock()]
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LAST_PAUSE)
                continue
            except Exception:  # it would fail again, and stand in the way of the others
                log.exception("the outcomes of %d attempts are lost", len(several))
            else:
                self._note_contact(None)
                for outcome, done in zip(several, settled, strict=True):
                    if not done:
                        log.info("%s was settled before, or replaced", outcome.delivery_id)
            del self._ended[: len(several)]
            self._wake.set()  # there is room, and Redis knows when they are due again

    async def _call(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _note_contact(self, error: StoreUnavailable | None) -> None:
        if error and not self._away:
            log.warning("no contact with Redis, waiting for it: %s", error)
        elif self._away and not error:
            log.info("Redis is back")
        self._away = error is not None


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def _log_attempt(due: DueDelivery, outcome: Outcome) -> None:
    """Without what is nobody's business: the URL's query, secrets, the payload."""
    attempt = outcome.attempt
    host = due.lane.rpartition(" ")[2]
    said = attempt.error or f"delivered, {attempt.status}"
    then = ""
    if attempt.error:
        then = "; given up" if outcome.next is None else f"; again in {outcome.next:.0f} s"
    log.log(
        logging.WARNING if attempt.error and outcome.next is None else logging.INFO,
        "%s %s to %s: %s in %d ms%s",
        due.id,
        due.type,
        host,
        said,
        attempt.duration_ms,
        then,
        extra={
            "request_id": due.request_id,
            "delivery_id": due.id,
            "delivery_type": due.type,
            "host": host,
            "status": attempt.status,
            "error": attempt.error,
            "duration_ms": attempt.duration_ms,
        },
    )
