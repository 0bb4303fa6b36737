"""One thread that loads an engine, owns it, and steps it while there is work.

Knows nothing of Redis or Celery: groups of prompts go in, futures of their completions come out.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from queue import Empty, SimpleQueue
from typing import Protocol

from slm_core import Completion, SamplingParams
from slm_core.engine import Event

log = logging.getLogger(__name__)

Request = tuple[str, SamplingParams]
Completions = Future[list[Completion]]


class SteppingEngine(Protocol):
    """What the batcher needs of `slm_core.Engine`."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def has_work(self) -> bool: ...
    def add(self, prompt: str, params: SamplingParams) -> int: ...
    def cancel(self, sequence_id: int) -> None: ...
    def step(self) -> list[Event]: ...
    def reset(self) -> None: ...


class HandedBack(Exception):
    """The batcher stopped before this work ended; it belongs back in the queue."""


class EngineFault(Exception):
    """The engine cannot run this work, not even alone."""


class _Group:
    """The sequences of one `submit`; its future settles once, with all of them or an error."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.future: Completions = Future()
        self.completions: dict[int, Completion] = {}
        self.sequences: list[int] = []

    def take(self, sequence: int, completion: Completion) -> None:
        self.completions[sequence] = completion
        if len(self.completions) == len(self.requests):
            self.settle([self.completions[s] for s in self.sequences])

    def settle(self, outcome: list[Completion] | Exception) -> None:
        with contextlib.suppress(InvalidStateError):  # its owner cancelled it
            if isinstance(outcome, Exception):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)


class ContinuousBatcher:
    """Runs the work of many threads as one continuous batch on one engine.

    `load` makes the engine, in the thread that steps it: where a second thread has computed
    anything, OpenMP lets its helpers sleep between operations, and a step takes 1.2 times as long.

    A fault in a step takes no batch mates along: what was in the engine then runs again, which
    gives the same text (same seed), in halves and halves of halves, so that soon only what is to
    blame runs alone, and fails. New work waits meanwhile.
    """

    def __init__(self, load: Callable[[], SteppingEngine], name: str = "engine") -> None:
        self._load = load
        self._loaded: Future[SteppingEngine] = Future()
        self._engine: SteppingEngine
        self._inbox: SimpleQueue[_Group | None] = SimpleQueue()  # None wakes the thread up
        self._waiting: deque[_Group] = deque()  # not yet in the engine
        self._suspects: list[list[_Group]] = []  # to run again, the last batch first
        self._on_trial = False  # whether a batch of suspects is in the engine
        self._groups: dict[int, _Group] = {}  # sequence -> its group, in the engine
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._progress = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Returns when the engine is loaded. Raises what loading it raised."""
        self._thread.start()
        self._loaded.result()

    @property
    def fingerprint(self) -> str:
        """The engine's; see `slm_core.Engine.fingerprint`."""
        return self._engine.fingerprint

    def stalled_for(self) -> float:
        """Seconds since a step ended although there is work; infinite if the thread has died."""
        if self._ended.is_set() and not self._stopping.is_set():
            return math.inf
        return time.monotonic() - self._progress if self._groups else 0.0

    def submit(self, requests: Sequence[Request]) -> Completions:
        """Queues the requests; the future gives their completions in order.

        It raises what `Engine.add` raises for a bad request, EngineFault, or HandedBack. Cancelling
        the future frees the sequences at the next step.
        """
        group = _Group(requests)
        self._inbox.put(group)
        group.future.add_done_callback(lambda _: self._notice(group))
        if self._ended.is_set():
            self._hand_back()
        return group.future

    def stop(self, timeout: float = 10.0) -> None:
        """Ends the thread at the next step boundary; what has not ended is `HandedBack`."""
        self._stopping.set()
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _notice(self, group: _Group) -> None:
        """A cancelled group comes to the inbox a second time, to be forgotten."""
        if group.future.cancelled():
            self._inbox.put(group)

    def _run(self) -> None:
        try:
            self._engine = self._load()
        except BaseException as error:
            self._stopping.set()
            self._ended.set()
            self._loaded.set_exception(error)
            return
        self._loaded.set_result(self._engine)
        try:
            while not self._stopping.is_set():
                idle = not (self._engine.has_work or self._waiting or self._suspects)
                self._take_inbox(wait=idle)
                self._progress = time.monotonic()
                self._fill()
                if self._engine.has_work:
                    self._step()
        finally:
            self._ended.set()
            self._hand_back()

    def _take_inbox(self, *, wait: bool) -> None:
        with contextlib.suppress(Empty):
            while True:
                group = self._inbox.get(block=wait)
                wait = False
                if group is None:
                    continue
                if group.future.cancelled():
                    self._forget(group)
                else:
                    self._waiting.append(group)

    def _fill(self) -> None:
        """Hands groups to the engine: suspects first, one batch at a time and nothing beside it."""
        if not self._groups:
            self._on_trial = bool(self._suspects)
            for group in self._suspects.pop() if self._suspects else ():
                self._admit(group)
        if not (self._on_trial or self._suspects):
            while self._waiting:
                self._admit(self._waiting.popleft())

    def _admit(self, group: _Group) -> None:
        group.completions.clear()
        group.sequences.clear()
        if group.future.done():
            return
        try:
            for prompt, params in group.requests:
                sequence = self._engine.add(prompt, params)
                group.sequences.append(sequence)
                self._groups[sequence] = group
        except Exception as error:
            self._forget(group)
            group.settle(error)

    def _forget(self, group: _Group) -> None:
        for sequence in group.sequences:
            if self._groups.pop(sequence, None):
                self._engine.cancel(sequence)

    def _step(self) -> None:
        try:
            events = self._engine.step()
        except Exception as error:
            log.exception("a decode step failed")
            self._split_suspects(error)
            return
        for event in events:
            if event.completion and (group := self._groups.pop(event.sequence, None)):
                group.take(event.sequence, event.completion)
            elif event.error and (group := self._groups.get(event.sequence)):
                self._forget(group)
                group.settle(EngineFault(event.error))

    def _split_suspects(self, error: Exception) -> None:
        suspects = list(dict.fromkeys(self._groups.values()))  # in order of arrival
        self._engine.reset()
        self._groups.clear()
        if len(suspects) == 1:
            suspects[0].settle(EngineFault(f"the engine failed on this work: {error}"))
        elif suspects:
            half = len(suspects) // 2
            self._suspects += [suspects[half:], suspects[:half]]

    def _hand_back(self) -> None:
        """Settles everything that is here; also called by who submits after the end."""
        groups = [*self._groups.values(), *self._waiting, *itertools.chain(*self._suspects)]
        with contextlib.suppress(Empty):
            while True:
                if group := self._inbox.get_nowait():
                    groups.append(group)
        for group in groups:
            group.settle(HandedBack())
