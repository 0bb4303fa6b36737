"""An engine without a model: each prompt's text is fixed, and some prompts break it; and the one
part of a store that streams need."""

from __future__ import annotations

import itertools
import threading
import time

from slm_core import Completion, SamplingParams
from slm_core.engine import Event, Prompt
from slm_core.errors import DeviceLost, OutOfMemory, PromptTooLong
from slm_core.scheduler import FinishReason, Usage
from slm_core.stats import EngineStats
from slm_jobs.errors import StoreUnavailable
from slm_jobs.schemas import Piece, Work


class FakeEngine:
    """Ends a sequence after `max_tokens` steps with the text `<prompt>#<seed>`.

    Its tokens are 1, 2, 3, ... A prompt `boom` makes every step that it is part of raise, `broken`
    ends the device, `huge` finds no memory, nor do more than `fits` at once; `long` is refused;
    `hold` runs until it is cancelled. `largest` is the most sequences that were in the engine at
    once, `seen` what was in it in each step.

    What finds no slot waits, by priority; slots are without end unless told otherwise.
    """

    def __init__(
        self, step_seconds: float = 0.001, slots: int = 1_000_000, reserved_slots: int = 0
    ) -> None:
        self.live: dict[int, tuple[Prompt, SamplingParams, int]] = {}
        self.waiting: list[tuple[int, int, Prompt, SamplingParams]] = []
        self.seen: list[list[Prompt]] = []
        self.added: list[int] = []
        self.priorities: list[int] = []
        self.step_seconds = step_seconds
        self.steps = 0
        self.largest = 0
        self.fits = 1_000_000
        self.threads: set[int] = set()
        self.stats = EngineStats(kv_capacity=1_000)
        self._ids = itertools.count()
        self._cancelled: set[int] = set()
        self._slots = slots
        self._reserved = reserved_slots

    fingerprint = "fake/1"

    @property
    def slots_in_use(self) -> int:
        return len(self.live)

    @property
    def has_work(self) -> bool:
        return bool(self.live or self.waiting)

    def add(self, prompt: Prompt, params: SamplingParams, *, priority: int = 0) -> int:
        self.threads.add(threading.get_ident())
        if prompt == "long":
            raise PromptTooLong(100, params.max_tokens, 64)
        sequence = next(self._ids)
        self.added.append(sequence)
        self.priorities.append(priority)
        self.waiting = sorted([*self.waiting, (-priority, sequence, prompt, params)])
        self._admit()
        return sequence

    def _admit(self) -> None:
        while self.waiting:
            free = self._slots - len(self.live)
            if free <= (self._reserved if self.waiting[0][0] > 0 else 0):
                return
            _, sequence, prompt, params = self.waiting.pop(0)
            self.live[sequence] = (prompt, params, 0)
            self.largest = max(self.largest, len(self.live))

    def cancel(self, sequence_id: int) -> None:
        self.threads.add(threading.get_ident())
        if sequence_id in self.live or any(sequence_id == waits[1] for waits in self.waiting):
            self._cancelled.add(sequence_id)

    def reset(self) -> None:
        self.live.clear()
        self.waiting.clear()
        self._cancelled.clear()

    def step(self) -> list[Event]:
        self.threads.add(threading.get_ident())
        self.steps += 1
        self._admit()
        self.seen.append([prompt for prompt, _, _ in self.live.values()])
        time.sleep(self.step_seconds)
        live = self.seen[-1]
        if "boom" in live:
            raise RuntimeError("device says no")
        if "broken" in live:
            raise DeviceLost("device says nothing")
        if "huge" in live or len(live) > self.fits:
            raise OutOfMemory("no room")
        events = []
        for waits in [waits for waits in self.waiting if waits[1] in self._cancelled]:
            self.waiting.remove(waits)
            self._cancelled.discard(waits[1])
            nothing = Completion("", [], "cancelled", Usage(len(waits[2]), 0))
            events.append(Event(waits[1], None, nothing))
        for sequence, (prompt, params, done) in list(self.live.items()):
            cancelled = sequence in self._cancelled
            ended = cancelled or (done + 1 == params.max_tokens and prompt != "hold")
            if not ended:
                self.live[sequence] = (prompt, params, done + 1)
                events.append(Event(sequence, done + 1, None))
                continue
            del self.live[sequence]
            self._cancelled.discard(sequence)
            reason: FinishReason = "cancelled" if cancelled else "length"
            usage = Usage(len(prompt), done + 1)
            text = f"{prompt}#{params.seed}"
            completion = Completion(text, list(range(1, done + 2)), reason, usage)
            events.append(Event(sequence, done + 1, completion))
        return events


class FakeStream:
    """A job's stream as `JobStore.append` keeps it, which may lose calls or their replies."""

    def __init__(self) -> None:
        self.attempt = 1
        self.fingerprint: str | None = None
        self.texts: dict[int, str] = {}  # by output, since the last restart
        self.counts: dict[int, int] = {}
        self.restarts = 0
        self.calls: list[float] = []  # when something was sent
        self.away = False
        self.lose_reply = False

    def append(self, work: Work, fingerprint: str, pieces: list[Piece]) -> dict[int, int] | None:
        if self.away:
            raise StoreUnavailable("away")
        if pieces:
            self.calls.append(time.monotonic())
        if work.attempt != self.attempt:
            return None
        if self.fingerprint not in (None, fingerprint):
            self.restarts += 1
            self.texts, self.counts = {}, {}
        self.fingerprint = fingerprint
        for piece in pieces:
            assert piece.end > piece.start
            if piece.start == self.counts.get(piece.output, 0):
                self.texts[piece.output] = self.texts.get(piece.output, "") + piece.text
                self.counts[piece.output] = piece.end
        if self.lose_reply:
            raise StoreUnavailable("the reply was lost")
        return dict(self.counts)
