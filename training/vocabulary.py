"""A compact vocabulary for training: only the token types that occur, one row for all others.

On a CPU the 50257-wide head is most of the arithmetic. A model is trained over the types that its
data has, plus one row that stands for every unused type; its logit plus the log of their number
equals a full softmax in which those rows are tied, so losses are those of the full vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from slm_core import GPT, GPTConfig

_RARE = 3  # types seen at most this often sometimes train the shared row in their place
_RARE_REPLACED = 0.3


class CompactVocabulary:
    def __init__(self, tokens: NDArray[np.uint16], vocab_size: int) -> None:
        counts = np.bincount(tokens, minlength=vocab_size)
        self.vocab_size = vocab_size
        self.used = np.flatnonzero(counts)
        self.shared = len(self.used)  # compact id of the row for all unused types
        self.to_compact = np.full(vocab_size, self.shared, np.int64)
        self.to_compact[self.used] = np.arange(len(self.used))
        self._rare = counts <= _RARE
        self.unused = max(1, vocab_size - len(self.used))

    def config(self, config: GPTConfig) -> GPTConfig:
        return replace(config, vocab_size=self.shared + 1)

    def encode(
        self, tokens: NDArray[np.uint16], rng: np.random.Generator | None = None
    ) -> NDArray[np.int64]:
        """Compact ids of token ids; with `rng`, some rare types become the shared id."""
        compact = self.to_compact[tokens]
        if rng is not None:
            replaced = self._rare[tokens] & (rng.random(tokens.shape) < _RARE_REPLACED)
            compact[replaced] = self.shared
        return compact

    def loss(self, model: GPT, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token; `ids` and `targets` are compact, [batch, time].

        A target that is one of the unused types costs the log of their number more.
        """
        logits = F.linear(model.hidden(ids), model.wte.weight).float()
        unused = math.log(self.unused)
        logits = torch.cat([logits[..., :-1], logits[..., -1:] + unused], dim=-1)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return loss + unused * (targets == self.shared).float().mean()

    def expand(self, model: GPT, config: GPTConfig) -> GPT:
        """The plain model over the whole vocabulary that `model`, a compact one, equals."""
        full = GPT(replace(config, vocab_size=self.vocab_size))
        weights = dict(model.state_dict())
        weights["wte.weight"] = weights["wte.weight"][torch.from_numpy(self.to_compact)]
        full.load_state_dict(weights)
        return full.eval()

    def shrink(self, full: GPT, model: GPT) -> None:
        """The inverse: loads the weights of a plain model into a compact one.

        The shared row becomes the mean of the unused ones.
        """
        weights = dict(full.state_dict())
        rows = weights["wte.weight"]
        unused = np.setdiff1d(np.arange(self.vocab_size), self.used)
        shared = (
            rows[torch.from_numpy(unused)].mean(0) if len(unused) else torch.zeros_like(rows[0])
        )
        used = rows[torch.from_numpy(self.used)]
        weights["wte.weight"] = torch.cat([used, shared[None]])
        model.load_state_dict(weights)
