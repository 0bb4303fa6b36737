"""Our engine and its peers: the same weights, the same prompts, the same cores, in turn.

python -m benchmarks.engine --plot docs/engine.png
"""

from __future__ import annotations

import json
import math
import os
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.checks import verify
from benchmarks.contestant import Child, ContestantError
from benchmarks.extras import agreements, start_up, versions, waiting
from benchmarks.measure import (
    SHIPPED,
    Rates,
    available_threads,
    interleave,
    medians,
    model_of,
    ratios,
    report,
)
from benchmarks.peers import CONTESTANTS, PEERS
from benchmarks.roofline import measure
from benchmarks.workloads import BATCH, TEMPERATURE, TOP_K, WORKLOADS, Workload
from slm_core import GPT, GPTConfig, save_checkpoint

MODELS = ("slm-30m", "slm-7m", "shipped")


class Field:
    """Those who take part, each loaded and checked, and why others do not."""

    def __init__(self, names: list[str], model: GPT, folder: Path, threads: int) -> None:
        self.children: dict[str, Child] = {}
        self.checks: dict[str, dict[str, float]] = {}
        self.skipped: dict[str, str] = {}
        self.shortened: dict[str, dict[str, str]] = {}
        self.disturbed: dict[str, dict[str, int]] = {}
        self._threads = threads
        checkpoint = save_checkpoint(model, folder / "checkpoint")
        for name in names:
            try:
                self._admit(name, model, checkpoint, folder)
                print(f"{name}: {self.checks[name]}", flush=True)
            except ContestantError as error:
                self.skip(name, str(error))

    def _admit(self, name: str, model: GPT, checkpoint: Path, folder: Path) -> None:
        entry = CONTESTANTS[name]
        if missing := entry.missing():
            raise ContestantError(f"not installed: {', '.join(missing)}")
        try:
            weights = entry.convert(checkpoint, folder)
        except Exception as error:
            raise ContestantError(f"cannot convert the weights: {error}") from error
        child = Child(entry, weights, self._threads)
        try:
            self.checks[name] = verify(child, model, exact=entry.exact)
        except ContestantError:
            child.close()
            raise
        self.children[name] = child

    def skip(self, name: str, reason: str) -> None:
        if name not in self.skipped:
            self.skipped[name] = reason
            print(f"skipped {name}: {reason}", flush=True)

    def compete(self, workload: Workload, repeats: int) -> Rates:
        """Rounds in which all take turns."""

        def rate(name: str) -> float:
            try:
                run = self.children[name].run(workload)
            except ContestantError as error:
                self.skip(f"{name} on {workload.name}", str(error))
                return math.nan
            if run.workload != workload:
                shortened[name] = f"{len(run.rows)} sequences"
            if run.disturbed:
                disturbed[name] = disturbed.get(name, 0) + 1
                print(
                    f"disturbed: others took {run.elsewhere:.1f} of {run.seconds:.1f} s", flush=True
                )
            return run.rate

        shortened = self.shortened[workload.name] = {}
        disturbed = self.disturbed[workload.name] = {}  # name -> rounds not to be trusted
        print(f"{workload.name}: {len(workload.prompts)} prompts, {workload.tokens:,} new tokens")
        rates = interleave({name: partial(rate, name) for name in self.children}, repeats)
        return {name: each for name, each in rates.items() if not any(map(math.isnan, each))}

    def close(self) -> None:
        for child in self.children.values():
            child.close()


def standings(rates: Rates) -> dict[str, Any]:
    """The best of each family, and our best over every other contestant, round by round."""
    typical = medians(rates)
    best: dict[str, str] = {}
    for name in sorted(typical, key=lambda name: -typical[name]):
        best.setdefault(CONTESTANTS[name].family, name)
    ours = best.get("ours")
    over: dict[str, Any] = {}
    for name in rates:
        if ours and name != ours:
            rounds = ratios(rates, ours, name)
            over[name] = {"median": round(statistics.median(rounds), 2), "rounds": rounds}
    return {"best": best, "best_of_ours_over": over}


def table(document: dict[str, Any]) -> str:
    rates, memory = document["tokens_per_second"], document["peak_memory_mb"]
    names = [name for name in CONTESTANTS if any(name in each for each in rates.values())]
    lines = [f"{'tokens per second':32}" + "".join(f"{w:>10}" for w in rates) + "   peak MB"]
    for name in names:
        cells = "".join(
            f"{each[name]:>10,.0f}" if name in each else f"{'-':>10}" for each in rates.values()
        )
        lines.append(f"{name:32}{cells}{memory.get(name, '-'):>10}")
    return "\n".join(lines)


def choose(peers: str | None, only: str | None) -> list[str]:
    families = set(PEERS if peers is None else filter(None, peers.split(",")))
    if unknown := families - set(PEERS) - {"none"}:
        raise typer.BadParameter(f"no peers {', '.join(unknown)}; there are {', '.join(PEERS)}")
    parts = only.split(",") if only else [""]
    return [
        name
        for name, entry in CONTESTANTS.items()
        if entry.family in families | {"ours"} and any(part in name for part in parts)
    ]


def main(
    preset: Annotated[
        str, typer.Option(help="slm-30m or slm-7m with random weights, or the shipped checkpoint.")
    ] = "slm-30m",
    peers: Annotated[
        str | None,
        typer.Option(help=f"Of {', '.join(PEERS)}; or none. All that are installed if left out."),
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="Only contestants with one of these in their names.")
    ] = None,
    workloads: Annotated[str, typer.Option(help="Of uniform, ragged, single.")] = ",".join(
        WORKLOADS
    ),
    tokens: Annotated[int, typer.Option(help="New tokens of a sequence; ragged: 0.1-1.5x.")] = 200,
    repeats: Annotated[int, typer.Option(help="Rounds after a warm-up; medians count.")] = 5,
    threads: Annotated[int, typer.Option(help="Threads and cores of everyone; 0: all.")] = 0,
    extras: Annotated[
        bool, typer.Option(help="Also limits, agreement, waiting and start-up.")
    ] = True,
    plot: Annotated[Path | None, typer.Option(help="Draws the result into this file.")] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Measures nothing; draws this saved result instead."),
    ] = None,
) -> None:
    """Tokens per second of our engine and of its peers, interleaved."""
    if source is not None:
        document = json.loads(source.read_text("utf-8").splitlines()[-1])
    else:
        wanted = workloads.split(",")
        if unknown := set(wanted) - WORKLOADS.keys():
            raise typer.BadParameter(f"no workloads {', '.join(unknown)}")
        if preset not in MODELS:
            raise typer.BadParameter(f"no preset {preset}; there are {', '.join(MODELS)}")
        chosen = [WORKLOADS[name](tokens) for name in WORKLOADS if name in wanted]
        threads = pin(threads)
        document = run(preset, choose(peers, only), chosen, tokens, repeats, threads, extras)
    if plot is not None:
        from benchmarks.plot import draw

        draw(document, plot)


def pin(threads: int) -> int:
    """Confines this process and its children to as many cores as threads."""
    if threads and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    threads = threads or available_threads()
    torch.set_num_threads(threads)
    return threads


def run(
    preset: str,
    names: list[str],
    workloads: list[Workload],
    tokens: int,
    repeats: int,
    threads: int,
    extras: bool,
) -> dict[str, Any]:
    model = model_of(preset)
    figures: dict[str, Any] = {}
    rates: dict[str, Rates] = {}
    memory: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        field = Field(names, model, Path(folder), threads)
        try:
            for workload in workloads:
                rates[workload.name] = field.compete(workload, repeats)
                memory = memory or {
                    name: field.children[name].peak_memory() >> 20 for name in rates[workload.name]
                }
            places = {name: standings(each) for name, each in rates.items()}
            if extras:
                figures["agreement"] = agreements(field.children, model, preset == "shipped")
                best = next(iter(places.values()))["best"].get("ours")
                if best:
                    figures["waiting"] = waiting(field.children[best], best, tokens, repeats)
        finally:
            field.close()
    if extras:
        figures["start_up_seconds"] = start_up(SHIPPED, repeats)
        if workloads[0].name == "uniform":
            figures["roofline"] = limits(model.config, workloads[0], medians(rates["uniform"]))
    figures = {
        "tokens_per_second": {name: medians(each) for name, each in rates.items()},
        "rounds": {
            name: {who: [round(rate, 1) for rate in each[who]] for who in each}
            for name, each in rates.items()
        },
        "standings": places,
        "peak_memory_mb": memory,
        **figures,
    }
    print(table(figures))
    return report(
        "engine",
        preset=preset,
        model=model.config.to_dict(),
        threads=threads,
        repeats=repeats,
        batch=BATCH,
        tokens=tokens,
        sampling={"temperature": TEMPERATURE, "top_k": TOP_K},
        workloads={
            w.name: {"prompts": len(w.prompts), "tokens": w.tokens, "attended": round(w.attended)}
            for w in workloads
        },
        versions=versions(),
        **figures,
        shortened=field.shortened,
        disturbed=field.disturbed,
        checks=field.checks,
        skipped=field.skipped,
    )


def limits(config: GPTConfig, uniform: Workload, rates: dict[str, float]) -> dict[str, Any]:
    """The most that the machine allows, and the share of it that ours reach."""
    peaks = measure()
    limit = {p: peaks.limit(config, uniform, p) for p in peaks.operations}
    return {
        "peaks": peaks.to_dict(),
        "tokens_per_second": {p: round(value) for p, value in limit.items()},
        "reached": {
            name: round(rates[name] / limit[entry.options["precision"]], 3)
            for name, entry in CONTESTANTS.items()
            if entry.family == "ours" and name in rates
        },
    }


if __name__ == "__main__":
    typer.run(main)
