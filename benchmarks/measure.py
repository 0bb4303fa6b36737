"""What the benchmarks share: random weights, interleaved repeats, the machine, the last line."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from slm_core import GPT, GPTConfig, load_checkpoint

SHIPPED = Path(__file__).parents[1] / "slm_core" / "checkpoints" / "tinystories"

Rates = dict[str, list[float]]  # tokens per second of each contestant, round by round


def model_of(preset: str) -> GPT:
    """The shipped checkpoint, or a shape with random weights."""
    return load_checkpoint(SHIPPED) if preset == "shipped" else random_model(preset)


def random_model(preset: str) -> GPT:
    """Random weights, large enough that logits are as peaked as a trained model's."""
    torch.manual_seed(0)
    model = GPT(GPTConfig.preset(preset)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.1)
    return model


def available_threads() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def interleave(contestants: dict[str, Callable[[], float]], repeats: int) -> Rates:
    """Calls every contestant in turn, `repeats` times after one warm-up round.

    A contestant returns its tokens per second; one that raises is for the caller to catch.
    """
    rates: Rates = {name: [] for name in contestants}
    for repeat in range(repeats + 1):
        for name, run in contestants.items():
            rate = run()
            print(f"{repeat or 'warm-up'}: {name}: {rate:,.0f} tokens/s", flush=True)
            if repeat:
                rates[name].append(rate)
    return rates


def timed(run: Callable[[], int]) -> Callable[[], float]:
    """The tokens per second of something that returns how many tokens it generated."""

    def rate() -> float:
        started = time.perf_counter()
        return run() / (time.perf_counter() - started)

    return rate


def medians(rates: Rates) -> dict[str, float]:
    return {name: round(statistics.median(each), 1) for name, each in rates.items()}


def ratios(rates: Rates, over: str, under: str) -> list[float]:
    """One rate through another of the same round."""
    return [round(a / b, 3) for a, b in zip(rates[over], rates[under], strict=True)]


def report(name: str, **figures: Any) -> dict[str, Any]:
    """Prints the one JSON document, and returns it."""
    document = {
        "benchmark": name,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"{torch.backends.cpu.get_cpu_capability()}",
        **figures,
    }
    print(json.dumps(document), flush=True)
    return document
