"""Matrix products with weights laid out once, in the precisions that an engine offers.

Each rounds a row the same whatever the other rows are, if there are at least 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Precision = Literal["fp32", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")

Linear = Callable[[Tensor], Tensor]


def pack_linear(
    weight: Tensor, bias: Tensor, *, precision: Precision = "fp32", gelu: bool = False
) -> Linear:
    """x @ weight.T + bias from fp32 [..., in] to fp32 [..., out], then tanh-GELU if asked.

    `weight` is [out, in]. bf16 rounds weights, bias and x; int8 quantises weights by output,
    symmetrically, and x by row, around the middle of its range, and sums exactly. Raises ValueError
    where this machine has no exact int8 product.
    """
    if precision == "int8":
        linear = _int8(weight, bias)
        return (lambda x: F.gelu(linear(x), approximate="tanh")) if gelu else linear
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    weight, bias = weight.to(dtype), bias.to(dtype)
    if weight.device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        # oneDNN's own layout is 1.5 times as fast as a plain product
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 64)
        product = torch.ops.mkldnn._linear_pointwise
        attribute, algorithm = ("gelu", "tanh") if gelu else ("none", "")
        return lambda x: product(x.to(dtype), packed, bias, attribute, [], algorithm).float()
    if gelu:
        return lambda x: F.gelu(F.linear(x.to(dtype), weight, bias), approximate="tanh").float()
    return lambda x: F.linear(x.to(dtype), weight, bias).float()


def _int8(weight: Tensor, bias: Tensor) -> Linear:
    if weight.device.type != "cpu" or not int8_is_exact():
        raise ValueError("int8 needs a CPU with exact 8-bit products, or the native kernels")
    scale = weight.abs().amax(-1).clamp_min(1e-20) / 127
    packed = (weight / scale[:, None]).round().to(torch.int8)
    sums = packed.sum(-1) * scale
    packed = packed.t()

    def linear(x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        low, high = flat.amin(-1, keepdim=True), flat.amax(-1, keepdim=True)
        middle, step = (high + low) / 2, ((high - low) / 254).clamp_min(1e-20)
        quantised = ((flat - middle) / step).round().to(torch.int8)
        y = torch._int_mm(quantised, packed).float() * scale * step + middle * sums + bias
        return y.view(*x.shape[:-1], -1)

    return linear


def int8_is_exact() -> bool:
    """Whether torch's product is: without VNNI, 16-bit sums of products of extremes saturate."""
    low, high = (torch.full((16, 64), v, dtype=torch.int8) for v in (-127, 127))
    return bool((torch._int_mm(high, low.t()) == -127 * 127 * 64).all())
