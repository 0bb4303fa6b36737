"""The backend that the C++ kernels carry: one call a step, for prompts and running rows alike.

Every row attends over its own slot's true length, so nothing is padded, and a prompt's rows round
exactly as if they had been decoded one by one. Owns the memory that the kernels work on.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slm_core import kernels
from slm_core.kv_cache import round_up, untouched_pages
from slm_core.linear import Precision
from slm_core.model import GPT
from slm_core.sampling import SamplingParams, noise_keys

# See kernels/attention.h.
_KEY_BLOCK = 16  # positions and head sizes come in these
# Bytes of each number of a key or value in the cache, and of the scale of a position's.
_CACHE_BYTES: dict[Precision, tuple[int, int]] = {"fp32": (4, 0), "bf16": (2, 0), "int8": (1, 4)}

# The structs of kernels/model.cpp and kernels/sampling.h.
_int, _pointer = ctypes.c_int32, ctypes.c_void_p
_LAYER = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
_DRAW = np.dtype(
    {
        "names": ["temperature", "top_p", "key", "step", "top_k", "token"],
        "formats": ["f8", "f8", "u8", "i8", "i4", "i4"],
    }
)


def _struct(name: str, **fields: type[Any]) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


_Shape = _struct(
    "_Shape",
    **dict.fromkeys(
        ("layers", "heads", "width", "positions", "vocab", "cache_slots", "cache_positions"), _int
    ),
)
_Weights = _struct("_Weights", **dict.fromkeys(("wte", "wpe", "norm", "bias", "layers"), _pointer))
_Batch = _struct(
    "_Batch",
    rows=_int,
    tokens=_pointer,
    slots=_pointer,
    positions=_pointer,
    outputs=_int,
    output_rows=_pointer,
    draws=_pointer,
    logits=_pointer,
    threads=_int,
)


class NativeBackend:
    """A model packed for one variant of the kernels, its KV cache, and every slot's state."""

    def __init__(self, model: GPT, slots: int, precision: Precision, variant: str) -> None:
        self._library = kernels.load(variant)
        digest = hashlib.sha256(kernels.library_path(variant).read_bytes()).hexdigest()
        self.name = f"cpu-{variant}/kernels-{digest[:12]}"
        self._vocab_size = model.config.vocab_size
        self.computed_tokens = 0
        self._model = self._pack(model, slots, precision)
        self._draws = np.zeros(slots, _DRAW)
        self._positions = np.zeros(slots, np.int32)  # of the last token, not yet in the cache
        self._physical = np.arange(slots, dtype=np.int32)  # where a slot's keys and values are

    def _pack(self, model: GPT, slots: int, precision: Precision) -> int:
        config = model.config
        weights = {
            name: tensor.detach().to("cpu", torch.float32).contiguous()
            for name, tensor in model.state_dict().items()
        }
        self._embeddings = (weights["wte.weight"], weights["wpe.weight"])  # the kernels read them
        positions = round_up(config.context_length, _KEY_BLOCK)
        head_dim = round_up(config.head_dim, _KEY_BLOCK)
        cached = config.n_layer * 2 * slots * config.n_head * positions
        number, scale = _CACHE_BYTES[precision]
        pages = untouched_pages(cached * (number * head_dim + scale))
        self._cache = (ctypes.c_char * len(pages)).from_buffer(pages)
        names = [f"h.{index}.{name}" for index in range(config.n_layer) for name in _LAYER]
        layers = (_pointer * (2 * len(names)))(
            *(weights[f"{n}.{part}"].data_ptr() for n in names for part in ("weight", "bias"))
        )
        shape = _Shape(
            config.n_layer,
            config.n_head,
            config.n_embd,
            config.context_length,
            config.vocab_size,
            slots,
            positions,
        )
        packed: int | None = self._library.slm_create(
            ctypes.byref(shape),
            ctypes.byref(
                _Weights(
                    *(tensor.data_ptr() for tensor in self._embeddings),
                    weights["ln_f.weight"].data_ptr(),
                    weights["ln_f.bias"].data_ptr(),
                    ctypes.addressof(layers),
                )
            ),
            precision.encode(),
            ctypes.addressof(self._cache),
        )
        if packed is None:
            raise MemoryError(f"no room for {slots} slots and the packed weights")
        return packed

    def __del__(self) -> None:
        if packed := getattr(self, "_model", None):
            self._library.slm_destroy(packed)

    def prompt_cost(self, length: int) -> int:
        return length

    def step(self, running: int, admitted: Sequence[tuple[list[int], SamplingParams]]) -> list[int]:
        live = running + len(admitted)
        tokens, slots = self._draws["token"][:running], self._physical[:running]
        positions, last = self._positions[:running], np.arange(running, dtype=np.int32)
        if admitted:
            self._assign(running, admitted)
            lengths = [len(ids) for ids, _ in admitted]
            tokens = np.concatenate([tokens, *(ids for ids, _ in admitted)])
            slots = np.concatenate([slots, np.repeat(self._physical[running:live], lengths)])
            positions = np.concatenate([positions, *map(np.arange, lengths)])
            last = np.concatenate([last, running - 1 + np.cumsum(lengths)])
        self.forward(tokens, slots, positions, last, draws=self._draws)
        self._positions[:live] += 1
        self.computed_tokens += len(tokens)
        drawn: list[int] = self._draws["token"][:live].tolist()
        return drawn

    def _assign(self, first: int, admitted: Sequence[tuple[list[int], SamplingParams]]) -> None:
        keys = noise_keys([params.seed for _, params in admitted]).numpy().view(np.uint64)
        for slot, ((ids, params), key) in enumerate(zip(admitted, keys, strict=True), first):
            self._positions[slot] = len(ids) - 1
            top_k = min(params.top_k or 0, self._vocab_size)
            self._draws[slot] = (params.temperature, params.top_p, key, 0, top_k, 0)

    def move(self, source: int, target: int) -> None:
        physical = self._physical
        physical[source], physical[target] = physical[target], physical[source]
        self._draws[target] = self._draws[source]
        self._positions[target] = self._positions[source]

    def logits(self, ids: list[int]) -> Tensor:
        every = np.arange(len(ids), dtype=np.int32)
        logits = np.empty((len(ids), self._vocab_size), np.float32)
        slots = np.full(len(ids), self._physical[0])
        self.forward(np.array(ids), slots, every, every, logits=logits)
        return torch.from_numpy(logits)

    def reset(self) -> None:
        """Nothing to forget: what a slot held before its own positions is never read."""

    def forward(
        self,
        tokens: NDArray[Any],
        slots: NDArray[Any],
        positions: NDArray[Any],
        output_rows: NDArray[Any],
        *,
        draws: NDArray[Any] | None = None,
        logits: NDArray[np.float32] | None = None,
    ) -> None:
        """Runs rows (token, slot, position), which must be in range, and draws for some."""
        rows = [
            np.ascontiguousarray(array, np.int32)
            for array in (tokens, slots, positions, output_rows)
        ]
        batch = _Batch(
            len(tokens),
            *(array.ctypes.data for array in rows[:3]),
            len(output_rows),
            rows[3].ctypes.data,
            None if draws is None else draws.ctypes.data,
            None if logits is None else logits.ctypes.data,
            torch.get_num_threads(),
        )
        if self._library.slm_forward(self._model, ctypes.byref(batch)):
            raise MemoryError(f"no room for a step of {len(tokens)} rows")
