"""Muon for matrices, the split of a GPT's parameters between it and AdamW, and their rates."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor

from slm_core import GPT
from training.recipe import Recipe

_STEPS = 5  # of the Newton-Schulz iteration


def orthogonalize(matrix: Tensor) -> Tensor:
    """Nearest semi-orthogonal matrix, roughly, by a quintic Newton-Schulz iteration in bf16.

    `matrix` is [..., rows, columns]; batches share the call. Source: Jordan et al., "Muon: An
    optimizer for hidden layers in neural networks" (2024).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result.to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized. Fused QKV weights [3C, C] are treated as three matrices."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for params in shapes.values():  # all of a shape at once: few large products
                self._step(params, group["lr"], group["momentum"], group["weight_decay"])

    def _step(self, params: list[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        gradients = [cast(Tensor, p.grad) for p in params]
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        buffers: list[Tensor] = [self.state[p]["momentum"] for p in params]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        nesterov = torch.stack(torch._foreach_lerp(gradients, buffers, momentum))
        rows, columns = params[0].shape
        parts = 3 if rows == 3 * columns else 1
        updates = orthogonalize(nesterov.view(-1, rows // parts, columns)).view_as(nesterov)
        scale = max(1.0, rows / parts / columns) ** 0.5
        torch._foreach_mul_(params, 1 - lr * weight_decay)
        torch._foreach_add_(params, list(updates.unbind()), alpha=-lr * scale)


def build_optimizers(model: GPT, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Optimizers of all parameters of `model` that require a gradient.

    The blocks' matrices go to Muon, or to AdamW if the recipe says so, and decay; the rest goes to
    AdamW and does not, the positions at a rate of their own.
    """
    matrices: list[Tensor] = []
    positions: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        body_matrix = parameter.ndim == 2 and name.startswith("h.")
        owner = matrices if body_matrix else positions if name == "wpe.weight" else rest
        owner.append(parameter)
    groups: list[dict[str, object]] = [
        {"params": rest, "lr": recipe.adam_lr},
        {"params": positions, "lr": recipe.adam_lr * recipe.position_lr},
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if recipe.optimizer == "adamw":
        decay = recipe.weight_decay
        groups.append({"params": matrices, "lr": recipe.adam_lr, "weight_decay": decay})
    elif matrices:
        optimizers.append(Muon(matrices, recipe.muon_lr, recipe.muon_momentum, recipe.weight_decay))
    if groups := [group for group in groups if group["params"]]:
        betas = (recipe.adam_beta1, recipe.adam_beta2)
        optimizers.append(torch.optim.AdamW(groups, betas=betas, weight_decay=0.0, fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def set_learning_rate(optimizers: list[torch.optim.Optimizer], fraction: float) -> None:
    """Sets every group's rate to `fraction` of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * fraction


def learning_rate_fraction(progress: float, recipe: Recipe) -> float:
    """The rate at `progress` through the run, in [0, 1], as a part of its peak.

    A linear warm-up; then a linear or cosine decay over the whole run, or for "wsd" (Hu et al.,
    "MiniCPM", 2024) a stable rate and a linear decay at the end.
    """
    if progress < recipe.warmup:
        return progress / recipe.warmup
    begin = 1 - recipe.decay if recipe.schedule == "wsd" else recipe.warmup
    done = min(1.0, max(0.0, (progress - begin) / (1 - begin))) if begin < 1 else 0.0
    left = (1 + math.cos(math.pi * done)) / 2 if recipe.schedule == "cosine" else 1 - done
    return recipe.final_lr + (1 - recipe.final_lr) * left
