"""What is measured of a model: its loss on a text, and how much its own texts repeat.

Knows nothing of files, engines or training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

Logits = Callable[[list[int]], torch.Tensor]


@dataclass(frozen=True)
class TextLoss:
    """Loss over `tokens` predicted tokens of `documents`, of which `cut` were longer than the
    context and not read to their end; `nats` is the sum."""

    nats: float = 0.0
    tokens: int = 0
    documents: int = 0
    cut: int = 0

    def __add__(self, other: TextLoss) -> TextLoss:
        return TextLoss(
            self.nats + other.nats,
            self.tokens + other.tokens,
            self.documents + other.documents,
            self.cut + other.cut,
        )

    @property
    def mean(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return perplexity(self.mean)


def perplexity(loss: float) -> float:
    """e to a loss in nats per token, or the greatest power of e that a float holds."""
    return math.exp(min(loss, 709.0))


@torch.inference_mode()
def text_loss(
    logits: Logits,
    documents: Iterable[NDArray[np.uint16]],
    *,
    context_length: int,
    stride: int | None = None,
) -> TextLoss:
    """Loss over documents, each of which ends with its end-of-text token.

    `logits` gives [time, vocab] after each of some token ids. Each document stands alone from
    position 0; every token but the first is predicted, its end-of-text too. What does not fit the
    context is left out, unless there is a `stride`: then a window of the context's length moves on
    by so many tokens, and each token is predicted once, where it first comes into the window, from
    at least context_length - stride tokens before it (or all that there are).

    Raises ValueError for a stride outside the context, where nothing is to be predicted, for token
    ids that the model does not know, and for a loss that is not finite.
    """
    if stride is not None and not 1 <= stride <= context_length:
        raise ValueError(f"the stride must be 1 to the context length {context_length}: {stride}")
    total = TextLoss()
    for document in documents:
        if len(document) < 2:
            continue
        nats = 0.0
        last = len(document) - 1
        for begin, first, end in _windows(last, context_length, stride):
            ids = document[begin : end + 1].tolist()
            scores = logits(ids[:-1])[first - begin :].float()
            targets = torch.tensor(ids[1 + first - begin :], device=scores.device)
            if max(ids) >= scores.shape[-1]:
                raise ValueError(f"token id {max(ids)}, but the model has {scores.shape[-1]}")
            nats += F.cross_entropy(scores, targets, reduction="sum").item()
        if not math.isfinite(nats):
            raise ValueError(f"the loss of document {total.documents + 1} is not finite")
        read = last if stride else min(last, context_length)
        total += TextLoss(nats, read, 1, int(read < last))
    if not total.tokens:
        raise ValueError("no document has two tokens or more")
    return total


def _windows(last: int, context_length: int, stride: int | None) -> Iterator[tuple[int, int, int]]:
    """(begin, first, end): read from `begin` to before `end`, predict tokens after `first`."""
    begin = first = 0
    while first < last:
        end = min(begin + context_length, last)
        yield begin, first, end
        if stride is None:
            return
        first, begin = end, begin + stride


def repetition(texts: Iterable[Sequence[int]], n: int = 4) -> float:
    """Share of a text's n-grams that it had before, mean over texts: seq-rep-n of Welleck et al.,
    "Neural Text Generation with Unlikelihood Training" (2020). 0 where no text has n tokens."""
    shares = [1 - len(set(grams)) / len(grams) for text in texts if (grams := _grams(text, n))]
    return sum(shares) / len(shares) if shares else 0.0


def distinct(texts: Iterable[Sequence[int]], n: int) -> float:
    """Different n-grams of all texts by all their n-grams: distinct-n of Li et al., "A
    Diversity-Promoting Objective Function for Neural Conversation Models" (2016).

    It falls as texts grow in number and length: compare like with like.
    """
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _grams(text: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
