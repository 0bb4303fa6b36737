"""Where a run stands, on disk, so that it can go on as if it had never stopped.

A state is a folder `step-00000250` of `tensors.safetensors` and `state.json`. It is written under a
temporary name and renamed as a whole; the one before it is kept. Knows nothing of what it holds.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

_TENSORS, _FACTS = "tensors.safetensors", "state.json"
_KEPT = 2
_NAME = re.compile(r"step-([0-9]{8,})")  # nothing else there is ours


class StateError(Exception):
    """A state that cannot be read or written. Says where and why."""


@dataclass(frozen=True)
class State:
    """`facts` can be JSON; `step` is how many steps were made."""

    step: int
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


def save_state(folder: Path, state: State) -> None:
    """Writes a state into `folder` and removes all but the one before it.

    Raises StateError, and leaves what was there as it was, where it cannot be written.
    """
    partial = folder / ".partial"
    target = folder / f"step-{state.step:08d}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        tensors = {name: tensor.detach().contiguous() for name, tensor in state.tensors.items()}
        save_file(tensors, partial / _TENSORS)
        (partial / _FACTS).write_text(json.dumps({"step": state.step, **state.facts}, indent=2))
        for path in (partial / _TENSORS, partial / _FACTS, partial):
            _flush(path)
        if target.exists():  # of a run that went on from an older state
            shutil.rmtree(target)
        partial.rename(target)
        _flush(folder)
        for old in _states(folder)[_KEPT:]:
            shutil.rmtree(old)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise StateError(f"cannot save the state in {folder}: {error}") from None


def load_state(folder: Path) -> tuple[State, list[str]]:
    """The newest state in `folder` that can be read, and what was wrong with newer ones.

    Raises StateError where there is none.
    """
    problems: list[str] = []
    for path in _states(folder):
        try:
            facts = json.loads((path / _FACTS).read_text("utf-8"))
            return State(facts.pop("step"), load_file(path / _TENSORS), facts), problems
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            problems.append(f"{path} is damaged: {error}")
    raise StateError("; ".join(problems) or f"there is no state in {folder}")


def has_state(folder: Path) -> bool:
    return bool(_states(folder))


def _states(folder: Path) -> list[Path]:
    """Newest first."""
    named = [(_NAME.fullmatch(path.name), path) for path in folder.glob("step-*")]
    return [path for _, path in sorted(((int(m[1]), p) for m, p in named if m), reverse=True)]


def _flush(path: Path) -> None:
    """Waits until a file or folder is on the disk, not only in the system's memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
