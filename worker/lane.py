"""One engine and the work in it. All of it belongs to the thread that steps the engine.

Knows nothing of Redis or Celery, nor of other engines.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from slm_core import SamplingParams
from slm_core.engine import Event, Prompt
from slm_core.errors import DeviceLost, OutOfMemory
from slm_core.stats import EngineStats
from worker.step_stats import StepStats
from worker.submission import EngineFault, EngineLost, HandedBack, Submission

log = logging.getLogger(__name__)

RELOAD_SECONDS = 30.0  # a model that did not load is not tried again before


class SteppingEngine(Protocol):
    """What a lane needs of `slm_core.Engine`."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def has_work(self) -> bool: ...
    @property
    def slots_in_use(self) -> int: ...
    @property
    def stats(self) -> EngineStats: ...
    def add(self, prompt: Prompt, params: SamplingParams, *, priority: int = 0) -> int: ...
    def cancel(self, sequence_id: int) -> None: ...
    def step(self) -> list[Event]: ...
    def reset(self) -> None: ...


class Measured(NamedTuple):
    """What a lane and its engine have come to; zeros before it is loaded."""

    steps: StepStats
    engine: EngineStats
    slots_in_use: int


@dataclass(slots=True)
class _Row:
    """A sequence in the engine: which request of which submission, and how many tokens it has."""

    submission: Submission
    request: int
    tokens: int = 0


class Lane:
    """A model's engine, made by `load` on first use, and its submissions.

    A fault in a step takes no batch mates along: what was in the engine then runs again, which
    gives the same text (same seed), in halves and halves of halves, so that soon only what is to
    blame runs alone, and fails. New work waits meanwhile. Want of memory is treated alike, but what
    finds none alone either is not failed for it; see `EngineLost`.
    """

    def __init__(self, model: str, load: Callable[[], SteppingEngine]) -> None:
        self.model = model
        self.used = 0.0  # seconds of the thread; see `ContinuousBatcher`
        self.steps = StepStats()
        self._load = load
        self._engine: SteppingEngine | None = None
        self._reload_at = -math.inf
        self._load_error = ""
        self._waiting: deque[Submission] = deque()  # not yet in the engine
        self._suspects: list[list[Submission]] = []  # to run again, the last batch first
        self._on_trial = False  # whether a batch of suspects is in the engine
        self._rows: dict[int, _Row] = {}  # by sequence: what is in the engine

    @property
    def engine(self) -> SteppingEngine:
        if self._engine is None:
            raise RuntimeError(f"model {self.model} is not loaded")
        return self._engine

    @property
    def has_work(self) -> bool:
        in_engine = self._engine is not None and self._engine.has_work
        return bool(in_engine or self._waiting or self._suspects)

    @property
    def slots_in_use(self) -> int:
        """Sequences that the engine decodes; safe to read from any thread."""
        return self._engine.slots_in_use if self._engine else 0

    def measured(self) -> Measured:
        """Safe to call from any thread."""
        engine = self._engine
        stats = engine.stats if engine else EngineStats()
        return Measured(self.steps, stats, self.slots_in_use)

    def load(self) -> None:
        """Makes the engine. Raises what that raises."""
        started = time.monotonic()
        self._engine = self._load()
        seconds = time.monotonic() - started
        log.info("model %s ready after %.1f s: %s", self.model, seconds, self._engine.fingerprint)

    def ready(self) -> bool:
        """Makes the engine if there is none yet; if that fails, so does what waits for it.

        Raises EngineLost where there is no memory for it, or no device that works.
        """
        if self._engine is None and time.monotonic() >= self._reload_at:
            try:
                self.load()
            except (OutOfMemory, DeviceLost) as error:
                raise self._lost(error, list(self._waiting)) from error
            except Exception as error:
                log.exception("model %s cannot be loaded", self.model)
                self._reload_at = time.monotonic() + RELOAD_SECONDS
                self._load_error = f"model {self.model} cannot be loaded: {error}"
        if self._engine is None:
            while self._waiting:
                self._waiting.popleft().settle(EngineFault(self._load_error))
        return self._engine is not None

    def take(self, submission: Submission) -> None:
        """New work, or work that comes again because its owner has ended or dropped it."""
        if not submission.taken:
            submission.taken = True
            self._waiting.append(submission)
        elif submission.future.cancelled():
            self._forget(submission)
        elif submission.ending:
            for sequence in submission.sequences:
                self.engine.cancel(sequence)

    def step(self) -> None:
        """Admits what waits, and moves everything on by a token. Needs `ready`.

        Raises EngineLost; then nothing can run here any more.
        """
        started = time.monotonic()
        self._fill()
        if self.engine.has_work:
            self._step()
        self.used += time.monotonic() - started

    def hand_back(self) -> None:
        """Settles everything that is here."""
        in_engine = (row.submission for row in list(self._rows.values()))
        for submission in [*in_engine, *self._waiting, *itertools.chain(*self._suspects)]:
            submission.settle(HandedBack())

    def _fill(self) -> None:
        """Hands work to the engine: suspects first, one batch at a time and nothing beside it."""
        if not self._rows:
            self._on_trial = bool(self._suspects)
            for submission in self._suspects.pop() if self._suspects else ():
                self._admit(submission)
        if not (self._on_trial or self._suspects):
            while self._waiting:
                self._admit(self._waiting.popleft())

    def _admit(self, submission: Submission) -> None:
        submission.restart()
        if submission.future.done():
            return
        try:
            for request, (prompt, params) in enumerate(submission.requests):
                sequence = self.engine.add(prompt, params, priority=submission.priority)
                submission.sequences.append(sequence)
                self._rows[sequence] = _Row(submission, request)
        except Exception as error:
            self._forget(submission)
            submission.settle(error)
        if submission.ending:  # before it came here
            for sequence in submission.sequences:
                self.engine.cancel(sequence)

    def _forget(self, submission: Submission) -> None:
        for sequence in submission.sequences:
            if self._rows.pop(sequence, None):
                self.engine.cancel(sequence)

    def _step(self) -> None:
        prefilled = self.engine.stats.prefill_tokens
        began = time.monotonic()
        try:
            events = self.engine.step()
        except DeviceLost as error:
            raise self._lost(error, self._in_engine()) from error
        except Exception as error:
            log.exception("a decode step of model %s failed", self.model)
            self._split_suspects(error)
            return
        ended = time.monotonic()
        tokens = first = 0
        for event in events:
            if row := self._rows.get(event.sequence):
                if event.token is not None:
                    tokens += 1
                    first += not row.tokens
                self._deliver(event, row, ended)
        prefill = self.engine.stats.prefill_tokens > prefilled
        self.steps.note(began, ended, tokens, first, prefill=prefill)

    def _deliver(self, event: Event, row: _Row, now: float) -> None:
        submission = row.submission
        if submission.first_at is None:
            submission.first_at = now
        if event.token is not None:
            row.tokens += 1
            if submission.first_token_at is None:
                submission.first_token_at = now
            if submission.on_token:
                submission.on_token(row.request, row.tokens, event.token)
        if event.completion:
            submission.last_at = now
            del self._rows[event.sequence]
            submission.complete(row.request, event.completion)
        elif event.error:
            self._forget(submission)
            submission.settle(EngineFault(event.error))

    def _split_suspects(self, error: Exception) -> None:
        suspects = self._in_engine()
        if len(suspects) == 1 and isinstance(error, OutOfMemory):
            raise self._lost(error, suspects) from error
        try:
            self.engine.reset()
        except Exception as worse:
            raise self._lost(worse, suspects) from worse
        self._rows.clear()
        if len(suspects) == 1:
            suspects[0].settle(EngineFault(f"the engine failed on this work: {error}"))
        elif suspects:
            half = len(suspects) // 2
            self._suspects += [suspects[half:], suspects[:half]]

    def _in_engine(self) -> list[Submission]:
        return list(dict.fromkeys(row.submission for row in self._rows.values()))

    def _lost(self, error: Exception, suspects: list[Submission]) -> EngineLost:
        """`suspects` may be why; what else is here is innocent."""
        lost = EngineLost(f"{type(error).__name__}: {error}")
        for submission in suspects:
            submission.settle(lost)
        return lost
