"""An engine without a model: each prompt's text is fixed, and some prompts break it."""

from __future__ import annotations

import itertools
import threading
import time

from slm_core import Completion, SamplingParams
from slm_core.engine import Event
from slm_core.errors import PromptTooLong
from slm_core.scheduler import Usage


class FakeEngine:
    """Ends a sequence after `max_tokens` steps with the text `<prompt>#<seed>`.

    A prompt `boom` makes every step that it is part of raise; `long` is refused; `hold` runs until
    it is cancelled. `largest` is the most sequences that were in the engine at once.
    """

    def __init__(self) -> None:
        self.live: dict[int, tuple[str, SamplingParams, int]] = {}
        self.added: list[int] = []
        self.steps = 0
        self.largest = 0
        self.threads: set[int] = set()
        self._ids = itertools.count()
        self._cancelled: set[int] = set()

    fingerprint = "fake/1"

    @property
    def has_work(self) -> bool:
        return bool(self.live)

    def add(self, prompt: str, params: SamplingParams) -> int:
        self.threads.add(threading.get_ident())
        if prompt == "long":
            raise PromptTooLong(100, params.max_tokens, 64)
        sequence = next(self._ids)
        self.added.append(sequence)
        self.live[sequence] = (prompt, params, 0)
        self.largest = max(self.largest, len(self.live))
        return sequence

    def cancel(self, sequence_id: int) -> None:
        self.threads.add(threading.get_ident())
        if sequence_id in self.live:
            self._cancelled.add(sequence_id)

    def reset(self) -> None:
        self.live.clear()
        self._cancelled.clear()

    def step(self) -> list[Event]:
        self.threads.add(threading.get_ident())
        self.steps += 1
        time.sleep(0.001)
        if any(prompt == "boom" for prompt, _, _ in self.live.values()):
            raise RuntimeError("device says no")
        events = []
        for sequence, (prompt, params, done) in list(self.live.items()):
            cancelled = sequence in self._cancelled
            ended = cancelled or (done + 1 == params.max_tokens and prompt != "hold")
            if not ended:
                self.live[sequence] = (prompt, params, done + 1)
                events.append(Event(sequence, 1, None))
                continue
            del self.live[sequence]
            self._cancelled.discard(sequence)
            reason = "cancelled" if cancelled else "length"
            usage = Usage(len(prompt), done + 1)
            text = f"{prompt}#{params.seed}"
            events.append(Event(sequence, 1, Completion(text, [1] * (done + 1), reason, usage)))
        return events
