"""The model and its engine: a library without servers, queues or threads of its own.

Names are loaded on first use (PEP 562), so `slm_core.tokenizer` costs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slm_core.checkpoint import load_checkpoint, save_checkpoint
    from slm_core.config import GPTConfig
    from slm_core.engine import Engine
    from slm_core.huggingface import export_huggingface, import_huggingface
    from slm_core.model import GPT
    from slm_core.sampling import SamplingParams
    from slm_core.scheduler import Completion
    from slm_core.tokenizer import Tokenizer

_HOME = {
    "GPT": "model",
    "Completion": "scheduler",
    "Engine": "engine",
    "GPTConfig": "config",
    "SamplingParams": "sampling",
    "Tokenizer": "tokenizer",
    "export_huggingface": "huggingface",
    "import_huggingface": "huggingface",
    "load_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
}

__all__ = [
    "GPT",
    "Completion",
    "Engine",
    "GPTConfig",
    "SamplingParams",
    "Tokenizer",
    "export_huggingface",
    "import_huggingface",
    "load_checkpoint",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
