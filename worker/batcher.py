"""One thread that owns every engine of a worker, and steps each of them while it has work.

Knows nothing of Redis or Celery: prompts go in, futures of their completions come out.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue

from worker.lane import Lane, Measured, SteppingEngine
from worker.submission import EngineLost, HandedBack, OnToken, Request, Submission

log = logging.getLogger(__name__)


class ContinuousBatcher:
    """Runs the work of many threads as one continuous batch on each engine.

    `loaders` make the engines, by model, in the thread that steps them: where a second thread has
    computed anything, OpenMP lets its helpers sleep between operations, and a step takes 1.2 times
    as long. So all engines share the one thread. Of those with work the one that has computed least
    steps next, so that a slow model takes its share of the time, not of the steps.

    The first model is loaded at the start, the others on first use. After an `EngineLost` all that
    is here is `HandedBack`, and `on_lost` is called, in that thread.
    """

    def __init__(
        self,
        loaders: Mapping[str, Callable[[], SteppingEngine]],
        *,
        on_lost: Callable[[], None] = lambda: None,
        name: str = "engines",
    ) -> None:
        self._on_lost = on_lost
        self._lanes = {model: Lane(model, load) for model, load in loaders.items()}
        self._loaded: Future[None] = Future()
        self._inbox: SimpleQueue[Submission | None] = SimpleQueue()  # None wakes the thread up
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._step_began: float | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Returns when the first model is loaded. Raises what loading it raised."""
        self._thread.start()
        self._loaded.result()

    def fingerprint(self, model: str) -> str:
        """Of an engine that has run something; see `slm_core.Engine.fingerprint`."""
        return self._lanes[model].engine.fingerprint

    def rates(self) -> dict[str, float]:
        """Tokens per second of computing, over about 10 s of it, of the models that have any."""
        rates = {model: lane.steps.tokens_per_second for model, lane in self._lanes.items()}
        return {model: rate for model, rate in rates.items() if rate}

    def slots_in_use(self) -> dict[str, int]:
        """Sequences that are being decoded, of the models that have any."""
        used = {model: lane.slots_in_use for model, lane in self._lanes.items()}
        return {model: slots for model, slots in used.items() if slots}

    def measured(self) -> dict[str, Measured]:
        """What the steps and the engine of each model have come to."""
        return {model: lane.measured() for model, lane in self._lanes.items()}

    def stalled_for(self) -> float:
        """Seconds since the step that runs now began; infinite if the thread has died.

        Loading a model is no step.
        """
        if self._ended.is_set() and not self._stopping.is_set():
            return math.inf
        began = self._step_began
        return 0.0 if began is None else time.monotonic() - began

    def submit(
        self,
        model: str,
        requests: Sequence[Request],
        *,
        priority: int = 0,
        on_token: OnToken | None = None,
    ) -> Submission:
        """Queues the requests; a greater `priority` is admitted first.

        `on_token` hears of every token, in the engines' thread: it must return at once. After a
        fault it hears of the same tokens again, from the first on.
        """
        submission = Submission(
            model, requests, priority=priority, on_token=on_token, notify=self._inbox.put
        )
        self._inbox.put(submission)
        if self._ended.is_set():
            self._hand_back()
        return submission

    def stop(self, timeout: float = 10.0) -> None:
        """Ends the thread at the next step boundary; what has not ended is `HandedBack`."""
        self._stopping.set()
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            next(iter(self._lanes.values())).load()
        except BaseException as error:
            self._stopping.set()
            self._ended.set()
            self._loaded.set_exception(error)
            return
        self._loaded.set_result(None)
        lost = False
        try:
            while not self._stopping.is_set():
                lane = self._next()
                self._take_inbox(wait=lane is None)
                if lane and lane.ready():
                    self._step_began = time.monotonic()
                    lane.step()
                    self._step_began = None
        except EngineLost:
            log.critical("no engine can run here any more", exc_info=True)
            self._stopping.set()
            lost = True
        finally:
            self._step_began = None
            self._ended.set()
            self._hand_back()
        if lost:
            self._on_lost()

    def _next(self) -> Lane | None:
        """Of the lanes with work, the one that has computed least; who idles saves nothing up."""
        busy = [lane for lane in self._lanes.values() if lane.has_work]
        if not busy:
            return None
        least = min(busy, key=lambda lane: lane.used)
        for lane in self._lanes.values():
            if lane not in busy:
                lane.used = max(lane.used, least.used)
        return least

    def _take_inbox(self, *, wait: bool) -> None:
        with contextlib.suppress(Empty):
            while True:
                submission = self._inbox.get(block=wait)
                wait = False
                if submission:
                    self._lanes[submission.model].take(submission)

    def _hand_back(self) -> None:
        """Settles everything that is here; also called by who submits after the end."""
        with contextlib.suppress(Empty):
            while True:
                if submission := self._inbox.get_nowait():
                    submission.settle(HandedBack())
        for lane in self._lanes.values():
            lane.hand_back()
