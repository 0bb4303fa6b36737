"""The whole service over HTTP against the engine alone, on the same rows and the same cores.

python -m benchmarks.service
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.measure import (
    available_threads,
    interleave,
    medians,
    random_model,
    ratios,
    report,
    timed,
)
from benchmarks.workloads import random_prompts
from slm_client import Client
from slm_client.stack import Stack, StackOptions
from slm_core import Engine, SamplingParams, Tokenizer, save_checkpoint


def main(
    preset: Annotated[str, typer.Option(help="Model shape; weights are random.")] = "slm-30m",
    rows: Annotated[int, typer.Option(help="Prompts.")] = 512,
    tokens: Annotated[int, typer.Option(help="New tokens for each.")] = 200,
    slots: Annotated[int, typer.Option(help="Sequences decoded at once, on both sides.")] = 64,
    repeats: Annotated[int, typer.Option(help="Rounds; medians are reported.")] = 5,
) -> None:
    """Tokens per second through HTTP, Redis and Celery, as a share of the engine's own."""
    model = random_model(preset)
    tokenizer = Tokenizer()
    texts = [tokenizer.decode(ids) for ids in random_prompts(rows, longest=40)]
    params = SamplingParams(max_tokens=tokens, temperature=0.8, top_k=40, ignore_eos=True)
    torch.set_num_threads(available_threads())
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = save_checkpoint(model, Path(folder) / "model")
        engine = Engine.from_checkpoint(checkpoint, device="cpu", slots=slots)
        options = StackOptions(
            port=0, data_dir=Path(folder) / "data", model=checkpoint, slots=slots
        )
        with Stack(options, on_event=print) as stack, Client(stack.url) as client:

            def alone() -> int:
                completions = engine.generate(texts, params)
                return sum(c.usage.completion_tokens for c in completions)

            def served() -> int:
                results = list(
                    client.bulk(
                        texts, max_tokens=tokens, temperature=0.8, top_k=40, ignore_eos=True
                    )
                )
                if len(results) != rows:
                    raise RuntimeError(f"{len(results)} results for {rows} rows")
                return sum(result.completion_tokens for result in results)

            rates = interleave({"service": timed(served), "engine": timed(alone)}, repeats)
    report(
        "service",
        tokens_per_second=medians(rates),
        preset=preset,
        rows=rows,
        tokens=tokens,
        slots=slots,
        service_over_engine=round(statistics.median(ratios(rates, "service", "engine")), 3),
    )


if __name__ == "__main__":
    typer.run(main)
