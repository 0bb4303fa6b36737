"""What the benchmarks share: workloads, interleaved repeats, the machine, the last line."""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime

import torch

from slm_core import GPT, GPTConfig


def random_model(preset: str) -> GPT:
    """Random weights, large enough that logits are as peaked as a trained model's."""
    torch.manual_seed(0)
    model = GPT(GPTConfig.preset(preset)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.1)
    return model


def random_prompts(count: int, shortest: int = 4, longest: int = 64) -> list[list[int]]:
    rng = random.Random(0)
    return [
        [rng.randrange(50256) for _ in range(rng.randint(shortest, longest))] for _ in range(count)
    ]


def interleave(contestants: dict[str, Callable[[], int]], repeats: int) -> dict[str, list[float]]:
    """Tokens per second of each contestant, `repeats` times in turn, after one warm-up round.

    A contestant returns how many tokens it generated.
    """
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(repeats + 1):
        for name, run in contestants.items():
            started = time.perf_counter()
            tokens = run()
            rate = tokens / (time.perf_counter() - started)
            print(
                f"{'warm-up' if repeat == 0 else repeat}: {name}: {rate:.0f} tokens/s", flush=True
            )
            if repeat:
                rates[name].append(rate)
    return rates


def median_ratio(rates: dict[str, list[float]], over: str, under: str) -> float:
    """Median over the repeats of one rate through another of the same round."""
    return statistics.median(a / b for a, b in zip(rates[over], rates[under], strict=True))


def report(name: str, rates: dict[str, list[float]], **figures: object) -> None:
    """Prints the one JSON document."""
    document = {
        "benchmark": name,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"{torch.backends.cpu.get_cpu_capability()}",
        "tokens_per_second": {name: round(statistics.median(r), 1) for name, r in rates.items()},
        **figures,
    }
    print(json.dumps(document))
