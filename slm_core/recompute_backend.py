"""The backend without a KV cache: every step runs the whole text of every sequence again.

The naive way, for comparison. PyTorch carries it, and a row rounds the same in any company.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from slm_core.decoder import ROW_BUCKET, Decoder
from slm_core.kv_cache import round_up
from slm_core.linear import Precision
from slm_core.model import GPT
from slm_core.sampling import Sampler, SamplingParams
from slm_core.torch_backend import computer_name

_CHUNK = ROW_BUCKET  # sequences that run at once: more are no faster, and attention takes memory


class RecomputeBackend:
    """A Decoder that only ever prefills, a Sampler, and the token ids of every slot."""

    def __init__(self, model: GPT, slots: int, device: torch.device, precision: Precision) -> None:
        self._decoder = Decoder(model, _CHUNK, device, precision)
        self._sampler = Sampler(round_up(slots, ROW_BUCKET), device)
        self._ids: list[list[int]] = [[] for _ in range(slots)]
        self._vocab_size = model.config.vocab_size
        self.computed_tokens = 0

    @property
    def name(self) -> str:
        return f"{computer_name(self._decoder.device)}/no-cache"

    def prompt_cost(self, length: int) -> int:
        return self._decoder.prompt_bucket(length)

    def step(self, running: int, admitted: Sequence[tuple[list[int], SamplingParams]]) -> list[int]:
        live = running + len(admitted)
        if admitted:
            self._ids[running:live] = [list(ids) for ids, _ in admitted]
            self._sampler.assign(running, [params for _, params in admitted])
        tokens: list[int] = self._sampler.draw(self._last_logits(live), 0).tolist()
        for ids, token in zip(self._ids, tokens, strict=False):
            ids.append(token)
        return tokens

    def _last_logits(self, live: int) -> Tensor:
        """Logits [live, padded vocab] after the text of each of the first `live` slots."""
        order = sorted(range(live), key=lambda slot: self.prompt_cost(len(self._ids[slot])))
        parts = []
        for length, group in groupby(order, lambda slot: self.prompt_cost(len(self._ids[slot]))):
            slots = list(group)
            self.computed_tokens += len(slots) * length
            for first in range(0, len(slots), _CHUNK):
                texts = [self._ids[slot] for slot in slots[first : first + _CHUNK]]
                parts.append(self._decoder.prefill(texts, 0))
        logits = torch.cat(parts)
        return torch.empty_like(logits).index_copy_(
            0, torch.tensor(order, device=logits.device), logits
        )

    def move(self, source: int, target: int) -> None:
        self._ids[target] = self._ids[source]
        self._ids[source] = []
        self._sampler.move(source, target)

    def logits(self, ids: list[int]) -> Tensor:
        return self._decoder.logits(ids)[:, : self._vocab_size]

    def reset(self) -> None:
        self._ids = [[] for _ in self._ids]
