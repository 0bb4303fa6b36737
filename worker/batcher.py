"""One thread that owns an engine and steps it while there is work.

Knows nothing of Redis or Celery: groups of prompts go in, futures of their completions come out.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Sequence
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

    A fault in a step takes no batch mates along: everything that was in the engine then runs again
    alone, which gives the same text (same seed), and only what fails alone fails.
    """

    def __init__(self, engine: SteppingEngine, name: str = "engine") -> None:
        self._engine = engine
        self._inbox: SimpleQueue[_Group | None] = SimpleQueue()  # None wakes the thread up
        self._groups: dict[int, _Group] = {}  # sequence -> its group
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, requests: Sequence[Request]) -> Completions:
        """Queues the requests; the future gives their completions in order.

        It raises what `Engine.add` raises for a bad request, EngineFault, or HandedBack. Cancelling
        the future frees the sequences at the next step.
        """
        group = _Group(requests)
        self._inbox.put(group)
        group.future.add_done_callback(lambda _: self._notice(group))
        if self._stopping.is_set() and not self._thread.is_alive():
            self._empty_inbox()
        return group.future

    def _notice(self, group: _Group) -> None:
        """A cancelled group comes to the inbox a second time, to be forgotten."""
        if group.future.cancelled():
            self._inbox.put(group)

    def stop(self, timeout: float = 10.0) -> None:
        """Ends the thread at the next step boundary; what has not ended is `HandedBack`."""
        self._stopping.set()
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout)
        self._empty_inbox()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._take_inbox(wait=not self._engine.has_work)
            if self._engine.has_work:
                self._step()
        for group in self._reset():
            group.settle(HandedBack())

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
                    self._admit(group)

    def _empty_inbox(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                if group := self._inbox.get_nowait():
                    group.settle(HandedBack())

    def _admit(self, group: _Group) -> None:
        group.completions.clear()
        group.sequences.clear()
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
        except Exception:
            log.exception("a decode step failed; its work runs again, each alone")
            self._run_suspects()
        else:
            self._settle(events)

    def _settle(self, events: list[Event]) -> None:
        for event in events:
            if event.completion and (group := self._groups.pop(event.sequence, None)):
                group.take(event.sequence, event.completion)

    def _run_suspects(self) -> None:
        suspects = self._reset()
        while suspects and not self._stopping.is_set():
            group = suspects.pop(0)
            self._admit(group)
            try:
                while self._engine.has_work and not self._stopping.is_set():
                    self._settle(self._engine.step())
            except Exception as error:
                log.exception("work failed alone")
                self._reset()
                group.settle(EngineFault(f"the engine failed on this work: {error}"))
        for group in suspects:
            group.settle(HandedBack())

    def _reset(self) -> list[_Group]:
        """Empties the engine; returns what was in it, in order of arrival."""
        groups = list(dict.fromkeys(self._groups.values()))
        self._groups.clear()
        self._engine.reset()
        return groups
