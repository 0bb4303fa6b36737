"""The GPT as a plain PyTorch module, for training and as the reference that the engine must equal.

Knows nothing of caches, slots, sampling or files.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from slm_core.config import GPTConfig

_BLOCK = 64  # queries at a time


def _attention_by_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention over [batch, heads, time, width of a head], for torch.compile on a CPU.

    Each block of queries sees only the keys up to its end, so half the products are never made. As
    plain operations both directions compile to less than half the time of PyTorch's own kernel.
    """
    scale, outputs = q.shape[-1] ** -0.5, []
    for start in range(0, q.shape[2], _BLOCK):
        rows = q[:, :, start : start + _BLOCK]
        end = start + rows.shape[2]
        scores = (rows @ k[:, :, :end].transpose(-1, -2)).float() * scale
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(start + 1)
        weights = scores.masked_fill(later, -math.inf).softmax(-1)
        outputs.append(weights.to(v.dtype) @ v[:, :, :end])
    return torch.cat(outputs, dim=2)


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        qkv = self.c_attn(x).view(batch, time, 3, self.n_head, width // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        # Without dropout of its own: with it a CPU takes the slow path, and a step twice as long.
        if self.training and x.device.type == "cpu":
            y = _attention_by_blocks(q, k, v)
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return cast(Tensor, self.c_proj(y.transpose(1, 2).reshape(batch, time, width)))


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.c_proj(F.gelu(self.c_fc(x), approximate="tanh")))


class Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attn(self.ln_1(x)))
        return cast(Tensor, x + self.drop(self.mlp(self.ln_2(x))))


class GPT(nn.Module):
    """A GPT-2 shaped language model.

    Parameters carry GPT-2's names; linear weights are [out, in], where transformers' Conv1D is
    [in, out].
    The output head is the token embedding (Press & Wolf, 2017).
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.context_length, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.apply(self._initialise)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):  # residual scaling, GPT-2 section 2.3
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.n_layer))

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def hidden(self, ids: Tensor) -> Tensor:
        """Final hidden states [batch, time, n_embd] of token ids [batch, time]."""
        if ids.shape[1] > self.config.context_length:
            raise ValueError(
                f"{ids.shape[1]} tokens, but the context holds {self.config.context_length}"
            )
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.drop(self.wte(ids) + self.wpe(positions))
        for block in self.h:
            x = block(x)
        return cast(Tensor, self.ln_f(x))

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [batch, time, vocab_size] of token ids [batch, time]."""
        return F.linear(self.hidden(ids), self.wte.weight)

    def logits(self, ids: list[int]) -> Tensor:
        """Logits [time, vocab_size] after each token of one sequence."""
        return cast(Tensor, self(torch.tensor([ids], device=self.wte.weight.device))[0])


class _Unfilled(TorchFunctionMode):
    """To fill what holds nothing, torch imports its compiler, which takes longer than to load."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(function, "__module__", None) == nn.init.__name__:
            return None
        return function(*args, **(kwargs or {}))


def empty_model(config: GPTConfig) -> GPT:
    """Names and shapes without values, on the meta device, in evaluation mode."""
    with torch.device("meta"), _Unfilled():
        return GPT(config).eval()


def untrained_model(config: GPTConfig, seed: int = 0) -> GPT:
    """A model as training starts with it, in evaluation mode: the same seed, the same weights.

    Leaves torch's own generator as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return GPT(config).eval()
