"""A checkpoint is a directory: `config.json`, `model.safetensors`, `README.md` (the model card).

Weights are only ever read from safetensors: loading a checkpoint never runs code from it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from slm_core.config import GPTConfig
from slm_core.errors import CheckpointError
from slm_core.model import GPT
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
    partial = directory / f".{WEIGHTS}.partial"
    save_file(weights, partial, metadata={"format": "pt"})
    partial.chmod(0o644)  # safetensors leaves it to its owner; a server may be somebody else
    partial.replace(directory / WEIGHTS)
    config = {"model": model.config.to_dict(), "tokenizer": Tokenizer.name}
    _write(directory / CONFIG, json.dumps(config, indent=2) + "\n")
    if card is not None:
        _write(directory / CARD, card)
    return directory


def load_checkpoint(directory: str | Path) -> GPT:
    """The model of a checkpoint directory, in fp32 on the CPU, in evaluation mode.

    Raises CheckpointError where files are missing or damaged, or weights and config disagree.
    """
    directory = Path(directory)
    config = read_config(directory)
    path = directory / WEIGHTS
    try:
        weights = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {directory}: {WEIGHTS} is missing") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None
    with torch.device("meta"):
        model = GPT(config)
    try:
        model.load_state_dict({k: v.float() for k, v in weights.items()}, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit its {CONFIG}: {error}") from None
    return model.eval()


def read_config(directory: str | Path) -> GPTConfig:
    """The model shape that a checkpoint directory declares."""
    path = Path(directory) / CONFIG
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        tokenizer, shape = content["tokenizer"], content["model"]
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {directory}: {CONFIG} is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a checkpoint config: {error!r}") from None
    if tokenizer != Tokenizer.name:
        raise CheckpointError(f"{path} asks for tokenizer {tokenizer!r}; only 'gpt2' is known")
    return GPTConfig.from_dict(shape)


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)
