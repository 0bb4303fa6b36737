"""Muon for matrices, and the split of a GPT's parameters between it and AdamW."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from slm_core import GPT


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
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
    for _ in range(steps):
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
            for p in group["params"]:
                if p.grad is None:
                    continue
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"])  # Nesterov
                rows, columns = p.shape
                parts = 3 if rows == 3 * columns else 1
                update = orthogonalize(update.view(parts, rows // parts, columns)).view_as(p)
                scale = max(1.0, rows / parts / columns) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * scale)


def build_optimizers(
    model: GPT, *, muon_lr: float, adam_lr: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Muon on the body's matrices, AdamW without decay on the rest, positions at a 20th."""
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if name == "wpe.weight":
            continue
        body_matrix = parameter.ndim == 2 and name.startswith("h.")
        (matrices if body_matrix else rest).append(parameter)
    groups = [
        {"params": rest, "lr": adam_lr},
        {"params": [model.wpe.weight], "lr": adam_lr * 0.05},
    ]
    optimizers = [
        Muon(matrices, lr=muon_lr, weight_decay=weight_decay),
        torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def set_learning_rate(optimizers: list[torch.optim.Optimizer], fraction: float) -> None:
    """Sets every group's rate to `fraction` of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * fraction
