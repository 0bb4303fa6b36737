"""What happens to weights beside learning: their start, those that stay, and their average."""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from slm_core import GPT


def initialise(model: GPT) -> None:
    """Starts that measured best at the size that ships: sinusoidal positions (Vaswani et al., 2017;
    RMS 0.05), orthogonal QKV, output projections at zero."""
    length, width = model.wpe.weight.shape
    position = torch.arange(length)[:, None]
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    table = torch.zeros(length, width)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate[: width // 2])
    with torch.no_grad():
        model.wpe.weight.copy_(table * 0.05 / table.square().mean().sqrt())
        for name, parameter in model.named_parameters():
            if name.endswith("c_attn.weight"):
                for part in parameter.chunk(3):
                    torch.nn.init.orthogonal_(part)
            elif name.endswith("c_proj.weight"):
                parameter.zero_()


def freeze(model: GPT, patterns: Sequence[str]) -> None:
    """Parameters that a pattern names get no gradient: a number of first blocks, or a name, part of
    one up to a dot, or a pattern of the shell's kind.

    Raises ValueError for a pattern that names nothing, and where nothing would be left to train.
    """
    for pattern in patterns:
        blocks = [f"h.{i}" for i in range(int(pattern))] if pattern.isdecimal() else [pattern]
        if not blocks:
            raise ValueError("freeze: the first 0 blocks are none; leave it out to freeze nothing")
        for name in blocks:
            named = [
                parameter
                for own, parameter in model.named_parameters()
                if fnmatch.fnmatchcase(own, name) or fnmatch.fnmatchcase(own, f"{name}.*")
            ]
            if not named:
                raise ValueError(f"freeze: no parameter is named {name!r}")
            for parameter in named:
                parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("freeze leaves nothing to train")


class WeightAverage:
    """An exponential moving average of a model's weights (Polyak & Juditsky, 1992), as a model.

    The decay starts low, so that the first weights are forgotten: (1 + step) / (10 + step) at most.
    """

    def __init__(self, model: GPT, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, model: GPT, step: int) -> None:
        """Takes in the weights after `step` steps."""
        decay = min(self._decay, (1 + step) / (10 + step))
        averages: list[Tensor] = list(self.model.parameters())
        weights: list[Tensor] = list(model.parameters())
        torch._foreach_lerp_(averages, weights, 1 - decay)
