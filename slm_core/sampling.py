"""From logits to tokens: temperature, top-k, top-p, and noise that only seed and step decide.

A row's token depends on its own logits, parameters, seed and step, never on its batch mates.
Knows nothing of slots or text.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slm_core.errors import InvalidParams

CANDIDATES = 64  # rows with top_k up to this share one vectorised pass
BLOCK = 64  # logits come padded with -inf to a multiple of this
BROKEN = -1  # drawn where logits are NaN or infinite

_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


@dataclass(frozen=True)
class SamplingParams:
    """How to continue a prompt.

    Attributes:
        max_tokens: most tokens to generate, at least 1.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: sample from the k likeliest tokens; None from all.
        top_p: then from the likeliest tokens that together reach this probability (Holtzman et
            al., 2020), in (0, 1].
        seed: in [0, 2**63). Same seed, same text. None draws one.
        stop: generation ends before any of these strings.
        ignore_eos: go on past the end-of-text token.

    Raises InvalidParams that names the parameter.
    """

    max_tokens: int = 200
    temperature: float = 0.8
    top_k: int | None = 40
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.max_tokens, int) or self.max_tokens < 1:
            raise InvalidParams(f"max_tokens must be an integer from 1, not {self.max_tokens}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InvalidParams(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise InvalidParams(f"top_k must be at least 1 or None, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise InvalidParams(f"top_p must be in (0, 1], not {self.top_p}")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise InvalidParams(f"seed must be in [0, 2**63), not {self.seed}")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        if not all(self.stop):
            raise InvalidParams("a stop string must not be empty")


class Sampler:
    """The sampling parameters of every slot, as tensors, and the draw over the first n of them."""

    def __init__(self, slots: int, device: torch.device) -> None:
        self.temperature = torch.ones(slots, 1, dtype=torch.float64, device=device)
        self.top_k = torch.ones(slots, 1, dtype=torch.int64, device=device)
        self.top_p = torch.ones(slots, 1, dtype=torch.float64, device=device)
        self.key = torch.zeros(slots, 1, dtype=torch.int64, device=device)
        self.step = torch.zeros(slots, 1, dtype=torch.int64, device=device)
        self._tensors = (self.temperature, self.top_k, self.top_p, self.key, self.step)
        self._wide = [False] * slots  # rows that need more than the shared candidates

    def assign(self, first: int, params: Sequence[SamplingParams]) -> None:
        """Sets slots `first`, `first + 1`, ... to `params`, at step 0."""
        rows = slice(first, first + len(params))
        columns = (
            torch.tensor([p.temperature for p in params], dtype=torch.float64),
            torch.tensor([p.top_k or 0 for p in params]),
            torch.tensor([p.top_p for p in params], dtype=torch.float64),
            noise_keys([p.seed for p in params]),
            torch.zeros(len(params)),
        )
        for tensor, column in zip(self._tensors, columns, strict=True):
            tensor[rows, 0] = column.to(tensor)
        self._wide[rows] = [
            p.temperature > 0 and not 1 <= (p.top_k or 0) <= CANDIDATES for p in params
        ]

    def move(self, source: int, target: int) -> None:
        """Copies a slot's parameters and step to another slot."""
        for tensor in self._tensors:
            tensor[target] = tensor[source]
        self._wide[target] = self._wide[source]

    def draw(self, logits: Tensor, first: int) -> Tensor:
        """Next tokens [rows] of slots `first` ... from fp32 `logits` [rows, vocab]; advances steps.

        The columns of `logits` are padded with -inf to a multiple of `BLOCK`. A row whose logits
        are not numbers draws `BROKEN`.
        """
        count = logits.shape[0]
        rows = slice(first, first + count)
        values, tokens = top_candidates(logits)
        drawn = self._choose(values, tokens, rows)
        for row in range(count):
            if self._wide[first + row]:
                one = slice(row, row + 1)
                drawn[row] = self._draw_wide(logits[one], values[one], tokens[one], first + row)
        self.step[rows] += 1
        # a NaN sorts first, so the best candidate tells of the whole row
        return drawn.masked_fill_(~values[:, 0].isfinite(), BROKEN)

    def _draw_wide(self, logits: Tensor, values: Tensor, tokens: Tensor, slot: int) -> int:
        """Exact draw of one row [1, vocab] that may need more than its candidates [1, width]."""
        rows, vocab = slice(slot, slot + 1), logits.shape[1]
        top_k, top_p = int(self.top_k[slot]), float(self.top_p[slot])
        if not top_k and top_p < 1:
            scaled = (logits - values[:, :1]) / self.temperature[rows].float()
            probability = torch.softmax(scaled, dim=-1)
            if probability.gather(1, tokens).sum() >= top_p:  # the candidates hold all that stays
                mass = 1 / probability.amax().double()
                return int(self._choose(values, tokens, rows, mass))
        if top_k or top_p < 1:
            values, tokens = logits.topk(min(top_k or vocab, vocab), dim=-1)
        else:
            values, tokens = logits, torch.arange(vocab, device=logits.device)[None]
        return int(self._choose(values, tokens, rows))

    def _choose(
        self, values: Tensor, tokens: Tensor, rows: slice, mass: Tensor | None = None
    ) -> Tensor:
        """Gumbel-max draw [rows] from candidates [rows, width], sorted where rank matters.

        `mass` is the sum of exp(scaled logit) that top_p refers to, if not the candidates' own. All
        in float64: noise needs its tails, and the width is small.
        """
        temperature, top_k, top_p = self.temperature[rows], self.top_k[rows], self.top_p[rows]
        greedy = temperature == 0
        scaled = (values - values.amax(-1, keepdim=True)).double()
        scaled = scaled / temperature.masked_fill(greedy, 1.0)
        rank = torch.arange(values.shape[1], device=values.device)
        scaled = scaled.masked_fill((rank >= top_k) & (top_k > 0), -math.inf)
        if bool((top_p < 1).any()):
            probability = scaled.exp()
            reached = probability.cumsum(-1)
            mass = reached[:, -1:] if mass is None else mass
            outside = reached - probability >= top_p * mass
            scaled = scaled.masked_fill(outside & (top_p < 1), -math.inf)
        noise = gumbel(self.key[rows], self.step[rows], tokens)
        score = scaled + noise.masked_fill(greedy, 0.0)
        # the lowest id among equal candidates, as argmax takes
        best = score == score.amax(-1, keepdim=True)
        return torch.where(best, tokens, torch.iinfo(torch.int64).max).amin(-1)


def noise_keys(seeds: Sequence[int | None]) -> Tensor:
    """What the noise of each seed starts from, int64 [seeds]; a missing seed is drawn."""
    drawn = [secrets.randbits(63) if seed is None else seed for seed in seeds]
    return _mix(torch.tensor(drawn) + _signed(_GAMMA))


def top_candidates(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Exact top `CANDIDATES` of each row, sorted: (values, token ids), [rows, CANDIDATES].

    In two stages: the k largest lie in the k blocks with the largest maxima.
    """
    rows, width = logits.shape
    blocks = logits.view(rows, width // BLOCK, BLOCK)
    count = min(CANDIDATES, blocks.shape[1])
    chosen = blocks.amax(-1).topk(count, dim=-1, sorted=False).indices
    inside = blocks.gather(1, chosen[:, :, None].expand(-1, -1, BLOCK)).view(rows, count * BLOCK)
    values, index = inside.topk(CANDIDATES, dim=-1)
    return values, chosen.gather(1, index // BLOCK) * BLOCK + index % BLOCK


def gumbel(key: Tensor, step: Tensor, tokens: Tensor) -> Tensor:
    """Standard Gumbel noise, float64, that `key` [rows, 1], `step` [rows, 1] and token id decide.

    Counter-based (Salmon et al., 2011) with SplitMix64's mixer (Steele et al., 2014).
    """
    row = _mix(key + (step + 1) * _signed(_GAMMA))
    bits = _mix(row + (tokens + 1) * _signed(_GAMMA))
    uniform = (_shift(bits, 12).double() + 0.5) * 2.0**-52  # in (0, 1): never rounds to 1
    return -(-uniform.log()).log()


def _mix(value: Tensor) -> Tensor:
    """SplitMix64's finaliser; int64 products wrap."""
    value = (value ^ _shift(value, 30)) * _signed(_MIX_1)
    value = (value ^ _shift(value, 27)) * _signed(_MIX_2)
    return value ^ _shift(value, 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's is arithmetic."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
