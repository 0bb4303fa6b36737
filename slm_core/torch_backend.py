"""The backend that PyTorch alone carries, on a CPU without kernels and on CUDA."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from slm_core.decoder import ROW_BUCKET, Decoder
from slm_core.kv_cache import round_up
from slm_core.linear import Precision
from slm_core.model import GPT
from slm_core.sampling import BROKEN, Sampler, SamplingParams


def computer_name(device: torch.device) -> str:
    """What computes where PyTorch does."""
    name = device.type
    if name == "cpu":
        name += "-" + torch.backends.cpu.get_cpu_capability().lower()
    return f"{name}/torch-{torch.__version__}"


class TorchBackend:
    """A Decoder, a Sampler, and the last token and position of every slot."""

    def __init__(self, model: GPT, slots: int, device: torch.device, precision: Precision) -> None:
        self._decoder = Decoder(model, slots, device, precision)
        capacity = round_up(slots, ROW_BUCKET)
        self._sampler = Sampler(capacity, device)
        self._tokens = torch.zeros(capacity, dtype=torch.int64, device=device)
        self._positions = torch.zeros(capacity, dtype=torch.int64, device=device)
        self._lengths = [0] * capacity  # the positions, known without asking the device
        self._vocab_size = model.config.vocab_size
        self.computed_tokens = 0

    @property
    def name(self) -> str:
        return computer_name(self._decoder.device)

    def prompt_cost(self, length: int) -> int:
        return self._decoder.prompt_bucket(length)

    def step(self, running: int, admitted: Sequence[tuple[list[int], SamplingParams]]) -> list[int]:
        drawn: list[Tensor] = []
        if running:
            longest = max(self._lengths[:running])
            logits = self._decoder.decode_step(self._tokens, self._positions, running, longest)
            drawn.append(self._sampler.draw(logits, 0))
            self.computed_tokens += round_up(running, ROW_BUCKET)
        slot = running
        for _, group in groupby(admitted, lambda a: self._decoder.prompt_bucket(len(a[0]))):
            prompts, params = zip(*group, strict=True)
            drawn.append(self._prefill(slot, list(prompts), params))
            slot += len(prompts)
        tokens = torch.cat(drawn)
        self._tokens[:slot] = tokens.clamp(min=0)
        self._positions[:running] += 1
        self._lengths[:running] = [length + 1 for length in self._lengths[:running]]
        result: list[int] = tokens.tolist()
        for broken in (slot for slot, token in enumerate(result) if token == BROKEN):
            self._decoder.cache.clear(broken)
        return result

    def _prefill(
        self, first: int, prompts: list[list[int]], params: Sequence[SamplingParams]
    ) -> Tensor:
        slots = slice(first, first + len(prompts))
        self.computed_tokens += len(prompts) * self._decoder.prompt_bucket(len(prompts[0]))
        self._sampler.assign(first, params)
        tokens = self._sampler.draw(self._decoder.prefill(prompts, first), first)
        self._lengths[slots] = map(len, prompts)
        self._positions[slots] = torch.tensor(self._lengths[slots])
        return tokens

    def move(self, source: int, target: int) -> None:
        self._decoder.cache.move(source, target, self._lengths[source])
        self._sampler.move(source, target)
        self._lengths[target] = self._lengths[source]
        self._tokens[target] = self._tokens[source]
        self._positions[target] = self._positions[source]

    def logits(self, ids: list[int]) -> Tensor:
        return self._decoder.logits(ids)[:, : self._vocab_size]

    def reset(self) -> None:
        self._tokens.zero_()
        self._positions.zero_()
        self._decoder.cache.data.zero_()
