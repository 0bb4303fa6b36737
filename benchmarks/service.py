"""The service over HTTP: its throughput against that of the engine alone, on the same rows and
the same cores; how fast the api takes jobs; what waiting costs; how soon a cancel ends a job.

python -m benchmarks.service [--only throughput|submit|wait|cancel]...
"""

from __future__ import annotations

import statistics
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.latency import added_by_waiting, cancel_latency
from benchmarks.measure import (
    available_threads,
    interleave,
    medians,
    random_model,
    ratios,
    report,
    timed,
)
from benchmarks.submit import submit_rate
from benchmarks.workloads import random_prompts
from slm_client import Client
from slm_client.stack import Stack, StackOptions
from slm_core import Engine, SamplingParams, Tokenizer, save_checkpoint


class Part(StrEnum):
    THROUGHPUT = "throughput"
    SUBMIT = "submit"
    WAIT = "wait"
    CANCEL = "cancel"


def main(
    preset: Annotated[str, typer.Option(help="Model shape; weights are random.")] = "slm-30m",
    rows: Annotated[int, typer.Option(help="Prompts.")] = 512,
    tokens: Annotated[int, typer.Option(help="New tokens for each.")] = 200,
    slots: Annotated[int, typer.Option(help="Sequences decoded at once, on both sides.")] = 64,
    repeats: Annotated[int, typer.Option(help="Rounds of throughput; medians are reported.")] = 5,
    pairs: Annotated[int, typer.Option(help="Pairs of rounds of submitting.")] = 7,
    seconds: Annotated[float, typer.Option(help="Length of a round of submitting.")] = 5.0,
    connections: Annotated[int, typer.Option(help="Clients that submit at once.")] = 16,
    latencies: Annotated[int, typer.Option(help="Waits, and cancels, of one job each.")] = 50,
    only: Annotated[list[Part] | None, typer.Option(help="This part; may be repeated.")] = None,
) -> None:
    """Measures the parts one after the other, each on an idle machine."""
    parts = only or list(Part)
    figures: dict[str, Any] = {"preset": preset, "slots": slots}
    if Part.SUBMIT in parts:
        figures |= submit_rate(pairs=pairs, seconds=seconds, connections=connections)
    if {*parts} - {Part.SUBMIT}:
        torch.set_num_threads(available_threads())
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = save_checkpoint(random_model(preset), Path(folder) / "model")
            engine = Engine.from_checkpoint(checkpoint, device="cpu", slots=slots)
            options = StackOptions(
                port=0, data_dir=Path(folder) / "data", model=checkpoint, slots=slots
            )
            with Stack(options, on_event=print) as stack:
                url, key = stack.url, stack.api_key
                if Part.WAIT in parts:
                    figures |= added_by_waiting(url, key, engine, repeats=latencies)
                if Part.CANCEL in parts:
                    figures |= cancel_latency(url, key, repeats=latencies)
                if Part.THROUGHPUT in parts:
                    with Client(url, key) as client:
                        figures |= _throughput(client, engine, rows, tokens, repeats)
    report("service", **figures)


def _throughput(
    client: Client, engine: Engine, rows: int, tokens: int, repeats: int
) -> dict[str, Any]:
    """Tokens per second through HTTP, Redis and Celery, as a share of the engine's own."""
    tokenizer = Tokenizer()
    texts = [tokenizer.decode(ids) for ids in random_prompts(rows, longest=40)]
    asked: dict[str, Any] = {
        "max_tokens": tokens,
        "temperature": 0.8,
        "top_k": 40,
        "ignore_eos": True,
    }

    def alone() -> int:
        completions = engine.generate(texts, SamplingParams(**asked))
        return sum(c.usage.completion_tokens for c in completions)

    def served() -> int:
        results = list(client.bulk(texts, **asked))
        if len(results) != rows:
            raise RuntimeError(f"{len(results)} results for {rows} rows")
        return sum(result.completion_tokens for result in results)

    rates = interleave({"service": timed(served), "engine": timed(alone)}, repeats)
    return {
        "tokens_per_second": medians(rates),
        "rows": rows,
        "tokens": tokens,
        "service_over_engine": round(statistics.median(ratios(rates, "service", "engine")), 3),
    }


if __name__ == "__main__":
    typer.run(main)
