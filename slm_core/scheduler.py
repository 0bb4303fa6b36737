"""Which sequence sits in which slot. Plain Python state, no tensors."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from slm_core.sampling import BROKEN, SamplingParams
from slm_core.tokenizer import StreamDecoder, Tokenizer

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Completion:
    """A finished continuation: `text` without the prompt, `token_ids` without end-of-text.

    `finish_reason` is `stop` at end-of-text or a stop string, `length` at max_tokens, else
    `cancelled`.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    usage: Usage


@dataclass(eq=False)
class Sequence:
    """One continuation in progress."""

    id: int
    prompt_ids: list[int]
    params: SamplingParams
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: str | None = None
    _text: str | None = field(default=None, init=False, repr=False)  # if cut at a stop string
    _streamed: str = field(default="", init=False, repr=False)
    _decoder: StreamDecoder | None = field(default=None, init=False, repr=False)

    @property
    def ended(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    @property
    def position(self) -> int:
        """Where the last token goes, counted from 0."""
        return len(self.prompt_ids) + len(self.token_ids) - 1

    def append(self, token: int, tokenizer: Tokenizer) -> None:
        """Takes the next token; sets `finish_reason`, or `error`, if it ends the sequence."""
        if token == BROKEN:
            self.error = "the model's logits are not finite numbers"
            return
        if token == tokenizer.eos_id and not self.params.ignore_eos:
            self.finish_reason = "stop"
            return
        self.token_ids.append(token)
        if self.params.stop and self._reached_stop(token, tokenizer):
            self.finish_reason = "stop"
        elif len(self.token_ids) == self.params.max_tokens:
            self.finish_reason = "length"

    def _reached_stop(self, token: int, tokenizer: Tokenizer) -> bool:
        self._decoder = self._decoder or tokenizer.stream()
        searched = len(self._streamed)
        self._streamed += self._decoder.push(token)
        found = [
            at
            for stop in self.params.stop
            if (at := self._streamed.find(stop, max(0, searched - len(stop) + 1))) >= 0
        ]
        if found:
            self._text = self._streamed[: min(found)]
        return bool(found)

    def completion(self, tokenizer: Tokenizer) -> Completion:
        text = tokenizer.decode(self.token_ids) if self._text is None else self._text
        usage = Usage(len(self.prompt_ids), len(self.token_ids))
        return Completion(text, list(self.token_ids), self.finish_reason or "cancelled", usage)


class Scheduler:
    """Waiting sequences in order of arrival; live ones in slots 0 ... n-1 without a gap."""

    def __init__(
        self, slots: int, *, prefill_tokens: int, prompt_bucket: Callable[[int], int]
    ) -> None:
        self.slots = slots
        self.live: list[Sequence] = []  # live[i] sits in slot i
        self.waiting: deque[Sequence] = deque()
        self._prefill_tokens = prefill_tokens
        self._prompt_bucket = prompt_bucket

    def __len__(self) -> int:
        return len(self.live) + len(self.waiting)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def admit(self) -> list[list[Sequence]]:
        """Moves waiting sequences into free slots; returns them in groups of one padded length.

        At least one, then as many as fit the slots and the padded tokens that one step may prefill,
        so that running sequences never stall for long.
        """
        admitted: list[Sequence] = []
        budget = self._prefill_tokens
        while self.waiting and len(self.live) + len(admitted) < self.slots:
            budget -= self._bucket(self.waiting[0])
            if admitted and budget < 0:
                break
            admitted.append(self.waiting.popleft())
        admitted.sort(key=self._bucket)
        self.live += admitted
        return [list(group) for _, group in groupby(admitted, self._bucket)]

    def _bucket(self, sequence: Sequence) -> int:
        return self._prompt_bucket(len(sequence.prompt_ids))

    def release(self) -> tuple[list[Sequence], list[tuple[int, int]]]:
        """Frees the slots of finished sequences.

        Returns those sequences, and the moves (source, target) that keep the live slots dense; the
        sequence to copy then sits at `live[target]`.
        """
        finished = [s for s in (*self.live, *self.waiting) if s.ended]
        if not finished:
            return [], []
        self.waiting = deque(s for s in self.waiting if not s.ended)
        count = sum(not s.ended for s in self.live)
        holes = [slot for slot in range(count) if self.live[slot].ended]
        movers = [slot for slot in range(count, len(self.live)) if not self.live[slot].ended]
        moves = list(zip(movers, holes, strict=True))
        for source, target in moves:
            self.live[target] = self.live[source]
        del self.live[count:]
        return finished, moves
