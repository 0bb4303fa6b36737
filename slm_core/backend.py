"""What an engine needs of the arithmetic under it, and which there is.

A backend knows slots, tokens and sampling parameters; nothing of text, or of who waits.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from slm_core import kernels
from slm_core.linear import PRECISIONS, Precision
from slm_core.model import GPT
from slm_core.native import NativeBackend
from slm_core.recompute_backend import RecomputeBackend
from slm_core.sampling import SamplingParams
from slm_core.torch_backend import TorchBackend

log = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "cuda"]
Kernels = Literal["auto", "none", "avx512_bf16", "avx512", "avx2", "baseline"]

MAX_PERPLEXITY_RATIO = 1.01  # over fp32: what "auto" may cost in quality

# What "auto" tries, by what computes, the fastest first (benchmarks/LOG.md). Only what was shown to
# round a row the same in any company; on CUDA nothing was shown yet.
_FASTEST_FIRST: dict[str, tuple[Precision, ...]] = {
    "avx512_bf16": ("int8", "bf16", "fp32"),
    "avx512": ("int8", "fp32"),
    "avx2": ("int8", "fp32"),
    "baseline": ("int8", "fp32"),
    "cpu": ("fp32",),
    "cuda": ("fp32",),
}


class Backend(Protocol):
    """Weights, and the keys and values of sequences in slots 0, 1, ..."""

    computed_tokens: int  # in steps so far, with what was only padding

    @property
    def name(self) -> str:
        """What computes: one name, one rounding."""

    def prompt_cost(self, length: int) -> int:
        """Tokens that prefilling a prompt of `length` tokens computes, with its padding."""

    def step(self, running: int, admitted: Sequence[tuple[list[int], SamplingParams]]) -> list[int]:
        """One token for each of the first `running` slots, and the first of those admitted.

        Admitted prompts take the next slots, in order. A row whose logits are not numbers draws
        `BROKEN`.
        """

    def move(self, source: int, target: int) -> None:
        """Slot `target` takes over the sequence of slot `source`."""

    def logits(self, ids: list[int]) -> Tensor:
        """Logits [time, vocab] after every token of a sequence; uses slot 0."""

    def reset(self) -> None:
        """Forgets what a failed step may have left behind."""


def open_backend(
    model: GPT,
    *,
    device: Device,
    precision: Literal["auto"] | Precision,
    kernels: Kernels,
    slots: int,
    perplexity: Mapping[str, float],
    kv_cache: bool = True,
) -> tuple[Backend, Precision]:
    """The backend that serves `model`, and the precision that "auto" came to.

    `perplexity` is what the checkpoint is known to reach in each precision. Without a KV cache
    PyTorch computes, whatever `kernels` says. Raises ValueError for what this machine does not
    have.
    """
    if precision not in ("auto", *PRECISIONS):
        raise ValueError(f"no precision {precision!r}; there are auto, {', '.join(PRECISIONS)}")
    if device == "auto":
        pinned = kernels not in ("auto", "none")
        device = "cuda" if torch.cuda.is_available() and not pinned else "cpu"
    variant = _variant(kernels) if device == "cpu" and kv_cache else None
    if precision == "auto":
        precision = _fastest(variant or device, perplexity)
    if variant:
        return NativeBackend(model, slots, precision, variant), precision
    backend = TorchBackend if kv_cache else RecomputeBackend
    return backend(model, slots, torch.device(device), precision), precision


def _variant(wanted: Kernels) -> str | None:
    """The kernels to use, or None for PyTorch alone."""
    if wanted == "none":
        return None
    there = kernels.supported()
    if wanted == "auto":
        if not there:
            log.warning(
                "no native kernels are built, PyTorch serves, which is slower; "
                "`python -m slm_core.kernels.build` builds them"
            )
        return there[0] if there else None
    if wanted not in there:
        known = ", ".join(there) or "none; `python -m slm_core.kernels.build` builds them"
        raise ValueError(f"no kernels {wanted!r} that are built and run here; there are {known}")
    return wanted


def _fastest(computer: str, perplexity: Mapping[str, float]) -> Precision:
    for precision in _FASTEST_FIRST[computer]:
        known = precision in perplexity and "fp32" in perplexity
        if known and perplexity[precision] <= MAX_PERPLEXITY_RATIO * perplexity["fp32"]:
            return precision
    return "fp32"
