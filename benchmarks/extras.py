"""What is measured besides the race: agreement, the cost of waiting prompts, start-up."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.checks import agreement, agreement_prompts
from benchmarks.contestant import Child, ContestantError
from benchmarks.measure import interleave, ratios
from benchmarks.workloads import BATCH, uniform
from slm_core import GPT

_PACKAGES = ("torch", "transformers", "ctranslate2", "llama-cpp-python")
_START = """
from slm_core import Engine, SamplingParams
Engine.from_checkpoint({path!r}, device="cpu").generate("Once", SamplingParams(max_tokens=1))
"""


def agreements(children: dict[str, Child], model: GPT, trained: bool) -> dict[str, float]:
    """How often each contestant's likeliest next token is the fp32 model's."""
    prompts = agreement_prompts(model, trained=trained)
    found: dict[str, float] = {}
    for name, child in children.items():
        try:
            found[name] = agreement(child, model, prompts)
        except ContestantError as error:
            print(f"no agreement of {name}: {error}", flush=True)
    return found


def waiting(child: Child, name: str, tokens: int, repeats: int) -> dict[str, Any]:
    """A token's cost with eight times as many prompts as slots, over its cost with as many."""
    few, many = uniform(tokens), uniform(tokens, 8 * BATCH)
    rates = interleave(
        {"64 prompts": lambda: child.run(few).rate, "512 prompts": lambda: child.run(many).rate},
        repeats,
    )
    rounds = ratios(rates, "64 prompts", "512 prompts")
    return {
        "of": name,
        "cost_of_512_over_64": round(statistics.median(rounds), 3),
        "rounds": rounds,
    }


def start_up(checkpoint: Path, repeats: int) -> float:
    """Seconds from nothing to the first token of a checkpoint, median."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", _START.format(path=str(checkpoint))], check=True)
        seconds.append(time.perf_counter() - started)
    return round(statistics.median(seconds), 2)


def versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
