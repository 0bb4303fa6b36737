"""The GPT's arithmetic for serving: padded prefill and padded decode steps over a KV cache.

Equals `GPT.forward` up to rounding. A row's logits are bitwise the same whatever the other rows
are: rows are padded to fixed buckets, a prompt only to a length that depends on itself, and masked
positions contribute exact zeros. Knows nothing of sequences or text, and of sampling only that
logits come padded.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from slm_core.config import GPTConfig
from slm_core.kv_cache import POSITION_BUCKET, KVCache, round_up
from slm_core.linear import Linear, Precision, pack_linear
from slm_core.model import GPT
from slm_core.sampling import BLOCK

ROW_BUCKET = 8  # with fewer rows, matrix products take other paths and round differently
_PROMPT_BUCKET, _LONG_PROMPT_BUCKET = 16, 64


class Decoder:
    """A GPT's weights, packed for inference, and the KV cache that they fill."""

    def __init__(
        self, model: GPT, slots: int, device: torch.device, precision: Precision = "fp32"
    ) -> None:
        config = model.config
        self.config = config
        self.device = device
        capacity = round_up(slots, ROW_BUCKET)
        self.cache = KVCache(config, capacity, dtype=torch.float32, device=device)
        weights = {k: v.detach().to(device, torch.float32) for k, v in model.state_dict().items()}
        self._tokens = weights["wte.weight"]
        self._positions = F.pad(
            weights["wpe.weight"], (0, 0, 0, self.cache.positions - config.context_length)
        )
        self._layers = [
            _Layer(weights, index, config, self.cache.head_dim - config.head_dim, precision)
            for index in range(config.n_layer)
        ]
        self._norm = (weights["ln_f.weight"], weights["ln_f.bias"])
        # pad columns get -inf through the bias, so that sampling never sees them
        padded = round_up(config.vocab_size, BLOCK) - config.vocab_size
        head = F.pad(self._tokens, (0, 0, 0, padded))
        bias = F.pad(torch.zeros(config.vocab_size, device=device), (0, padded), value=-math.inf)
        self._head = pack_linear(head, bias, precision=precision)
        self._arange = torch.arange(max(self.cache.positions, capacity), device=device)

    def prompt_bucket(self, length: int) -> int:
        """Padded length of a prompt of `length` tokens."""
        fine, coarse = round_up(length, _PROMPT_BUCKET), round_up(length, _LONG_PROMPT_BUCKET)
        return fine if fine <= _LONG_PROMPT_BUCKET else min(coarse, self.cache.positions)

    def prefill(self, prompts: list[list[int]], first_slot: int) -> Tensor:
        """Fills slots `first_slot` ... with `prompts`, all of one `prompt_bucket`.

        Returns the logits [prompts, padded vocab] of each prompt's last position.
        """
        count = len(prompts)
        last = torch.tensor([len(p) - 1 for p in prompts], device=self.device)
        x = self._hidden(prompts, first_slot)[self._arange[:count], last]
        x = F.pad(x, (0, 0, 0, round_up(count, ROW_BUCKET) - count))
        return self._logits(x)[:count]

    def logits(self, prompt: list[int]) -> Tensor:
        """Logits [time, padded vocab] of every position of a prompt, which then fills slot 0."""
        return self._logits(self._hidden([prompt], 0)[0])[: len(prompt)]

    def _hidden(self, prompts: list[list[int]], first_slot: int) -> Tensor:
        """Last block's output [prompts, padded length, n_embd]."""
        count, length = len(prompts), self.prompt_bucket(len(prompts[0]))
        ids = torch.tensor(
            [p + [0] * (length - len(p)) for p in prompts], dtype=torch.int64, device=self.device
        )
        x: Tensor = self._tokens[ids] + self._positions[:length]
        causal = torch.full((length, length), -math.inf, device=self.device).triu(1)
        slots = slice(first_slot, first_slot + count)
        for index, layer in enumerate(self._layers):
            q, k, v = layer.heads(x)
            keys, values = self.cache.layer(index)
            keys[slots, :, :length] = k
            values[slots, :, :length] = v
            x = layer.rest(x, _attend(q, k, v, causal))
        return x

    def decode_step(self, tokens: Tensor, positions: Tensor, count: int, longest: int) -> Tensor:
        """One token for each of the first `count` slots.

        `tokens` and `positions` are [slots], the token to append and where; `longest` is the
        greatest position. Returns logits [count, padded vocab].
        """
        rows = round_up(count, ROW_BUCKET)
        length = round_up(longest + 1, POSITION_BUCKET)
        position = positions[:rows]
        x = self._tokens[tokens[:rows]] + self._positions[position]
        x = x[:, None]
        unseen = self._arange[:length] > position[:, None]
        mask = torch.zeros_like(unseen, dtype=torch.float32).masked_fill_(unseen, -math.inf)
        mask = mask[:, None, None]
        slots = self._arange[:rows]
        for index, layer in enumerate(self._layers):
            q, k, v = layer.heads(x)
            keys, values = self.cache.layer(index)
            keys[slots, :, position] = k[:, :, 0]
            values[slots, :, position] = v[:, :, 0]
            x = layer.rest(x, _attend(q, keys[:rows, :, :length], values[:rows, :, :length], mask))
        return self._logits(x[:, 0])[:count]

    def _logits(self, x: Tensor) -> Tensor:
        return self._head(F.layer_norm(x, x.shape[-1:], *self._norm))


class _Layer:
    """One transformer block's packed weights."""

    def __init__(
        self,
        weights: dict[str, Tensor],
        index: int,
        config: GPTConfig,
        head_padding: int,
        precision: Precision,
    ) -> None:
        def pair(name: str) -> tuple[Tensor, Tensor]:
            return weights[f"h.{index}.{name}.weight"], weights[f"h.{index}.{name}.bias"]

        def linear(name: str, *, gelu: bool = False) -> Linear:
            return pack_linear(*pair(name), precision=precision, gelu=gelu)

        self._n_head = config.n_head
        self._head_padding = head_padding
        self._norm_1, self._norm_2 = pair("ln_1"), pair("ln_2")
        self._qkv = linear("attn.c_attn")
        self._project = linear("attn.c_proj")
        self._expand = linear("mlp.c_fc", gelu=True)
        self._contract = linear("mlp.c_proj")

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled query, key and value, each [batch, head, time, padded head_dim]."""
        batch, time, width = x.shape
        head_dim = width // self._n_head
        qkv = self._qkv(F.layer_norm(x, (width,), *self._norm_1))
        qkv = qkv.view(batch, time, 3, self._n_head, head_dim)
        if self._head_padding:
            qkv = F.pad(qkv, (0, self._head_padding))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return q * head_dim**-0.5, k, v

    def rest(self, x: Tensor, attended: Tensor) -> Tensor:
        """The block's output from its input and what `heads` gave, attended."""
        if self._head_padding:
            attended = attended[..., : -self._head_padding]
        x = x + self._project(attended.transpose(1, 2).reshape(x.shape))
        return x + self._contract(self._expand(F.layer_norm(x, x.shape[-1:], *self._norm_2)))


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Plain attention. Unlike fused kernels it rounds a row the same at every padded length."""
    if q.shape[2] == 1:  # a product that reads the keys in the order in which they lie
        scores = (k @ q.transpose(-1, -2)).transpose(-1, -2)
    else:
        scores = q @ k.transpose(-1, -2)
    return torch.softmax(scores + mask, dim=-1) @ v
