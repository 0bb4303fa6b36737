"""Keys and values of every live sequence, in slots allocated once."""

from __future__ import annotations

import torch
from torch import Tensor

from slm_core.config import GPTConfig

POSITION_BUCKET = 64


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


class KVCache:
    """`data` is [layer, 2 (key, value), slot, head, position, head_dim].

    Live sequences sit in slots 0 ... n-1, so a step works on slices and never gathers.
    """

    def __init__(
        self, config: GPTConfig, slots: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.positions = round_up(config.context_length, POSITION_BUCKET)
        # zeros: positions that are masked must still be finite, and the pages stay untouched
        self.data = torch.zeros(
            (config.n_layer, 2, slots, config.n_head, self.positions, config.head_dim),
            dtype=dtype,
            device=device,
        )

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, each [slot, head, position, head_dim]; views."""
        keys, values = self.data[index]
        return keys, values

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of a slot to another slot."""
        self.data[:, :, target, :, :length] = self.data[:, :, source, :, :length]
