"""Texts that a model writes to be looked at: which prompts, drawn how, shown where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slm_core import Engine, SamplingParams, Tokenizer
from training.metrics import distinct, repetition
from training.page import Card, Page, Table

PROMPT_TOKENS = 12


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn; sample i has seed `seed` + i."""

    max_tokens: int = 200
    temperature: float = 0.8
    top_k: int = 40
    seed: int = 1

    def __str__(self) -> str:
        return f"temperature {self.temperature:g}, top-k {self.top_k}, seeds from {self.seed}"


@dataclass(frozen=True)
class Sample:
    """`token_ids` are those of the continuation."""

    prompt: str
    text: str
    token_ids: list[int]
    finish_reason: str
    seed: int

    @property
    def card(self) -> Card:
        ended = "ended by itself" if self.finish_reason == "stop" else "cut at its length"
        return Card(self.prompt, self.text, f"seed {self.seed}, {ended}")


def read_prompts(path: Path) -> list[list[int]]:
    """Token ids of the prompts of a UTF-8 file, one a line. Raises ValueError."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read prompts from {path}: {error}") from None
    if not (prompts := [line for line in lines if line.strip()]):
        raise ValueError(f"{path} holds no prompt")
    return Tokenizer().encode_batch(prompts)


def beginnings(
    documents: Sequence[NDArray[np.uint16]], count: int, *, context_length: int, seed: int
) -> tuple[list[list[int]], list[list[int]]]:
    """How `count` documents drawn at random begin and how they go on, as token ids.

    A beginning is `PROMPT_TOKENS` long, or half of its document or of the context if that is less.
    With fewer documents there are fewer of both. Raises ValueError where there are none.
    """
    long_enough = (len(document) > 1 for document in documents)
    whole = np.flatnonzero(np.fromiter(long_enough, bool, len(documents)))
    if not len(whole):
        raise ValueError("there is no document to take beginnings from")
    chosen = np.random.default_rng(seed).permutation(whole)[:count]
    drawn = [documents[i][:-1].tolist() for i in chosen.tolist()]
    most = max(1, min(PROMPT_TOKENS, context_length // 2))
    cuts = [max(1, min(most, len(ids) // 2)) for ids in drawn]
    return (
        [ids[:cut] for ids, cut in zip(drawn, cuts, strict=True)],
        [ids[cut:] for ids, cut in zip(drawn, cuts, strict=True)],
    )


def generate(
    engine: Engine, prompts: Sequence[list[int]], count: int, sampling: Sampling
) -> list[Sample]:
    """`count` samples; prompts are taken in turn. A text ends where the context does.

    Raises InvalidParams, PromptTooLong and EngineError, as the engine does.
    """
    context = engine.config.context_length
    taken = [list(prompts[i % len(prompts)]) for i in range(count)]
    params = [
        SamplingParams(
            max_tokens=max(1, min(sampling.max_tokens, context - len(ids))),
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            seed=sampling.seed + i,
        )
        for i, ids in enumerate(taken)
    ]
    tokenizer = Tokenizer()
    return [
        Sample(tokenizer.decode(ids), c.text, list(c.token_ids), c.finish_reason, sampling.seed + i)
        for i, (ids, c) in enumerate(zip(taken, engine.generate(taken, params), strict=True))
    ]


def figures(texts: Sequence[Sequence[int]]) -> dict[str, float]:
    """Repetition and diversity of texts, given as token ids; mean length in tokens."""
    return {
        "rep_4": round(repetition(texts, 4), 4),
        **{f"distinct_{n}": round(distinct(texts, n), 4) for n in (1, 2, 3)},
        "tokens": round(sum(map(len, texts)) / max(1, len(texts)), 1),
    }


def grid(
    title: str,
    paragraphs: Sequence[str],
    tables: Sequence[Table],
    samples: Sequence[Sample],
    measured: dict[str, dict[str, float]],
) -> Page:
    """A page of all samples in their order; `measured` is `figures` of several sets of texts."""
    names = next(iter(measured.values()))
    rows = [[who, *(f"{value:g}" for value in each.values())] for who, each in measured.items()]
    of_samples = Table(["", *(name.replace("_", "-") for name in names)], rows)
    cards = [sample.card for sample in samples]
    return Page(title, paragraphs, cards, tables=[*tables, of_samples])
