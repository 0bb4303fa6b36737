"""Keys and values of every live sequence, in slots allocated once."""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

from slm_core.config import GPTConfig

POSITION_BUCKET = 32  # at 16 products round differently from those of other lengths
HEAD_DIM_BUCKET = 16


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
        # head_dim is padded because products over odd ones round differently at other lengths
        self.head_dim = round_up(config.head_dim, HEAD_DIM_BUCKET)
        shape = (config.n_layer, 2, slots, config.n_head, self.positions, self.head_dim)
        self.data = _zeros(shape, dtype, device)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, each [slot, head, position, head_dim]; views."""
        keys, values = self.data[index]
        return keys, values

    def clear(self, slot: int) -> None:
        """Zeroes a slot. Masked positions must be finite, or they would spoil the next owner."""
        self.data[:, :, slot] = 0

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of a slot to another slot."""
        self.data[:, :, target, :, :length] = self.data[:, :, source, :, :length]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros whose pages cost no memory until they are written, on a CPU."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = untouched_pages(math.prod(shape) * dtype.itemsize)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


def untouched_pages(size: int) -> mmap.mmap:
    """Zeros that cost no memory until they are written. Raises MemoryError."""
    try:
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no room for a KV cache of {size >> 20} MiB: {error}") from None
