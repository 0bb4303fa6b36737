"""Which sequence sits in which slot. Plain Python state, no tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Literal

from slm_core.sampling import BROKEN, SamplingParams
from slm_core.tokenizer import StreamDecoder, Tokenizer

FinishReason = Literal["stop", "length", "cancelled", "deadline"]


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

    `finish_reason` is `stop` at end-of-text or a stop string, `length` at max_tokens, `deadline` or
    `cancelled` if something else came first.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    usage: Usage


@dataclass(eq=False, slots=True)
class Sequence:
    """One continuation in progress.

    A greater `priority` is admitted first, then the lower id. `deadline` is a time of the engine's
    clock, in seconds.
    """

    id: int
    prompt_ids: list[int]
    params: SamplingParams
    priority: int = 0
    deadline: float | None = None
    admitted: bool = False
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: str | None = None
    _text: str | None = field(default=None, init=False, repr=False)  # if cut at a stop string
    _streamed: str = field(default="", init=False, repr=False)
    _decoder: StreamDecoder | None = field(default=None, init=False, repr=False)

    @property
    def ended(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    def append(self, token: int, tokenizer: Tokenizer) -> bool:
        """Takes the next token; sets `finish_reason`, or `error`, if it ends the sequence.

        Returns whether the token is part of the text.
        """
        if token == BROKEN:
            self.error = "the model's logits are not finite numbers"
            return False
        if token == tokenizer.eos_id and not self.params.ignore_eos:
            self.finish_reason = "stop"
            return False
        self.token_ids.append(token)
        if self.params.stop and self._reached_stop(token, tokenizer):
            self.finish_reason = "stop"
        elif len(self.token_ids) == self.params.max_tokens:
            self.finish_reason = "length"
        return True

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
    """Waiting sequences by priority, then age; live ones in slots 0 ... n-1 without a gap.

    Those of negative priority leave `reserved` slots free for others, or all but one.
    """

    def __init__(
        self,
        slots: int,
        *,
        prefill_tokens: int,
        prompt_cost: Callable[[int], int],
        reserved: int = 0,
    ) -> None:
        self.slots = slots
        self.live: list[Sequence] = []  # live[i] sits in slot i
        self._waiting: list[tuple[int, int, Sequence]] = []  # a heap; ended ones stay till popped
        self._known: dict[int, Sequence] = {}  # by id: the live and the waiting
        self._timed: list[tuple[float, int]] = []  # a heap of deadlines
        self._dropped: list[Sequence] = []  # ended while they waited, not yet released
        self._prefill_tokens = prefill_tokens
        self._prompt_cost = prompt_cost
        self._reserved = min(reserved, slots - 1)

    def __len__(self) -> int:
        return len(self._known)

    @property
    def waiting(self) -> list[Sequence]:
        """In the order of their admission."""
        return [sequence for _, _, sequence in sorted(self._waiting) if not sequence.ended]

    def add(self, sequence: Sequence) -> None:
        self._known[sequence.id] = sequence
        heappush(self._waiting, (-sequence.priority, sequence.id, sequence))
        if sequence.deadline is not None:
            heappush(self._timed, (sequence.deadline, sequence.id))

    def end(self, sequence_id: int, reason: FinishReason) -> None:
        """Ends a sequence at the next release, with what it has. Ids not here are ignored."""
        sequence = self._known.get(sequence_id)
        if sequence and not sequence.ended:
            sequence.finish_reason = reason
            if not sequence.admitted:
                self._dropped.append(sequence)

    def expire(self, now: float) -> None:
        """Ends what has reached its deadline."""
        while self._timed and self._timed[0][0] <= now:
            self.end(heappop(self._timed)[1], "deadline")

    def admit(self) -> list[Sequence]:
        """Moves waiting sequences into the next free slots, and returns them, shortest first.

        At least one, then as many as fit the slots that they may take and the prompt tokens that
        one step may prefill, so that running sequences never stall for long.
        """
        admitted: list[Sequence] = []
        budget = self._prefill_tokens
        while self._waiting:
            sequence = self._waiting[0][2]
            if not sequence.ended:
                free = self.slots - len(self.live) - len(admitted)
                if free <= (self._reserved if sequence.priority < 0 else 0):
                    break  # and so must all behind it
                budget -= self._prompt_cost(len(sequence.prompt_ids))
                if admitted and budget < 0:
                    break
                sequence.admitted = True
                admitted.append(sequence)
            heappop(self._waiting)
        admitted.sort(key=lambda s: len(s.prompt_ids))
        self.live += admitted
        return admitted

    def release(self) -> tuple[list[Sequence], list[tuple[int, int]]]:
        """Frees the slots of finished sequences.

        Returns those sequences, and the moves (source, target) that keep the live slots dense; the
        sequence to copy then sits at `live[target]`.
        """
        ended, self._dropped = self._dropped, []
        ended += [s for s in self.live if s.ended]
        if not ended:
            return [], []
        for sequence in ended:
            del self._known[sequence.id]
        count = sum(not s.ended for s in self.live)
        holes = [slot for slot in range(count) if self.live[slot].ended]
        movers = [slot for slot in range(count, len(self.live)) if not self.live[slot].ended]
        moves = list(zip(movers, holes, strict=True))
        for source, target in moves:
            self.live[target] = self.live[source]
        del self.live[count:]
        return ended, moves

    def clear(self) -> None:
        """Forgets every sequence."""
        for container in (self.live, self._waiting, self._known, self._timed, self._dropped):
            container.clear()
