"""Continuous, padded, batched KV-cache decoding.

Deterministic, and starts no threads: whoever owns an engine calls `step()`. Knows nothing of jobs,
queues or clients.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Literal

import torch

from slm_core.checkpoint import load_checkpoint
from slm_core.decoder import ROW_BUCKET, Decoder
from slm_core.errors import EngineError, InvalidParams, PromptTooLong
from slm_core.kv_cache import round_up
from slm_core.model import GPT
from slm_core.sampling import Sampler, SamplingParams
from slm_core.scheduler import Completion, Scheduler, Sequence
from slm_core.tokenizer import Tokenizer

Prompt = str | Seq[int]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32"]

_PREFILL_TOKENS = 1024  # padded; about the arithmetic of ten decode steps


@dataclass(frozen=True, slots=True)
class Event:
    """A sequence got one more `token` of its text, or ended with a `completion` or an `error`."""

    sequence: int
    token: int | None = None
    completion: Completion | None = None
    error: str | None = None


class Engine:
    """A model and `slots` sequences that it decodes at once."""

    def __init__(
        self,
        model: GPT,
        *,
        device: Device = "auto",
        precision: Precision = "auto",
        slots: int = 64,
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots must be at least 1, not {slots}")
        if precision not in ("auto", "fp32"):
            raise ValueError(f"no precision {precision!r}; there are auto, fp32")
        self.tokenizer = Tokenizer()
        if model.config.vocab_size > self.tokenizer.vocab_size:
            raise ValueError(f"a vocabulary of {model.config.vocab_size} is not GPT-2's")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.config = model.config
        self._decoder = Decoder(model, slots, torch.device(device))
        self._scheduler = Scheduler(
            slots, prefill_tokens=_PREFILL_TOKENS, prompt_bucket=self._decoder.prompt_bucket
        )
        capacity = round_up(slots, ROW_BUCKET)
        self._sampler = Sampler(capacity, self._decoder.device)
        self._tokens = torch.zeros(capacity, dtype=torch.int64, device=device)
        self._positions = torch.zeros(capacity, dtype=torch.int64, device=device)
        self._ids = itertools.count()

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        device: Device = "auto",
        precision: Precision = "auto",
        slots: int = 64,
    ) -> Engine:
        """Loads a checkpoint directory. Raises CheckpointError."""
        return cls(load_checkpoint(path), device=device, precision=precision, slots=slots)

    @property
    def fingerprint(self) -> str:
        """What the promise "same seed, same text" holds for."""
        device = self._decoder.device.type
        if device == "cpu":
            device += "-" + torch.backends.cpu.get_cpu_capability().lower()
        return f"fp32/{device}/torch-{torch.__version__}"

    @property
    def slots(self) -> int:
        return self._scheduler.slots

    @property
    def has_work(self) -> bool:
        return len(self._scheduler) > 0

    def encode(self, prompt: Prompt, params: SamplingParams) -> list[int]:
        """Token ids of a prompt that may run with `params`.

        Raises InvalidParams for an empty prompt or an unknown id, and PromptTooLong.
        """
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise InvalidParams("the prompt is empty")
        if not all(0 <= token < self.config.vocab_size for token in ids):
            raise InvalidParams(f"prompt ids must be in [0, {self.config.vocab_size})")
        if len(ids) + params.max_tokens > self.config.context_length:
            raise PromptTooLong(len(ids), params.max_tokens, self.config.context_length)
        return ids

    def add(self, prompt: Prompt, params: SamplingParams) -> int:
        """Queues a prompt; returns the id that its events carry. Raises as `encode` does."""
        return self._queue(self.encode(prompt, params), params)

    def _queue(self, prompt_ids: list[int], params: SamplingParams) -> int:
        sequence = Sequence(next(self._ids), prompt_ids, params)
        self._scheduler.add(sequence)
        return sequence.id

    def cancel(self, sequence_id: int) -> None:
        """Ends a sequence at the next step, with the text it has. Unknown ids are ignored."""
        for sequence in (*self._scheduler.live, *self._scheduler.waiting):
            if sequence.id == sequence_id:
                sequence.finish_reason = "cancelled"

    def reset(self) -> None:
        """Forgets every sequence, and whatever a failed step may have left behind."""
        self._scheduler.live.clear()
        self._scheduler.waiting.clear()
        self._tokens.zero_()
        self._positions.zero_()
        self._decoder.cache.data.zero_()

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Admits waiting sequences, decodes one token for each live one, frees finished slots."""
        events = self._release()
        for group in self._scheduler.admit():
            events += self._prefill(group)
        events += self._release()
        if self._scheduler.live:
            events += self._decode()
            events += self._release()
        return events

    def generate(
        self, prompts: Prompt | Seq[Prompt], params: SamplingParams | Seq[SamplingParams]
    ) -> list[Completion]:
        """Continues every prompt; completions come in the order of the prompts.

        `prompts` is one or several strings or lists of token ids; `params` one for all, or one
        each. Nothing runs unless every prompt fits. Raises as `encode` does, and EngineError where
        the model computes no numbers.
        """
        if self.has_work:
            raise RuntimeError("generate() needs an idle engine; add() and step() share one")
        many = _as_prompts(prompts)
        each = [params] * len(many) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(many):
            raise ValueError(f"{len(many)} prompts, but {len(each)} params")
        encoded = [self.encode(prompt, p) for prompt, p in zip(many, each, strict=True)]
        ids = [self._queue(prompt_ids, p) for prompt_ids, p in zip(encoded, each, strict=True)]
        done: dict[int, Completion] = {}
        while self.has_work:
            for event in self.step():
                if event.error:
                    self.reset()
                    raise EngineError(event.error)
                if event.completion:
                    done[event.sequence] = event.completion
        return [done[i] for i in ids]

    def _prefill(self, group: list[Sequence]) -> list[Event]:
        first = self._scheduler.live.index(group[0])
        self._sampler.assign(first, [sequence.params for sequence in group])
        logits = self._decoder.prefill([sequence.prompt_ids for sequence in group], first)
        return self._sample(logits, first, group)

    def _decode(self) -> list[Event]:
        live = self._scheduler.live
        longest = max(sequence.position for sequence in live)
        logits = self._decoder.decode_step(self._tokens, self._positions, len(live), longest)
        return self._sample(logits, 0, live)

    def _sample(self, logits: torch.Tensor, first: int, group: list[Sequence]) -> list[Event]:
        slots = slice(first, first + len(group))
        tokens = self._sampler.draw(logits, first)
        self._tokens[slots] = tokens.clamp(min=0)
        events = []
        for slot, (sequence, token) in enumerate(zip(group, tokens.tolist(), strict=True), first):
            length = len(sequence.token_ids)
            sequence.append(token, self.tokenizer)
            if sequence.error:
                self._decoder.cache.clear(slot)
            elif len(sequence.token_ids) > length:
                events.append(Event(sequence.id, token=token))
        self._positions[slots] = torch.tensor([sequence.position for sequence in group])
        return events

    def _release(self) -> list[Event]:
        finished, moves = self._scheduler.release()
        for source, target in moves:
            self._decoder.cache.move(source, target, self._scheduler.live[target].position)
            self._sampler.move(source, target)
            self._tokens[target] = self._tokens[source]
            self._positions[target] = self._positions[source]
        return [
            Event(s.id, error=s.error)
            if s.error
            else Event(s.id, completion=s.completion(self.tokenizer))
            for s in finished
        ]


def _as_prompts(prompts: Prompt | Seq[Prompt]) -> list[Prompt]:
    """A lone string or list of ids becomes a list of one prompt."""
    if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], Integral)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]
