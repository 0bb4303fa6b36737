"""A compact vocabulary for training: only the token types that occur, one row for all others.

On a CPU the 50257-wide head is most of the arithmetic. A model is trained over the types that its
data has, plus one row that stands for every unused type; its logit plus the log of their number
equals a full softmax in which those rows are tied, so losses are those of the full vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from slm_core import GPT, GPTConfig
from slm_core.model import empty_model

_RARE = 3  # types seen at most this often sometimes train the shared row in their place
_RARE_REPLACED = 0.3
_CHUNK = 1 << 24  # tokens that are counted at once


class CompactVocabulary:
    """The types that occur in `tokens`, and those of `keep`, which a checkpoint to start from
    tells apart. With all of them it is the full vocabulary, and no row is shared.

    Raises ValueError where a token is outside the vocabulary.
    """

    def __init__(
        self, tokens: NDArray[np.uint16], vocab_size: int, keep: NDArray[np.int64] | None = None
    ) -> None:
        counts = np.zeros(1 << 16, np.int64)
        for i in range(0, len(tokens), _CHUNK):
            counts += np.bincount(tokens[i : i + _CHUNK], minlength=len(counts))
        if counts[vocab_size:].any():
            highest = int(np.flatnonzero(counts)[-1])
            raise ValueError(f"token id {highest} is outside the vocabulary of {vocab_size}")
        counts = counts[:vocab_size]
        known = np.zeros(vocab_size, bool)
        known[keep if keep is not None else []] = True
        self.vocab_size = vocab_size
        self.used = np.flatnonzero(known | (counts > 0))
        self.unused = vocab_size - len(self.used)
        self.shared = len(self.used)  # compact id of the row for all unused types
        self.to_compact = np.full(vocab_size, self.shared, np.int64)
        self.to_compact[self.used] = np.arange(len(self.used))
        self._rare = (counts <= _RARE) & ~known & (self.unused > 0)

    def __len__(self) -> int:
        return len(self.used) + (self.unused > 0)

    def config(self, config: GPTConfig) -> GPTConfig:
        return replace(config, vocab_size=len(self))

    def encode(
        self, tokens: NDArray[np.uint16], rng: np.random.Generator | None = None
    ) -> NDArray[np.int64]:
        """Compact ids of token ids; with `rng`, some rare types become the shared id."""
        compact = self.to_compact[tokens]
        if rng is not None and self.unused:
            replaced = self._rare[tokens] & (rng.random(tokens.shape) < _RARE_REPLACED)
            compact[replaced] = self.shared
        return compact

    def loss(self, model: GPT, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token; `ids` and `targets` are compact, [batch, time].

        A target that is one of the unused types costs the log of their number more.
        """
        loss = F.cross_entropy(self._logits(model, ids).flatten(0, 1), targets.flatten())
        return loss + self._log_unused * (targets == self.shared).float().mean()

    def total_loss(self, model: GPT, ids: Tensor, targets: Tensor) -> Tensor:
        """The sum over all targets but those of -100, which stand for no token."""
        logits = self._logits(model, ids).flatten(0, 1)
        loss = F.cross_entropy(logits, targets.flatten(), reduction="sum")
        return loss + self._log_unused * (targets == self.shared).sum()

    @property
    def _log_unused(self) -> float:
        return math.log(self.unused) if self.unused else 0.0

    def _logits(self, model: GPT, ids: Tensor) -> Tensor:
        logits = F.linear(model.hidden(ids), model.wte.weight).float()
        if not self.unused:
            return logits
        # A sum with a vector, not a cat, which no compiler makes a fast loop of.
        at_shared = torch.zeros(len(self), device=logits.device)
        at_shared[self.shared] = self._log_unused
        return logits + at_shared

    def expand(self, model: GPT, config: GPTConfig) -> GPT:
        """The plain model over the whole vocabulary, on the CPU, that `model`, a compact one,
        equals."""
        weights = {
            name: tensor.detach().to("cpu", copy=True)
            for name, tensor in model.state_dict().items()
        }
        weights["wte.weight"] = weights["wte.weight"][torch.from_numpy(self.to_compact)]
        full = empty_model(replace(config, vocab_size=self.vocab_size))
        full.load_state_dict(weights, assign=True)
        return full

    def shrink(self, full: GPT, model: GPT) -> None:
        """The inverse: loads the weights of a plain model into a compact one.

        The shared row becomes the mean of the unused ones.
        """
        weights = dict(full.state_dict())
        rows = weights["wte.weight"]
        compact = rows[torch.from_numpy(self.used)]
        if self.unused:
            unused = torch.from_numpy(np.flatnonzero(self.to_compact == self.shared))
            compact = torch.cat([compact, rows[unused].mean(0, keepdim=True)])
        model.load_state_dict({**weights, "wte.weight": compact})


def distinct_types(model: GPT) -> NDArray[np.int64]:
    """Token types whose embedding no other type has: those that a model was trained to know.

    All types that a compact vocabulary left out share one row.
    """
    rows = model.wte.weight.detach().numpy()
    counts = Counter(row.tobytes() for row in rows)
    return np.asarray([i for i, row in enumerate(rows) if counts[row.tobytes()] == 1], np.int64)
