"""One engine and the work in it. All but `Submission` belongs to the thread that steps the engine.

Knows nothing of Redis or Celery, nor of other engines.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Protocol

from slm_core import Completion, SamplingParams
from slm_core.engine import Event, Prompt
from slm_core.errors import DeviceLost, OutOfMemory

log = logging.getLogger(__name__)

ENDING_SECONDS = 5.0  # that work may take to end when it is told to; a step takes far less
RELOAD_SECONDS = 30.0  # a model that did not load is not tried again before
_RATE_SECONDS = 10.0  # of computing, over which the rate is averaged

Request = tuple[Prompt, SamplingParams]
OnToken = Callable[[int, int, int], None]  # (request, how many tokens it has, the last of them)


class SteppingEngine(Protocol):
    """What a lane needs of `slm_core.Engine`."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def has_work(self) -> bool: ...
    def add(self, prompt: Prompt, params: SamplingParams, *, priority: int = 0) -> int: ...
    def cancel(self, sequence_id: int) -> None: ...
    def step(self) -> list[Event]: ...
    def reset(self) -> None: ...


class HandedBack(Exception):
    """The batcher stopped before this work ended; it belongs back in the queue."""


class EngineLost(Exception):
    """The process must end, as its engine cannot go on; this work may be why."""


class EngineFault(Exception):
    """The engine cannot run this work, not even alone, or cannot be loaded."""


class Submission:
    """Requests that run as one. Its owner may wait for `future`, and call `end` and `drop`.

    `future` settles once: with the completions, in order, or with what `Engine.add` raises for a
    bad request, EngineFault, EngineLost, or HandedBack.
    """

    def __init__(
        self,
        model: str,
        requests: Sequence[Request],
        *,
        priority: int = 0,
        on_token: OnToken | None = None,
        notify: Callable[[Submission], None],
    ) -> None:
        self.model = model
        self.requests = requests
        self.priority = priority
        self.on_token = on_token
        self.future: Future[list[Completion]] = Future()
        self.ending = False
        self.taken = False  # by its lane
        self.begun = False  # some output has a token
        self.sequences: list[int] = []  # in the engine; may name some that have ended
        self._completions: dict[int, Completion] = {}
        self._notify = notify

    def end(self) -> None:
        """Ends what still runs at the next step: those completions are `cancelled`, with the text
        they have."""
        self.ending = True
        self._notify(self)

    def drop(self) -> None:
        """Cancels the future, and frees the sequences at the next step."""
        if self.future.cancel():
            self._notify(self)

    def restart(self) -> None:
        self.sequences.clear()
        self._completions.clear()

    def complete(self, request: int, completion: Completion) -> None:
        self._completions[request] = completion
        if len(self._completions) == len(self.requests):
            self.settle([self._completions[i] for i in range(len(self.requests))])

    def settle(self, outcome: list[Completion] | Exception) -> None:
        with contextlib.suppress(InvalidStateError):  # its owner dropped it
            if isinstance(outcome, Exception):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)


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
        self.tokens_per_second = 0.0  # of time spent in steps
        self._load = load
        self._engine: SteppingEngine | None = None
        self._reload_at = -math.inf
        self._load_error = ""
        self._waiting: deque[Submission] = deque()  # not yet in the engine
        self._suspects: list[list[Submission]] = []  # to run again, the last batch first
        self._on_trial = False  # whether a batch of suspects is in the engine
        self._rows: dict[int, _Row] = {}  # by sequence: what is in the engine
        self._recent = (0.0, 0.0)  # tokens and seconds, fading

    @property
    def engine(self) -> SteppingEngine:
        if self._engine is None:
            raise RuntimeError(f"model {self.model} is not loaded")
        return self._engine

    @property
    def has_work(self) -> bool:
        in_engine = self._engine is not None and self._engine.has_work
        return bool(in_engine or self._waiting or self._suspects)

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
        started = time.monotonic()
        try:
            events = self.engine.step()
        except DeviceLost as error:
            raise self._lost(error, self._in_engine()) from error
        except Exception as error:
            log.exception("a decode step of model %s failed", self.model)
            self._split_suspects(error)
            return
        self._measure(sum(event.token is not None for event in events), time.monotonic() - started)
        for event in events:
            if row := self._rows.get(event.sequence):
                self._deliver(event, row)

    def _deliver(self, event: Event, row: _Row) -> None:
        submission = row.submission
        if event.token is not None:
            row.tokens += 1
            submission.begun = True
            if submission.on_token:
                submission.on_token(row.request, row.tokens, event.token)
        if event.completion:
            del self._rows[event.sequence]
            submission.complete(row.request, event.completion)
        elif event.error:
            self._forget(submission)
            submission.settle(EngineFault(event.error))

    def _measure(self, tokens: int, seconds: float) -> None:
        fading = math.exp(-seconds / _RATE_SECONDS)
        self._recent = (self._recent[0] * fading + tokens, self._recent[1] * fading + seconds)
        self.tokens_per_second = self._recent[0] / max(self._recent[1], 1e-9)

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
