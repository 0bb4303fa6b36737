"""Small texts as token files, and the training command on them."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from typer.testing import CliRunner, Result

from slm_core import Tokenizer
from training.tokens import TOKEN_DTYPE, write_meta
from training.train import app

REPOSITORY = Path(__file__).parents[2]
STORIES = [f"Once there was a {a} {b}. It was {a}." for a in ("red", "big") for b in ("cat", "dog")]
POEMS = ["The moon is a boat on a sea of night.", "A star is a lamp on a hill of white."]

# A step takes some milliseconds.
TOY = "--preset tiny --context 16 --width 32 --batch 4 --no-compile --precision fp32 --device cpu"


def write_data(folder: Path, train: Sequence[str], val: Sequence[str]) -> Path:
    """A folder as training.prepare makes it."""
    folder.mkdir()
    meta: dict[str, Any] = {"tokenizer": Tokenizer.name}
    for name, texts in (("train", train), ("val", val)):
        ids = token_ids(texts)
        ids.tofile(folder / f"{name}.bin")
        digest = hashlib.sha256(ids.tobytes()).hexdigest()
        meta[name] = {"documents": len(texts), "tokens": len(ids), "sha256": digest}
    write_meta(folder, meta)
    return folder


def token_ids(texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.uint16]]:
    tokenizer = Tokenizer()
    ids = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
    return np.concatenate([np.asarray(document, TOKEN_DTYPE) for document in ids])


def train(arguments: str, *more: str | Path) -> Result:
    """The command, in this process."""
    return CliRunner().invoke(app, [*arguments.split(), *map(str, more)])


def command(arguments: str, *more: str | Path) -> list[str]:
    """The command, for a process of its own."""
    return [sys.executable, "-m", "training.train", *arguments.split(), *map(str, more)]


def environment() -> dict[str, str]:
    """One thread, and nothing of a torchrun that runs these tests."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def course(out: Path) -> list[dict[str, Any]]:
    """The log without what a clock says."""
    clock = ("seconds", "tokens_per_second")
    return [{k: v for k, v in entry.items() if k not in clock} for entry in log(out)]


def states(out: Path) -> list[Path]:
    return sorted((out / "state").glob("step-*"))


def tensors(out: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Of the newest state."""
    return load_file(states(out)[-1] / "tensors.safetensors")


def eventually(check: Callable[[], object], seconds: float = 60.0) -> None:
    """Fails unless `check()` becomes true in time."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)
