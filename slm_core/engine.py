"""Continuous batched KV-cache decoding.

Deterministic, and starts no threads: whoever owns an engine calls `step()`. Knows nothing of jobs,
queues or clients.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from slm_core.backend import Device, Kernels, open_backend
from slm_core.checkpoint import load_checkpoint, read_perplexity
from slm_core.errors import DeviceLost, EngineError, InvalidParams, OutOfMemory, PromptTooLong
from slm_core.linear import Precision
from slm_core.model import GPT
from slm_core.sampling import SamplingParams
from slm_core.scheduler import Completion, Scheduler, Sequence
from slm_core.stats import EngineStats
from slm_core.tokenizer import Tokenizer

Prompt = str | Seq[int]

_PREFILL_TOKENS = 1024  # about the arithmetic of ten decode steps


class Event(NamedTuple):
    """A sequence got one more `token` of its text, or ended with a `completion` or an `error`."""

    sequence: int
    token: int | None = None
    completion: Completion | None = None
    error: str | None = None


class Engine:
    """A model and `slots` sequences that it decodes at once.

    `precision` "auto" is the fastest of "fp32", "bf16" and "int8" that this machine offers and that
    costs at most 1 % of `perplexity`, which names what the model reaches in each; unknown means
    "fp32". `kernels` "auto" takes the native CPU kernels that suit the processor where they are
    built, "none" PyTorch alone; a variant's name pins it, so that a fleet of different processors
    rounds alike. Without `kv_cache` every step runs every text again, in PyTorch: slow, for
    comparison. Sequences of negative priority leave `reserved_slots` free, so that others find one
    at once. `clock` tells seconds, for deadlines.

    Raises ValueError for what this machine does not have, OutOfMemory and DeviceLost.
    """

    def __init__(
        self,
        model: GPT,
        *,
        device: Device = "auto",
        precision: Literal["auto"] | Precision = "auto",
        slots: int = 64,
        kernels: Kernels = "auto",
        kv_cache: bool = True,
        reserved_slots: int = 0,
        perplexity: Mapping[str, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots must be at least 1, not {slots}")
        if reserved_slots < 0:
            raise ValueError(f"reserved_slots must be at least 0, not {reserved_slots}")
        self.tokenizer = Tokenizer()
        if model.config.vocab_size > self.tokenizer.vocab_size:
            raise ValueError(f"a vocabulary of {model.config.vocab_size} is not GPT-2's")
        self.config = model.config
        with _named_faults():
            self._backend, self.precision = open_backend(
                model,
                device=device,
                precision=precision,
                kernels=kernels,
                slots=slots,
                perplexity=perplexity or {},
                kv_cache=kv_cache,
            )
        self._scheduler = Scheduler(
            slots,
            prefill_tokens=_PREFILL_TOKENS,
            prompt_cost=self._backend.prompt_cost,
            reserved=reserved_slots,
        )
        self.stats = EngineStats(slots * model.config.context_length if kv_cache else 0)
        self._clock = clock
        self._ids = itertools.count()

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        device: Device = "auto",
        precision: Literal["auto"] | Precision = "auto",
        slots: int = 64,
        kernels: Kernels = "auto",
        kv_cache: bool = True,
        reserved_slots: int = 0,
    ) -> Engine:
        """Loads a checkpoint directory. Raises CheckpointError, and as above."""
        with _named_faults():
            model = load_checkpoint(path)
        return cls(
            model,
            device=device,
            precision=precision,
            slots=slots,
            kernels=kernels,
            kv_cache=kv_cache,
            reserved_slots=reserved_slots,
            perplexity=read_perplexity(path),
        )

    @property
    def fingerprint(self) -> str:
        """What the promise "same seed, same text" holds for."""
        return f"{self.precision}/{self._backend.name}"

    @property
    def slots(self) -> int:
        return self._scheduler.slots

    @property
    def slots_in_use(self) -> int:
        return len(self._scheduler.live)

    @property
    def has_work(self) -> bool:
        return len(self._scheduler) > 0

    def encode(self, prompt: Prompt, params: SamplingParams) -> list[int]:
        """Token ids of a prompt that may run with `params`.

        Raises InvalidParams for an empty prompt or an unknown id, and PromptTooLong.
        """
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        self._check(ids, params.max_tokens)
        return ids

    def _check(self, ids: list[int], new: int) -> None:
        if not ids:
            raise InvalidParams("the prompt is empty")
        if not all(0 <= token < self.config.vocab_size for token in ids):
            raise InvalidParams(f"prompt ids must be in [0, {self.config.vocab_size})")
        if len(ids) + new > self.config.context_length:
            raise PromptTooLong(len(ids), new, self.config.context_length)

    def add(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        priority: int = 0,
        deadline: float | None = None,
    ) -> int:
        """Queues a prompt; returns the id that its events carry. Raises as `encode` does.

        A greater `priority` is admitted first, then the older; a negative one not into the reserved
        slots. At the first step after `deadline`, in seconds of the clock, the sequence ends with
        the text it has.
        """
        if deadline is not None and math.isnan(deadline):
            raise InvalidParams("a deadline must be a time")
        return self._queue(self.encode(prompt, params), params, priority, deadline)

    def _queue(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        priority: int = 0,
        deadline: float | None = None,
    ) -> int:
        sequence = Sequence(next(self._ids), prompt_ids, params, priority, deadline)
        self._scheduler.add(sequence)
        return sequence.id

    def cancel(self, sequence_id: int) -> None:
        """Ends a sequence at the next step, with the text it has. Unknown ids are ignored."""
        self._scheduler.end(sequence_id, "cancelled")

    def reset(self) -> None:
        """Forgets every sequence, and whatever a failed step may have left behind."""
        self._scheduler.clear()
        self._backend.reset()
        self.stats.kv_tokens = 0

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Admits waiting sequences, moves every live one on by a token, frees finished slots.

        Raises OutOfMemory, after which `reset` makes the engine usable, and DeviceLost.
        """
        with _named_faults():
            return self._step()

    def _step(self) -> list[Event]:
        scheduler = self._scheduler
        scheduler.expire(self._clock())
        events = self._release()
        running = len(scheduler.live)
        admitted = [(sequence.prompt_ids, sequence.params) for sequence in scheduler.admit()]
        if scheduler.live:
            tokens = self._backend.step(running, admitted)
            events += self._append(tokens)
            events += self._release()
        self.stats.count(running, admitted, scheduler.live, self._backend.computed_tokens)
        return events

    @torch.inference_mode()
    def logits(self, ids: Seq[int]) -> torch.Tensor:
        """Logits [time, vocab_size] after each of `ids`, in the arithmetic that serves, on the CPU.

        Needs an idle engine. Raises InvalidParams and PromptTooLong.
        """
        self._require_idle("logits()")
        self._check(list(ids), 0)
        return self._backend.logits(list(ids)).cpu()

    def generate(
        self, prompts: Prompt | Seq[Prompt], params: SamplingParams | Seq[SamplingParams]
    ) -> list[Completion]:
        """Continues every prompt; completions come in the order of the prompts.

        `prompts` is one or several strings or lists of token ids; `params` one for all, or one
        each. Nothing runs unless every prompt fits. Raises as `encode` does, and EngineError where
        the model computes no numbers.
        """
        self._require_idle("generate()")
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

    def _require_idle(self, what: str) -> None:
        if self.has_work:
            raise RuntimeError(f"{what} needs an idle engine; add() and step() share one")

    def _append(self, tokens: list[int]) -> list[Event]:
        return [
            Event(sequence.id, token)
            for sequence, token in zip(self._scheduler.live, tokens, strict=True)
            if sequence.append(token, self.tokenizer)
        ]

    def _release(self) -> list[Event]:
        finished, moves = self._scheduler.release()
        for source, target in moves:
            self._backend.move(source, target)
        return [
            Event(s.id, error=s.error)
            if s.error
            else Event(s.id, completion=s.completion(self.tokenizer))
            for s in finished
        ]


@contextmanager
def _named_faults() -> Iterator[None]:
    """Tells what torch raises for want of memory, or of a device that works, from our mistakes."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemory(str(error) or "no memory") from error
    except torch.AcceleratorError as error:
        raise DeviceLost(str(error)) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # how the CPU's allocator says it
            raise
        raise OutOfMemory(str(error)) from error


def _as_prompts(prompts: Prompt | Seq[Prompt]) -> list[Prompt]:
    """A lone string or list of ids becomes a list of one prompt."""
    if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], Integral)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]
