"""The shape of a GPT. Knows nothing of weights, tensors or devices."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from slm_core.errors import CheckpointError

GPT2_VOCAB_SIZE = 50257

# Far above any model that this engine could run. A config may come from a stranger, and a module is
# made for each layer before the weights show what is true of it.
_MOST = {
    "n_layer": 256,
    "n_head": 1_024,
    "n_embd": 1 << 16,
    "context_length": 1 << 20,
    "vocab_size": 1 << 20,
}


@dataclass(frozen=True)
class GPTConfig:
    """A GPT-2 shaped decoder (Radford et al., 2019): pre-LN, learned positions, tied head.

    Attributes:
        n_layer: transformer blocks.
        n_head: attention heads per block; divides `n_embd`.
        n_embd: width of the residual stream.
        context_length: longest sequence in tokens, prompt and continuation together.
        vocab_size: rows of the token embedding, which is also the output head.
        dropout: probability, of embeddings and residual branches, in training only.
    """

    n_layer: int
    n_head: int
    n_embd: int
    context_length: int
    vocab_size: int = GPT2_VOCAB_SIZE
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(f"{name} must be 1 to {most}, not {value!r:.32}")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @classmethod
    def preset(cls, name: str) -> GPTConfig:
        """A named shape. Raises ValueError naming the known ones."""
        try:
            return PRESETS[name]
        except KeyError:
            raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}") from None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GPTConfig:
        """The inverse of `to_dict`. Raises CheckpointError on unknown, missing or bad fields."""
        if not isinstance(values, dict):
            raise CheckpointError("bad model config: it is no object")
        unknown = values.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise CheckpointError(f"unknown model config fields: {', '.join(sorted(unknown))}")
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"bad model config: {error}") from None


PRESETS = {
    "tiny": GPTConfig(n_layer=2, n_head=2, n_embd=64, context_length=128),  # 3 M: tests, toys
    "width-128": GPTConfig(n_layer=4, n_head=4, n_embd=128, context_length=256),  # 7 M
    "slm-7m": GPTConfig(n_layer=4, n_head=4, n_embd=128, context_length=512),
    "tinystories": GPTConfig(n_layer=6, n_head=6, n_embd=192, context_length=512),  # 12 M, ships
    "slm-16m": GPTConfig(n_layer=4, n_head=4, n_embd=256, context_length=512),
    "classic": GPTConfig(n_layer=6, n_head=6, n_embd=384, context_length=128),  # 30 M
    "slm-30m": GPTConfig(n_layer=6, n_head=6, n_embd=384, context_length=512),
    "gpt2": GPTConfig(n_layer=12, n_head=12, n_embd=768, context_length=1024),  # 124 M
}
