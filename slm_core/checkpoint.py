"""A checkpoint is a directory: `config.json`, `model.safetensors`, `README.md` (the model card).

Weights are only ever read from safetensors: loading a checkpoint never runs code from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from slm_core.config import GPTConfig
from slm_core.errors import CheckpointError
from slm_core.model import GPT, empty_model
from slm_core.tokenizer import Tokenizer

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CARD = "README.md"


def save_checkpoint(
    model: GPT,
    directory: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    card: str | None = None,
) -> Path:
    """Writes `model` as a checkpoint directory, with weights cast to `dtype`.

    Each file is written under a temporary name and renamed, so a killed save leaves no half file.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    write_weights(directory / WEIGHTS, weights)
    config = {"model": model.config.to_dict(), "tokenizer": Tokenizer.name}
    write_text(directory / CONFIG, json.dumps(config, indent=2) + "\n")
    if card is not None:
        write_text(directory / CARD, card)
    return directory


def would_overwrite(directory: str | Path) -> bool:
    """Whether a checkpoint that is saved there takes the place of something."""
    return any((Path(directory) / name).exists() for name in (WEIGHTS, CONFIG))


def load_checkpoint(directory: str | Path) -> GPT:
    """The model of a checkpoint directory, in fp32 on the CPU, in evaluation mode.

    Raises CheckpointError where files are missing or damaged, or weights and config disagree.
    """
    directory = Path(directory)
    config = read_config(directory)
    path = directory / WEIGHTS
    weights = read_weights(path)
    model = empty_model(config)
    try:
        model.load_state_dict({k: v.float() for k, v in weights.items()}, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit its {CONFIG}: {error}") from None
    return model


def read_config(directory: str | Path) -> GPTConfig:
    """The model shape that a checkpoint directory declares. Raises CheckpointError."""
    return GPTConfig.from_dict(_read(directory)["model"])


def read_perplexity(directory: str | Path) -> dict[str, float]:
    """Perplexity on a validation text by precision, as far as it was recorded for these weights."""
    recorded = _read(directory).get("perplexity", {})
    try:
        return {precision: float(value) for precision, value in recorded.items()}
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"bad perplexity in {directory}/{CONFIG}: {error}") from None


def record_perplexity(directory: str | Path, perplexity: Mapping[str, float]) -> None:
    """Replaces what `read_perplexity` gives back: figures of different texts say nothing together.

    Raises CheckpointError.
    """
    content = {**_read(directory), "perplexity": dict(perplexity)}
    write_text(Path(directory) / CONFIG, json.dumps(content, indent=2) + "\n")


def _read(directory: str | Path) -> dict[str, Any]:
    path = Path(directory) / CONFIG
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        tokenizer, _ = content["tokenizer"], content["model"]
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {directory}: {CONFIG} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a checkpoint config: {error!r}") from None
    if tokenizer != Tokenizer.name:
        raise CheckpointError(f"{path} asks for tokenizer {tokenizer!r}; only 'gpt2' is known")
    return content


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises CheckpointError where it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {path.parent}: {path.name} is missing") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None


def write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Writes a safetensors file under a temporary name and renames it."""
    partial = _partial(path)
    save_file(weights, partial, metadata={"format": "pt"})
    partial.chmod(0o644)  # safetensors leaves it to its owner; a server may be somebody else
    partial.replace(path)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file under a temporary name and renames it."""
    partial = _partial(path)
    partial.write_text(text, "utf-8")
    partial.replace(path)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")
